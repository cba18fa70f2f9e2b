"""What lies in the folder of a store: chunks by their last use, lists of documents, and files of others.

<folder>/<model key>/chunks/<chunk key>.safetensors        keys and values of one chunk
<folder>/<model key>/documents/<digest>.json               name and chunks of a document, for people
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import psutil

from focus_core.cache.keys import ChunkKey
from focus_core.disk import replace_file

_DIGEST = "[0-9a-f]{64}"
_CHUNK = re.compile(rf"{_DIGEST}/chunks/{_DIGEST}\.safetensors")
_DOCUMENT = re.compile(rf"{_DIGEST}/documents/{_DIGEST}\.json")
_PARTIAL = re.compile(rf"{_DIGEST}/(?:chunks|documents)/{_DIGEST}\.\w+\.(\d+)-\d+\.partial")
_LEFT_BEHIND = 60.0  # seconds after which a partial file of a process that is gone is removed


def chunk_path(folder: Path, model: str, key: ChunkKey) -> Path:
    """Where a chunk's file is."""
    return folder / model / "chunks" / f"{key.hex()}.safetensors"


@dataclass(frozen=True)
class StoredFile:
    """A file of a store.

    Attributes:
        used: when it was written or last used, in seconds since 1970
    """

    path: Path
    nbytes: int
    used: float


class FolderContent:
    """The files of a folder as they were when it was looked through.

    Attributes:
        chunks: the least recently used first
        chunk_bytes: of their files
        documents: lists of documents
        partial: files that are being written, or were when their process ended
        foreign: bytes of files of others, which count and stay
    """

    def __init__(self, folder: Path) -> None:
        chunks: list[StoredFile] = []
        self.documents: list[StoredFile] = []
        self.partial: list[StoredFile] = []
        self.foreign = 0
        for name, file in _files(folder):
            for pattern, files in ((_CHUNK, chunks), (_DOCUMENT, self.documents), (_PARTIAL, self.partial)):
                if pattern.fullmatch(name):
                    files.append(file)
                    break
            else:
                self.foreign += file.nbytes
        self.chunks = {file.path: file for file in sorted(chunks, key=lambda file: file.used)}
        self.chunk_bytes = sum(file.nbytes for file in chunks)  # kept up: there may be many, and one more every moment

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return self.foreign + self.chunk_bytes + sum(file.nbytes for file in (*self.documents, *self.partial))

    def added(self, path: Path, nbytes: int) -> None:
        """A chunk was written, in place of an older one perhaps."""
        self._forget(path)
        self.chunks[path] = StoredFile(path, nbytes, time.time())
        self.chunk_bytes += nbytes

    def _forget(self, path: Path) -> None:
        if path in self.chunks:
            self.chunk_bytes -= self.chunks.pop(path).nbytes

    def shrink(self, limit: int) -> bool:
        """Remove the least recently used chunks until all files take at most `limit` bytes; whether they do."""
        if self.nbytes - self.chunk_bytes > limit:
            return False  # removing everything would not be enough
        while self.nbytes > limit:
            oldest = next(iter(self.chunks))
            oldest.unlink(missing_ok=True)
            self._forget(oldest)
        return True

    def remove_left_behind(self) -> None:
        """Remove partial files of processes that are gone."""
        for file in list(self.partial):
            found = re.search(r"(\d+)-\d+\.partial$", file.path.name)
            if found and not psutil.pid_exists(int(found[1])) and time.time() - file.used > _LEFT_BEHIND:
                with suppress(OSError):
                    file.path.unlink(missing_ok=True)
                    self.partial.remove(file)


def _files(folder: Path) -> Iterator[tuple[str, StoredFile]]:
    """Every file below, with its path from the folder; links are not followed."""
    for parent, _, names in os.walk(folder):
        for name in names:
            path = Path(parent, name)
            try:
                stat = path.lstat()
            except OSError:  # removed meanwhile
                continue
            yield path.relative_to(folder).as_posix(), StoredFile(path, stat.st_size, stat.st_mtime)


# --- documents, by name -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredDocument:
    """A document of which a store has chunks.

    Attributes:
        document: digest of its content
        model: the model's key
        model_id: the model's name
        chunks: keys of its chunks, in order, as hex digits
    """

    document: str
    name: str
    tokens: int
    model: str
    model_id: str
    chunks: tuple[str, ...]

    def path(self, folder: Path) -> Path:
        """Where its list is: a document that is cut in another way has another one."""
        content = sha256(" ".join([self.name, *self.chunks]).encode()).hexdigest()
        return folder / self.model / "documents" / f"{content}.json"

    def write(self, folder: Path) -> None:
        """Note it in the folder.

        Raises:
            OSError: the folder cannot be written to
        """
        path, text = self.path(folder), json.dumps(asdict(self), indent=1)
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        replace_file(path, lambda partial: partial.write_text(text, encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> StoredDocument | None:
        """From its list; `None` if that is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            chunks = tuple(str(key) for key in found["chunks"])
            names = {name: str(found[name]) for name in ("document", "name", "model", "model_id")}
            return cls(tokens=int(found["tokens"]), chunks=chunks, **names)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
