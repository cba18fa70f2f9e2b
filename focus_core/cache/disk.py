"""Prefilled chunks in a folder, where the next process finds them again.

A chunk's keys and values depend on nothing but its tokens and the model, so a file serves every document and question
with that chunk. Whatever is wrong with a file or with the folder, the chunk is read anew, and a warning says why.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Lock

import torch

from focus_core.cache.chunk_file import (
    ChunkHeader,
    StateShape,
    UnusableFile,
    check_identity,
    check_states,
    read_chunk_into,
    read_header,
    write_chunk,
)
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.folder import FolderContent, StoredDocument, chunk_path
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import Room, room_for
from focus_core.cache.writers import Writers
from focus_core.disk import store_folder
from focus_core.errors import ConfigError, shown, warn

TokensOf = Callable[[ChunkKey], Sequence[int]]  # the tokens of a chunk, opening included

Allocate = Callable[[ChunkHeader, int], ChunkBlock]  # a block for chunks like that of a header

Loading = tuple[ChunkRow, Future[bool]]  # where a chunk is loaded to, and whether its file could be used

_READERS = 4  # threads, at most
_SHARE = 0.5  # of the disk that is free without the store, where no limit is given
_BELIEVED = 2.0  # seconds for which the folder is not looked through again
_HEADER = 2**11  # bytes that a file takes besides, at most
_NAMED_AT_MOST = 3  # files that a warning names
_CLOCK = 0.02  # seconds by which the time of a file may lie behind the clock


def readers() -> int:
    """Threads that read files: more than a few don't read faster."""
    return min(torch.get_num_threads(), _READERS)


def file_bytes(states: int, tokens: int) -> int:
    """Bytes of a chunk's file, at most.

    Args:
        states: bytes of its keys and values
    """
    return states + 8 * tokens + _HEADER


