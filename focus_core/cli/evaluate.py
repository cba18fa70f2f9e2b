"""`focusllm eval`: how often a model finds facts in long texts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from focus_core.cli import options
from focus_core.cli.loading import load_engine, read_documents
from focus_core.config import FocusConfig
from focus_core.errors import ConfigError
from focus_core.progress import progress_bar, sign_of_life

if TYPE_CHECKING:
    from focus_core.evaluation.run import Result


def evaluate(
    task: Annotated[
        list[str] | None,
        typer.Option(
            help="passkey; fact: one stated fact; facts: one among 20 look-alikes; reworded: the same, in words that "
            "no training used; keys: one of many `key: value` lines; passage: 8 tokens continued. Default: all of them."
        ),
    ] = None,
    tokens: Annotated[
        list[int] | None, typer.Option(min=256, help="About how long the documents are. Default: 1000, 4000 and 16000.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Questions per task and length.")] = 20,
    seed: Annotated[int, typer.Option(help="Of documents and questions.")] = 0,
    text: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="Text to hide facts in. Default: generated sentences.")
    ] = None,
    control: Annotated[
        bool, typer.Option("--control", help="Also ask the plain model, with the text cut to its window.")
    ] = False,
    model: options.Model = None,
    adapter: options.Adapter = None,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    chunk_size: options.ChunkSize = None,
    dynamic_prompt: options.DynamicPrompt = None,
    parallel_chunks: options.ParallelChunks = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the results as JSON lines.")] = None,
) -> None:
    """Measure how often a model answers questions about long texts right. Every trial is seeded.

    In the table, `focus` is the engine as `ask` uses it, where texts that fit the window go to the plain model; `cut`
    is the plain model on the end of the text.
    """
    with sign_of_life("starting"):
        from focus_core.evaluation.run import evaluate as run
        from focus_core.evaluation.tasks.base import Haystack
        from focus_core.evaluation.tasks.table import TASKS, task_named
    chosen = task or list(TASKS)
    for name in chosen:
        task_named(name)
    texts = read_documents(text or [])
    if out is not None:
        _require_writable(out)  # before hours of work
    config = FocusConfig(chunk_size=chunk_size, dynamic_prompt=dynamic_prompt, parallel_chunks=parallel_chunks)
    engine = load_engine(model, adapter, device, dtype, config=config, progress=False)
    haystack = Haystack(engine, texts)
    typer.echo(f"{'task':<9}{'by':<7}{'tokens':>9}{'trials':>8}{'right':>8}   95 % interval   s/document")
    for name in chosen:
        for length in tokens or [1_000, 4_000, 16_000]:
            for cut in (False, True) if control else (False,):
                with progress_bar(f"{name}, {length:,} tokens") as progress:
                    result = run(
                        engine, name, length, trials=trials, seed=seed, haystack=haystack, cut=cut, report=progress
                    )
                typer.echo(_line(result))
                if out is not None:
                    with out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(result.as_dict()) + "\n")


def _require_writable(out: Path) -> None:
    try:
        out.open("a", encoding="utf-8").close()
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be written: {error.strerror}.") from error


def _line(result: Result) -> str:
    return (
        f"{result.task:<9}{result.contender:<7}{result.tokens:>9,}{result.trials:>8}{result.accuracy:>8.0%}"
        f"   {result.low:>5.0%} – {result.high:<5.0%}  {result.seconds:>9.2f}"
    )
