"""Output of a training run: a progress bar or JSON lines on the screen, and losses per objective as CSV."""

from __future__ import annotations

import csv
import json
import math
from collections import defaultdict
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from accelerate import Accelerator  # type: ignore[import-untyped]
from accelerate.utils import gather_object  # type: ignore[import-untyped]
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from focus_core.disk import replace_file
from focus_core.training.config import TrainingConfig

LOSSES = "losses.csv"
EVALUATION = "evaluation.csv"
HELD_OUT_LOSS = "loss"  # name of the evaluation by which the best adapter is kept
OTHERS, NOTHING = "other documents", "no documents"  # its controls
HELD_OUT = (HELD_OUT_LOSS, OTHERS, NOTHING)
FIRST_TOKEN = ", first token"  # behind each of these names
_LOSS_COLUMNS = ("step", "objective", "loss", "examples", "targets", "learning_rate", "gradient_norm", "seconds")
_EVALUATION_COLUMNS = ("step", "name", "value")


@dataclass
class Unwritten:
    """What came after the last row of the CSV.

    Attributes:
        examples: objective, loss and targets of each
        norms: sum of the gradient norms
    """

    examples: list[tuple[str, float, int]] = field(default_factory=list)
    steps: int = 0
    norms: float = 0.0
    seconds: float = 0.0


class LossLog:
    """Collects the losses of all processes; the main one writes every `log_every` steps.

    A row of the CSV holds one objective: the mean loss over the examples since the row before. Where a run stops
    between two rows, what the next row needs is kept in its resume state, so that the rows are those of a run without
    a stop.

    Args:
        unwritten: of the resume state
    """

    def __init__(self, config: TrainingConfig, first: int, accelerator: Accelerator, unwritten: Unwritten) -> None:
        self._config, self._first, self._accelerator = config, first, accelerator
        self._unwritten = unwritten
        self._console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self._progress = Progress(
            *columns,
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            redirect_stdout=False,  # an evaluation may print to standard output
            redirect_stderr=False,
            disable=not (accelerator.is_main_process and self._console.is_terminal),
        )

    def __enter__(self) -> LossLog:
        if self._accelerator.is_main_process:
            written = self._first - self._unwritten.steps  # the row after a run's early end is written again
            _open_csv(self._config.output / LOSSES, _LOSS_COLUMNS, written)
            _open_csv(self._config.output / EVALUATION, _EVALUATION_COLUMNS, self._first)
        self._progress.start()
        self._task = self._progress.add_task("training", total=self._config.steps, completed=self._first)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def example(self, objective: str, loss: float, targets: int) -> None:
        """Note the loss of one example."""
        self._unwritten.examples.append((objective, loss, targets))

    def step(self, done: int, rate: float, norm: float, seconds: float) -> None:
        """After an optimizer step: move the bar, and write when it is time."""
        self._progress.update(self._task, completed=done)
        self._unwritten.steps += 1
        self._unwritten.norms += norm
        self._unwritten.seconds += seconds
        if done % self._config.log_every == 0 or done == self._config.steps:
            self._write(done, rate)

    def end(self, done: int, rate: float) -> None:
        """The run ends here, before its last step: write what there is."""
        if self._unwritten.steps:
            self._write(done, rate)

    def unwritten(self) -> Unwritten:
        """What a resume state must hold; every process has to ask, and the main one gets the examples of all."""
        return replace(self._unwritten, examples=list(gather_object(self._unwritten.examples)))

    def has_evaluation(self, done: int) -> bool:
        """Whether an evaluation after step `done` has been written."""
        return any(int(row["step"]) == done for row in read_rows(self._config.output / EVALUATION))

    def best(self) -> tuple[int, int]:
        """The step whose held-out loss was the lowest, and how many evaluations followed it; 0 without any."""
        values = self._held_out_losses()
        step = min(values, key=lambda step: values[step], default=0)
        return step, sum(later > step for later in values)

    def would_be_best(self, results: dict[str, float]) -> bool:
        """Whether no evaluation so far has a held-out loss as low as that of `results`."""
        return all(_comparable(results[HELD_OUT_LOSS]) < loss for loss in self._held_out_losses().values())

    def _held_out_losses(self) -> dict[int, float]:
        """By the step after which they were measured."""
        rows = [row for row in read_rows(self._config.output / EVALUATION) if row["name"] == HELD_OUT_LOSS]
        return {int(row["step"]): _comparable(float(row["value"])) for row in rows}

    def evaluated(self, done: int, results: dict[str, float]) -> None:
        """Write the results of an evaluation."""
        rows = [{"step": done, "name": name, "value": value} for name, value in results.items()]
        _append_csv(self._config.output / EVALUATION, _EVALUATION_COLUMNS, rows)
        named = {f"evaluation/{name}": value for name, value in results.items()}
        self._accelerator.log(named, step=done)
        self._say({"step": done, **{name: round(value, 4) for name, value in named.items()}})

    def _write(self, done: int, rate: float) -> None:
        found, self._unwritten = self.unwritten(), Unwritten()
        seconds, norm = found.seconds / found.steps, found.norms / found.steps
        if not self._accelerator.is_main_process:
            return
        common = {"step": done, "learning_rate": rate, "gradient_norm": norm, "seconds": seconds}
        rows = [common | row for row in _by_objective(found.examples)]
        _append_csv(self._config.output / LOSSES, _LOSS_COLUMNS, rows)
        exact = {f"loss/{row['objective']}": row["loss"] for row in rows}
        self._accelerator.log({**exact, "learning_rate": rate, "gradient_norm": norm}, step=done)
        losses = {name: round(loss, 4) for name, loss in exact.items()}
        shown = " ".join(f"{name.removeprefix('loss/')} {loss:.3f}" for name, loss in losses.items())
        self._progress.update(self._task, description=f"training · {shown}")
        finite = round(norm, 4) if math.isfinite(norm) else None  # else fp16 overflowed, and the step was left out
        numbers = {"learning_rate": rate, "gradient_norm": finite, "seconds_per_step": round(seconds, 3)}
        self._say({"step": done, **losses, **numbers})

    def _say(self, line: dict[str, Any]) -> None:
        """One JSON object per line where no terminal shows a progress bar."""
        if not self._console.is_terminal:
            self._console.file.write(json.dumps(line) + "\n")
            self._console.file.flush()


def _comparable(loss: float) -> float:
    """A loss that is not a number is worse than any."""
    return math.inf if math.isnan(loss) else loss


def _by_objective(examples: list[tuple[str, float, int]]) -> list[dict[str, Any]]:
    found: dict[str, list[tuple[float, int]]] = defaultdict(list)
    for objective, loss, targets in examples:
        found[objective].append((loss, targets))
    return [
        {
            "objective": objective,
            "loss": sum(loss for loss, _ in losses) / len(losses),
            "examples": len(losses),
            "targets": sum(targets for _, targets in losses),
        }
        for objective, losses in sorted(found.items())
    ]


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV of a run, without one that was cut short; none, where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["step"].isdigit() and None not in row.values()]


def _open_csv(path: Path, columns: tuple[str, ...], first: int) -> None:
    """A file with a header; rows of steps that are about to be done again are taken out."""
    kept = [row for row in read_rows(path) if int(row["step"]) <= first] if first else []

    def write(to: Path) -> None:
        with to.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(kept)

    replace_file(path, write)


def _append_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, columns).writerows(rows)
