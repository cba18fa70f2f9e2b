"""One writer at a time in a folder, of all threads and processes, and whether another one has written since.

A limit in bytes holds only if nobody writes between the count and the write.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

_LOCK = ".lock"
_LAST = ".writer"  # holds the name of who has written last
_PATIENCE = 10.0  # seconds for which another writer is waited for: a chunk takes far less
_POLL = 0.005  # seconds


class Writers:
    """The writers of a folder, of whom this is one.

    Args:
        folder: it need not be there
    """

    def __init__(self, folder: Path) -> None:
        self._last, self._name = folder / _LAST, uuid4().hex
        self._lock = FileLock(folder / _LOCK, timeout=_PATIENCE, poll_interval=_POLL)

    @contextmanager
    def held(self) -> Iterator[None]:
        """As long as the block runs, nobody else writes.

        Raises:
            OSError: the folder cannot be written to, or another process writes and does not go on
        """
        try:
            self._lock.acquire()
        except Timeout as error:
            raise OSError(f"another process has held {self._lock.lock_file} for {_PATIENCE:.0f} seconds") from error
        except NotImplementedError:  # a file system without locks: other writers are noticed a little later
            pass
        try:
            yield
        finally:
            self._lock.release()

    @property
    def alone(self) -> bool:
        """Whether nobody else has written since this one did last; to be asked while the lock is held."""
        try:
            return self._last.read_text(encoding="ascii") == self._name
        except (OSError, ValueError):
            return False

    def mark(self) -> None:
        """This one writes now; before it does, so that it has written even if it is killed meanwhile."""
        if not self.alone:
            self._last.write_text(self._name, encoding="ascii")
