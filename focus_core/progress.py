"""Signs of life over what takes longer than two seconds, on a terminal."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

Report = Callable[[int, int], None]  # done, in all

_PATIENCE = 2.0  # seconds without a sign of life


@contextmanager
def sign_of_life(text: str, *, visible: bool = True) -> Iterator[None]:
    """A spinner over what takes longer than two seconds, on a terminal."""
    if not (visible and sys.stderr.isatty()):
        yield
        return
    status = Console(stderr=True).status(text)
    timer = threading.Timer(_PATIENCE, status.start)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()
        status.stop()


class ProgressBar:
    """A bar over what takes longer than two seconds, on a terminal; gone at its end, so that an answer can follow.

    Called with what is done and how much there is. Also hands every report on to `report`.
    """

    def __init__(self, what: str = "reading chunks", *, visible: bool, report: Report | None = None) -> None:
        self._what, self._report = what, report
        self._visible = visible and sys.stderr.isatty()

    def __enter__(self) -> ProgressBar:
        if self._visible:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._task = self._bar.add_task(self._what, total=None)
            self._timer = threading.Timer(_PATIENCE, self._bar.start)
            self._timer.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._visible:
            self._timer.cancel()
            self._timer.join()
            self._bar.stop()

    def __call__(self, done: int, total: int) -> None:
        """Told whenever something has been done."""
        if self._report is not None:
            self._report(done, total)
        if self._visible:
            self._bar.update(self._task, completed=done, total=total)
