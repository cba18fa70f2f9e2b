"""A bar over what takes longer than two seconds, on a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]  # done, in all

_PATIENCE = 2.0  # seconds without a bar


class ReadingProgress:
    """Shows how much has been read; silent where it is quick, or where nobody watches.

    Also hands every report on to `report`.
    """

    def __init__(self, what: str = "reading chunks", *, visible: bool, report: Report | None = None) -> None:
        self._what = what
        self._visible = visible and sys.stderr.isatty()
        self._report = report
        self._started = time.monotonic()
        self._bar: Progress | None = None

    def __enter__(self) -> ReadingProgress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Told after every group of chunks."""
        if self._report is not None:
            self._report(done, total)
        if not self._visible:
            return
        if self._bar is None and done < total and time.monotonic() - self._started > _PATIENCE:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.add_task(self._what, total=total)
            self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done)
