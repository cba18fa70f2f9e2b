"""`focusllm train train.toml`: candidate projections for your own model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focus_core.errors import ConfigError, shown_bytes
from focus_core.progress import sign_of_life

if TYPE_CHECKING:
    from focus_core.training.trainer import Rehearsal


def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG.toml", help="Settings of the run.", show_default=False)],
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check model, data and sizes; say what the run would take in time and memory."),
    ] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the resume state in the output folder.")] = False,
) -> None:
    """Train candidate projections; the model itself stays as it is.

    CONFIG.toml names at least the model, the data (JSON lines: {"documents": […], "question": …, "answer": …} or
    {"text": …}) and the output folder; docs/training.md has all settings. Prints the folder of the adapter. Ctrl-C
    saves the state before it stops.
    """
    with sign_of_life("starting"):
        from focus_core.training.config import TrainingConfig
        from focus_core.training.trainer import RESUME_STATE, rehearse
        from focus_core.training.trainer import train as run
    settings = TrainingConfig.from_toml(config)
    if dry_run:
        _show(rehearse(settings))
        return
    if resume and not (settings.output / RESUME_STATE).exists():
        raise ConfigError(
            f"{settings.output} holds no resume state ({RESUME_STATE}) to go on from. Start the run without --resume."
        )
    if not resume and (settings.output / RESUME_STATE).exists():
        raise ConfigError(
            f"{settings.output} holds a resume state already. Go on from it with --resume, or name another output "
            "folder."
        )
    typer.echo(run(settings))


def _show(found: Rehearsal) -> None:
    optimizer = 2 * found.adapter_bytes
    rows = {
        "parameters that learn": f"{found.parameters:,}",
        "the adapter's file": shown_bytes(found.adapter_bytes),
        "seconds per step": f"{found.seconds_per_step:,.1f}",
        f"hours for {found.steps:,} steps": f"{found.hours:,.1f}, without evaluations",
        "memory": f"{shown_bytes(found.peak_bytes)}, and up to {shown_bytes(optimizer)} for the optimizer",
    }
    for name, value in rows.items():
        typer.echo(f"{name:<28}{value}")
