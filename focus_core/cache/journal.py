"""What the writers of a folder, of all threads and processes, tell one another: who writes now, and what was written.

<folder>/.journal    a line that names this journal, then one for each file that was written: its bytes, and where it is

The file is the lock, too. A limit in bytes holds only if nobody writes between the count and the write; and a count is
right only if it knows of what others have written, without looking through the folder each time.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

if sys.platform != "win32":
    import fcntl

JOURNAL = ".journal"

_PATIENCE = 2.0  # seconds for which another writer is waited for: a chunk takes far less
_POLL = 0.005  # seconds
_NAME = 33  # bytes of the first line
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of some network shares

Entry = tuple[str, int]  # a file's path from the folder, and its bytes


class Journal:
    """The journal of a folder, as one of its writers knows it.

    Args:
        longest: bytes after which another one is begun, so that all writers look through the folder once

    Attributes:
        name: the first line of the journal that this writer knows
        seen: how many of its bytes it knows
    """

    def __init__(self, folder: Path, *, longest: int) -> None:
        self._path, self.longest = folder / JOURNAL, longest
        self.name, self.seen = b"", 0
        self._patience = _PATIENCE

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """As long as the block runs, nobody else writes.

        Raises:
            OSError: the folder cannot be written to, or another process writes and does not go on
        """
        file = self._locked()
        try:
            yield Turn(self, file)
        finally:
            os.close(file)  # which also unlocks it

    def _locked(self) -> int:
        deadline = time.monotonic() + self._patience
        while True:
            file = self._opened()
            try:
                if _lock(file) and self._is_there(file):
                    self._patience = _PATIENCE
                    return file
            except BaseException:
                os.close(file)
                raise
            os.close(file)
            if time.monotonic() >= deadline:
                self._patience = 0.0  # one that does not go on is waited for once
                raise OSError(f"another process holds {self._path} and does not go on")
            time.sleep(_POLL)

    def _opened(self) -> int:
        # Neither a link nor a pipe is followed, whoever has put it there.
        careful = (getattr(os, name, 0) for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"))
        file = os.open(self._path, sum(careful, os.O_RDWR | os.O_CREAT), 0o600)
        if not stat.S_ISREG(os.fstat(file).st_mode):
            os.close(file)
            raise OSError(f"{self._path} is no ordinary file")
        return file

    def _is_there(self, file: int) -> bool:
        """Whether the open file is still the one of that name; otherwise somebody may hold another one."""
        try:
            return os.path.samestat(os.fstat(file), os.stat(self._path, follow_symlinks=False))
        except FileNotFoundError:
            return False


class Turn:
    """To write in the folder while nobody else does."""

    def __init__(self, journal: Journal, file: int) -> None:
        self._journal, self._file = journal, file

    @property
    def nbytes(self) -> int:
        """Of the journal."""
        return os.fstat(self._file).st_size

    def news(self) -> list[Entry] | None:
        """What others have written since this writer last asked, or `None` if that is not known."""
        journal, size, start = self._journal, self.nbytes, self._journal.seen
        name = self._read(_NAME, 0)
        known, whole = name == journal.name and start <= size, len(name) == _NAME and name.endswith(b"\n")
        *lines, rest = self._read(size - start, start).split(b"\n") if known else [b""]
        entries = [entry for line in lines if (entry := _entry(line)) is not None]
        if not whole or rest or len(entries) < len(lines):  # it is new, or somebody was killed within a line
            self._begin()
            return None
        journal.name, journal.seen = name, size
        return entries if known else None

    def writes(self, path: str, nbytes: int) -> None:
        """Say that a file is written, before it is: others count it even if this process is killed meanwhile."""
        if self.nbytes > self._journal.longest:
            self._begin()
        self._append(f"{nbytes} {path}\n".encode("utf-8", "surrogateescape"))

    def _begin(self) -> None:
        """Another journal, of which nobody has read anything."""
        os.ftruncate(self._file, 0)
        self._journal.name, self._journal.seen = f"{uuid4().hex}\n".encode(), 0
        self._append(self._journal.name)

    def _append(self, content: bytes) -> None:
        end = os.lseek(self._file, 0, os.SEEK_END)
        os.write(self._file, content)
        if self._journal.seen == end:  # there is no other news
            self._journal.seen = end + len(content)

    def _read(self, count: int, start: int) -> bytes:
        os.lseek(self._file, start, os.SEEK_SET)
        return os.read(self._file, count)


def _lock(file: int) -> bool:
    """Whether nobody else has it; also where the file system knows no locks: then writers meet in the journal alone."""
    if sys.platform == "win32":
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    return True


def _entry(line: bytes) -> Entry | None:
    nbytes, _, path = line.decode("utf-8", "surrogateescape").partition(" ")
    return (path, int(nbytes)) if nbytes.isascii() and nbytes.isdigit() and path else None