class DiskTier:
    """The files of one model in a folder, which any number of models and processes may share.

    Args:
        folder: made if it is not there
        model: the model's key (`fingerprint.model_key`)
        states: what keys and values of the model look like
        software: what computed the keys and values, with its version; what another one has computed is read anew
        limit: bytes of everything in the folder; by default half of the disk that is free without the folder. What was
            not used for longest gives way, before the first question already where the folder has more than a limit
            that was given; files of others are counted and never touched

    Raises:
        ConfigError: the folder cannot be made or read; an impossible limit
    """

    def __init__(
        self, folder: str | Path, model: str, *, states: StateShape, software: str, limit: int | None = None
    ) -> None:
        if limit is not None and (type(limit) is not int or limit < 0):
            raise ConfigError(f"store_limit={limit!r}: must be a whole number of bytes, 0 or more.")
        self.folder, self.model = store_folder(folder), model
        self._states = states
        self._identity = {"model": model, "software": software}
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # it holds the texts of documents
            self._content = FolderContent(self.folder)
            self.limit = self._default_limit() if limit is None else limit
        except (OSError, ValueError) as error:  # a name with a zero byte
            reason = (error.strerror if isinstance(error, OSError) else None) or error
            raise ConfigError(f"store={shown(str(folder))}: {reason}. Name another folder.") from error
        self._content.remove_left_behind()
        self._looked = time.monotonic()
        self._lock = Lock()
        self._writers = Writers(self.folder)
        self._begun = time.time()  # when the last question began: what it uses stays
        self._to_shrink = limit is not None
        self._stopped = False  # nothing is written for the question that runs
        self._said: str | None = None  # why not, so that it is said once
        self._unusable: list[tuple[Path, str]] = []  # not warned of yet
        self._replaced: set[ChunkKey] = set()  # chunks whose files cannot be used

    def __repr__(self) -> str:
        return f"<DiskTier {str(self.folder)!r}: {self.nbytes / 2**20:.1f} of {self.limit / 2**20:.1f} MiB>"

    @property
    def nbytes(self) -> int:
        """Bytes of everything in the folder, when it was last looked through."""
        return self._content.nbytes

    # --- reading ------------------------------------------------------------------------------------------------------

    def find(self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int) -> dict[ChunkKey, ChunkHeader]:
        """Which of these chunks are there with at least so many layers, by the headers of their files."""
        headers = {key: self._header(key, len(tokens_of(key))) for key in keys}
        return {key: header for key, header in headers.items() if header is not None and header.layers >= layers}

    def look(self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int) -> dict[ChunkKey, ChunkHeader]:
        """Like `find`, and files that cannot be used are not noted."""
        found = {}
        for key in keys:
            with suppress(FileNotFoundError, UnusableFile):
                header = self._checked_header(key, len(tokens_of(key)))
                if key not in self._replaced and header.layers >= layers:
                    found[key] = header
        return found

    def load(
        self, found: Mapping[ChunkKey, ChunkHeader], tokens_of: TokensOf, allocate: Allocate
    ) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Keys and values of chunks that `find` has found, one file per item; empty for one that cannot be used.

        Files are read by several threads, ahead of use.

        Args:
            allocate: makes the blocks that they are loaded into
        """
        kinds = [(header.shape, header.dtype, header.kv_dtype) for header in found.values()]
        of_kind, next_row = dict(zip(kinds, found.values(), strict=True)), dict.fromkeys(kinds, 0)
        blocks = {kind: allocate(header, kinds.count(kind)) for kind, header in of_kind.items()}
        pool, waiting = ThreadPoolExecutor(readers(), thread_name_prefix="store"), dict[ChunkKey, Loading]()
        try:
            for (key, header), kind in zip(found.items(), kinds, strict=True):
                block, row = blocks[kind], next_row[kind]
                next_row[kind] += 1
                loading = pool.submit(self._load_into, block, row, key, header, tokens_of(key))
                waiting[key] = (block, row), loading
            for key, (place, loading) in waiting.items():
                yield {key: place} if loading.result() else {}
        finally:
            pool.shutdown(cancel_futures=True)

    def begin(self, keys: Collection[ChunkKey]) -> set[ChunkKey]:
        """A question begins: note that its chunks were used. They stay in the folder until the next one begins.

        Returns:
            those that are not there
        """
        self._begun, self._stopped = time.time() - _CLOCK, False
        missing = set()
        for key in keys:
            try:
                os.utime(self.path(key))
            except FileNotFoundError:
                missing.add(key)
            except OSError:  # not ours to change
                continue
        if self._to_shrink and self.nbytes > self.limit:
            with self._stopping_at_errors():
                self._require_folder()
                with self._writers.held():
                    self._make_room(0)
        self._to_shrink = False
        return missing

    def warn_of_unusable(self) -> None:
        """One warning for all files that could not be used since the last time."""
        with self._lock:
            unusable, self._unusable = self._unusable, []
        if unusable:
            named = "; ".join(f"{path}: {reason}" for path, reason in unusable[:_NAMED_AT_MOST])
            more = f"; and {len(unusable) - _NAMED_AT_MOST} more" if len(unusable) > _NAMED_AT_MOST else ""
            chunks = "1 stored chunk" if len(unusable) == 1 else f"{len(unusable)} stored chunks"
            warn(f"{chunks} cannot be used and will be read anew: {named}{more}.")

    def path(self, key: ChunkKey) -> Path:
        """Where a chunk's file is, or would be."""
        return chunk_path(self.folder, self.model, key)

    def _header(self, key: ChunkKey, tokens: int) -> ChunkHeader | None:
        try:
            return self._checked_header(key, tokens)
        except FileNotFoundError:
            return None
        except UnusableFile as error:
            self._note_unusable(key, error)
            return None

    def _checked_header(self, key: ChunkKey, tokens: int) -> ChunkHeader:
        header = read_header(self.path(key))
        check_identity(header, self._identity)
        check_states(header, self._states)
        if header.tokens != tokens:
            raise UnusableFile(f"it holds {header.tokens:,} tokens, not {tokens:,}")
        return header

    def _load_into(
        self, block: ChunkBlock, row: int, key: ChunkKey, header: ChunkHeader, token_ids: Sequence[int]
    ) -> bool:
        direct = block.keys.device.type == "cpu"
        read, place = (block, row) if direct else (header.block(1, torch.device("cpu")), 0)
        try:
            if read_chunk_into(self.path(key), header, read, place) != list(token_ids):
                raise UnusableFile("it holds other tokens")
        except FileNotFoundError:  # removed by another process
            return False
        except UnusableFile as error:
            self._note_unusable(key, error)
            return False
        if not direct:
            for name, tensor in block.tensors.items():
                tensor[:, row] = read.tensors[name][:, place]
        return True

    def _note_unusable(self, key: ChunkKey, error: UnusableFile) -> None:
        with self._lock:
            if key not in self._replaced:  # one that cannot be replaced was named before
                self._unusable.append((self.path(key), str(error)))
            self._replaced.add(key)

    # --- writing ------------------------------------------------------------------------------------------------------

    def save(self, rows: Mapping[ChunkKey, ChunkRow], tokens_of: TokensOf) -> None:
        """Write chunks, one after the other, so that no more than one is in memory twice.

        If that fails, a warning says why, and nothing is written until the next question begins.
        """
        for key, (block, row) in rows.items():
            if self._stopped:
                return
            if not self._holds(key, block):
                with self._stopping_at_errors():
                    self._write(key, block, row, tokens_of(key))

    @property
    def writes(self) -> bool:
        """Whether chunks are written; not after an error, until the next question tries again."""
        return not self._stopped

    def room_for(self, nbytes: int, keep: Collection[ChunkKey] = ()) -> Room:
        """How room for `nbytes` of files would be made.

        Args:
            keep: chunks that are used now, and so are not removed
        """
        content, kept = FolderContent(self.folder), {self.path(key) for key in keep}
        removable = content.removable - sum(content.chunks[path].nbytes for path in kept if path in content.chunks)
        return room_for(nbytes, free=self.limit - content.nbytes, evictable=removable)

    def _holds(self, key: ChunkKey, block: ChunkBlock) -> bool:
        """Whether there is a good file with all layers of the block already."""
        try:
            return key not in self._replaced and self._checked_header(key, block.tokens).layers >= block.layers
        except (FileNotFoundError, UnusableFile):
            return False

    def note(self, name: str, document: str, tokens: int, chunks: tuple[str, ...], model_id: str) -> None:
        """Let `focusllm store ls` know a document, by the keys of its chunks, and that it was used."""
        noted = StoredDocument(document, name, tokens, self.model, model_id, chunks)
        path = noted.path(self.folder)
        if self._stopped:
            return
        with self._stopping_at_errors():
            if StoredDocument.read(path) != noted:
                self._add(path, len(noted.text), lambda: noted.write(self.folder))
                return
        with suppress(OSError):  # not ours to change
            os.utime(path)

    def _write(self, key: ChunkKey, block: ChunkBlock, row: int, token_ids: Sequence[int]) -> None:
        path, nbytes = self.path(key), file_bytes(block.nbytes // block.chunks, len(token_ids))

        def write() -> None:
            chunk = {name: tensor[:, row].cpu().contiguous() for name, tensor in block.tensors.items()}
            write_chunk(path, chunk, token_ids, self._identity)

        if self._add(path, nbytes, write):
            with self._lock:
                self._replaced.discard(key)

    def _add(self, path: Path, nbytes: int, write: Callable[[], None]) -> bool:
        """Write a file of at most so many bytes, once there is room; whether there was."""
        self._require_folder()
        with self._writers.held():
            if not self._make_room(nbytes):
                foreign = self._content.foreign
                self._stop_writing(
                    f"is full: what this question uses and {foreign:,} bytes of files of others take more than its "
                    f"limit of {self.limit:,} bytes. Raise store_limit, or name another folder"
                )
                return False
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not path.parent.resolve().is_relative_to(self.folder.resolve()):
                raise OSError(f"{path.parent} is a link to another folder")
            self._writers.mark()
            write()
            with self._lock:
                self._content.added(path, path.stat().st_size)
        self._said = None
        return True

    def _require_folder(self) -> None:
        if not self.folder.is_dir():  # making it anew could fill another disk than was meant
            raise FileNotFoundError("it is not there any more")

    def _make_room(self, nbytes: int) -> bool:
        """Remove what was not used for longest, until there is room; whether there is. The lock is held."""
        with self._lock:
            overdue = time.monotonic() - self._looked > _BELIEVED  # files of others, and `focusllm store prune`
            if overdue or not self._writers.alone or self._content.nbytes + nbytes > self.limit:
                self._content, self._looked = FolderContent(self.folder), time.monotonic()
            return self._content.shrink(self.limit - nbytes, used_before=self._begun)

    @contextmanager
    def _stopping_at_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            self._stop_writing(f"cannot be written to: {error.strerror or error}")

    def _stop_writing(self, reason: str) -> None:
        self._stopped = True
        if reason != self._said:
            self._said = reason
            warn(f"The store {str(self.folder)!r} {reason}. Answers come all the same; what is read now is not kept.")

    def _default_limit(self) -> int:
        return int((shutil.disk_usage(self.folder).free + self._content.nbytes) * _SHARE)
