"""What lies in the folder of a store: chunks and lists of documents by their last use, and files of others.

<folder>/<model key>/chunks/<chunk key>.safetensors        keys and values of one chunk
<folder>/<model key>/documents/<digest>.json               name and chunks of a document, for people
<folder>/.journal                                          what writers tell one another
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from heapq import merge
from pathlib import Path

import psutil

from focus_core.cache.journal import JOURNAL
from focus_core.cache.keys import ChunkKey
from focus_core.disk import replace_file

_DIGEST = "[0-9a-f]{64}"
_CHUNK = re.compile(rf"{_DIGEST}/chunks/{_DIGEST}\.safetensors")
_DOCUMENT = re.compile(rf"{_DIGEST}/documents/{_DIGEST}\.json")
_PARTIAL = re.compile(rf"{_DIGEST}/(?:chunks|documents)/{_DIGEST}\.\w+\.(\d+)-\d+\.partial")
_JOURNAL = re.compile(re.escape(JOURNAL))
_LEFT_BEHIND = 60.0  # seconds after which a partial file of a process that is gone is removed
_MOST_TOKENS = 2**63
_NOBODY_WRITES_SO_LONG = 24 * 60 * 60.0  # seconds after which a partial file is removed in any case


def may_be_removed(name: str) -> bool:
    """Whether this path from the folder is that of a chunk or a list."""
    return bool(_CHUNK.fullmatch(name) or _DOCUMENT.fullmatch(name))


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
        documents: lists of documents, likewise
        removable: bytes of both
        partial: files that are being written, or were when their process ended
        journal: bytes of what writers tell one another
        foreign: bytes of files of others, which count and stay
    """

    def __init__(self, folder: Path) -> None:
        kinds = dict[re.Pattern[str], list[StoredFile]]((kind, []) for kind in (_CHUNK, _DOCUMENT, _PARTIAL, _JOURNAL))
        self.foreign = 0
        for name, file in _files(folder):
            kind = next((kind for kind in kinds if kind.fullmatch(name)), None)
            if kind is None:
                self.foreign += file.nbytes
            else:
                kinds[kind].append(file)
        chunks, documents, self.partial, journals = kinds.values()
        self.journal = sum(file.nbytes for file in journals)
        self.chunks = _by_use(chunks)
        self.documents = _by_use(documents)
        self.removable = sum(file.nbytes for file in (*chunks, *documents))  # kept up: one more comes every moment

    @property
    def nbytes(self) -> int:
        """Of all files."""
        return self.foreign + self.journal + self.removable + sum(file.nbytes for file in self.partial)

    def added(self, path: Path, nbytes: int) -> None:
        """A chunk or a list was written, in place of an older one perhaps."""
        self._forget(path)
        files = self.documents if path.suffix == ".json" else self.chunks
        files[path] = StoredFile(path, nbytes, time.time())
        self.removable += nbytes

    def used(self, path: Path) -> None:
        """A chunk or a list was used now."""
        for files in (self.chunks, self.documents):
            if path in files:
                files[path] = replace(files.pop(path), used=time.time())

    def nbytes_of(self, path: Path) -> int:
        """Bytes of a chunk or a list; none if it is not there."""
        found = self.chunks.get(path) or self.documents.get(path)
        return found.nbytes if found else 0

    def _forget(self, path: Path) -> None:
        for files in (self.chunks, self.documents):
            if path in files:
                self.removable -= files.pop(path).nbytes

    def shrink(self, limit: int, *, keep: Collection[Path] = ()) -> bool:
        """Remove the least recently used chunks and lists until all files take at most `limit` bytes; whether they do.

        Args:
            keep: files that stay
        """
        for file in self._least_recently_used() if self.nbytes > limit else ():
            if self.nbytes <= limit:
                break
            if file.path not in keep:
                file.path.unlink(missing_ok=True)
                self._forget(file.path)
        return self.nbytes <= limit

    def _least_recently_used(self) -> Iterator[StoredFile]:
        chunks, documents = list(self.chunks.values()), list(self.documents.values())
        return merge(chunks, documents, key=lambda file: file.used)

    def remove_left_behind(self) -> None:
        """Remove partial files of processes that are gone."""
        for file in list(self.partial):
            if _is_left_behind(file):
                with suppress(OSError):
                    file.path.unlink(missing_ok=True)
                    self.partial.remove(file)


def _by_use(files: list[StoredFile]) -> dict[Path, StoredFile]:
    return {file.path: file for file in sorted(files, key=lambda file: file.used)}


def _is_left_behind(file: StoredFile) -> bool:
    """Whether nobody writes this partial file any more: its name says which process did."""
    age, found = time.time() - file.used, re.search(r"(\d+)-\d+\.partial$", file.path.name)
    if age <= _LEFT_BEHIND or found is None:
        return False
    try:
        began = psutil.Process(int(found[1])).create_time()
    except (psutil.NoSuchProcess, OverflowError):
        return True
    except psutil.Error:  # somebody else's
        return age > _NOBODY_WRITES_SO_LONG
    return began > file.used + 1 or age > _NOBODY_WRITES_SO_LONG  # numbers of processes come again


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
        named = " ".join([self.name, *self.chunks]).encode("utf-8", "surrogatepass")  # file names that are no UTF-8
        content = sha256(named).hexdigest()
        return folder / self.model / "documents" / f"{content}.json"

    @property
    def text(self) -> str:
        """Its list, as JSON."""
        return json.dumps(asdict(self), indent=1)

    def write(self, folder: Path) -> None:
        """Write its list, whose own folder is there.

        Raises:
            OSError: the folder cannot be written to
        """
        replace_file(self.path(folder), lambda partial: partial.write_text(self.text, encoding="utf-8"))

    @classmethod
    def read(cls, path: Path) -> StoredDocument | None:
        """From its list; `None` if that is damaged."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            chunks = tuple(str(key) for key in found["chunks"])
            names = {name: str(found[name]) for name in ("document", "name", "model", "model_id")}
            document = cls(tokens=int(found["tokens"]), chunks=chunks, **names)
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
            return None
        digests = (document.model, *chunks)
        sound = 0 <= document.tokens < _MOST_TOKENS and all(re.fullmatch(_DIGEST, digest) for digest in digests)
        return document if sound else None
