"""How reading goes on: for programs, and on a terminal over what takes longer than two seconds."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Report = Callable[[int, int], None]  # done, in all


@dataclass(frozen=True)
class Reading:
    """How far the documents of a question have been read.

    Attributes:
        total: chunks of the documents, equal ones once
        cached: of these, found in memory or in the store's folder, where nothing has to be read; fewer later if a file
            turns out to be damaged
        read: of the others, read so far; all are there when `cached + read == total`
        seconds: since they were looked for
    """

    total: int
    cached: int
    read: int
    seconds: float


OnReading = Callable[[Reading], None]

_PATIENCE = 2.0  # seconds without a sign of life
_spinner = threading.Lock()  # held while there is one: two would overwrite each other


@contextmanager
def sign_of_life(what: str, *, visible: bool = True) -> Iterator[None]:
    """A spinner; none inside the block of another one."""
    if not (visible and _watched() and _spinner.acquire(blocking=False)):
        yield
        return
    try:
        with _shown_later(_screen(SpinnerColumn()), what):
            yield
    finally:
        _spinner.release()


@contextmanager
def progress_bar(what: str, *, visible: bool = True, report: Report | None = None) -> Iterator[Report]:
    """A bar, gone at the end of the block, so that an answer can follow.

    Yields:
        what is to be called with what is done and how much there is; hands everything on to `report`
    """
    told = report or (lambda done, total: None)
    if not (visible and _watched()):
        yield told
        return
    screen = _screen(BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with _shown_later(screen, what) as task:

        def tell(done: int, total: int) -> None:
            told(done, total)
            screen.update(task, completed=done, total=total)

        yield tell


def _watched() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()  # a program without a console has none


def _screen(*columns: ProgressColumn) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        *columns,
        console=Console(stderr=True),
        transient=True,
        # By default rich sends what the whole process writes to standard output here.
        redirect_stdout=False,
        redirect_stderr=False,
    )


@contextmanager
def _shown_later(screen: Progress, what: str) -> Iterator[TaskID]:
    task = screen.add_task(what, total=None)
    timer = threading.Timer(_PATIENCE, screen.start)
    timer.start()
    try:
        yield task
    finally:
        timer.cancel()
        timer.join()
        if screen.live.is_started:  # on a simple terminal stopping writes an empty line
            screen.stop()
