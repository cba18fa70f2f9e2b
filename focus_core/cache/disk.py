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
from weakref import WeakKeyDictionary

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
from focus_core.cache.folder import FolderContent, StoredDocument, chunk_path, may_be_removed
from focus_core.cache.journal import Journal, Turn
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import Room
from focus_core.disk import store_folder
from focus_core.errors import ConfigError, shown, warn

TokensOf = Callable[[ChunkKey], Sequence[int]]  # the tokens of a chunk, opening included

Allocate = Callable[[ChunkHeader, int], ChunkBlock]  # a block for chunks like that of a header

Loading = tuple[ChunkRow, Future[bool]]  # where a chunk is loaded to, and whether its file could be used

_READERS = 4  # threads, at most
_SHARE = 0.5  # of the disk that is free without the store, where no limit is given
_BELIEVED = 2.0  # seconds for which the folder is not looked through again, if that is quick
_LOOKING = 0.05  # share of the time that looking through it may take
_LONGEST_JOURNAL = 2**16  # bytes
_LINE = 256  # bytes of one of its lines, at most
_HEADER = 2**11  # bytes that a file takes besides, at most
_NAMED_AT_MOST = 3  # files that a warning names


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
        self._look_again = time.monotonic() + _BELIEVED
        self._lock = Lock()
        self._journal = Journal(self.folder, longest=min(_LONGEST_JOURNAL, self.limit // 16))
        self._running: WeakKeyDictionary[object, frozenset[Path]] = WeakKeyDictionary()  # what questions use stays
        self._limit_is_given = limit is not None
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

    def begin(self, question: object, keys: Collection[ChunkKey]) -> None:
        """A question begins, or looks again.

        Args:
            question: as long as somebody holds it, its chunks are not evicted for others
        """
        if question not in self._running:
            if not self._stopped:
                self._said = None
            self._stopped = False
        with self._lock:
            self._running[question] = self._running.get(question, frozenset()).union(map(self.path, keys))

    def touch(self, question: object, keys: Collection[ChunkKey]) -> set[ChunkKey]:
        """Begin, and note that its chunks are used; returns those that are not there."""
        self.begin(question, keys)
        missing = {key for key in keys if not self._used(self.path(key))}
        if self._limit_is_given and self.nbytes > self.limit:
            self._keep_to_the_limit()
        return missing

    def _used(self, path: Path) -> bool:
        """Note that a file was used, if it is there; whether it is."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        except OSError:  # not ours to change
            return True
        with self._lock:
            self._content.used(path)
        return True

    def _keep_to_the_limit(self) -> None:
        """The folder may have been filled under a larger one."""
        with self._stopping_at_errors():
            self._require_folder()
            with self._journal.turn() as turn, self._lock:
                self._count(turn)
                within = self._content.shrink(self.limit, keep=self._kept())
            if not within:
                self._stop_writing(self._full)

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
        """How room for `nbytes` of files would be made. What lacks is not kept; the others give way all the same.

        Args:
            keep: chunks that are used now, and so are not removed
        """
        content = FolderContent(self.folder)
        removable = content.removable - sum(content.nbytes_of(self.path(key)) for key in set(keep))
        short = max(nbytes + content.nbytes - self.limit, 0)
        return Room(evict=min(short, removable), lacking=max(short - removable, 0))

    @contextmanager
    def trying(self, path: Path, nbytes: int) -> Iterator[bool]:
        """To write a file that is removed again at the end of the block; whether that may be."""
        with self._journal.turn() as turn:
            with self._lock:
                self._count(turn)
                fits = self._content.nbytes + nbytes <= self.limit
            if fits:
                self._make_parent(path)
            try:
                yield fits
            finally:
                if fits:
                    path.unlink(missing_ok=True)

    def _holds(self, key: ChunkKey, block: ChunkBlock) -> bool:
        """Whether there is a good file with all layers of the block already."""
        try:
            return key not in self._replaced and self._checked_header(key, block.tokens).layers >= block.layers
        except (FileNotFoundError, UnusableFile):
            return False

    def note(
        self, question: object, name: str, document: str, tokens: int, chunks: tuple[str, ...], model_id: str
    ) -> None:
        """Let `focusllm store ls` know a document of a question that has begun, by the keys of its chunks."""
        noted = StoredDocument(document, name, tokens, self.model, model_id, chunks)
        path = noted.path(self.folder)
        if self._stopped:
            return
        with self._lock:
            self._running[question] |= {path}
        with self._stopping_at_errors():
            if StoredDocument.read(path) != noted:
                self._add(path, len(noted.text), lambda: noted.write(self.folder))
                return
        self._used(path)

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
        with self._journal.turn() as turn:
            with self._lock:
                self._count(turn)
                fits = self._make_room(path, nbytes)
            if fits:
                self._make_parent(path)
                turn.writes(path.relative_to(self.folder).as_posix(), nbytes)
                write()
                with self._lock:
                    self._content.added(path, path.stat().st_size)
            else:
                self._stop_writing(self._full)
        return fits

    def _make_parent(self, path: Path) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(self.folder.resolve()):
            raise OSError(f"{path.parent} is a link to another folder")

    def _require_folder(self) -> None:
        if not self.folder.is_dir():  # making it anew could fill another disk than was meant
            raise FileNotFoundError("it is not there any more")

    def _count(self, turn: Turn) -> None:
        """Know what is in the folder, by what others say that they have written, and now and then by looking."""
        began, news = time.monotonic(), turn.news()
        if news is None or began > self._look_again:  # files of others come too, and `focusllm store prune` removes
            self._content = FolderContent(self.folder)
            now = time.monotonic()
            self._look_again = now + max(_BELIEVED, (now - began) / _LOOKING)
        else:
            for name, nbytes in news:
                if may_be_removed(name):  # whatever somebody has written into the journal
                    self._content.added(self.folder / name, nbytes)
        self._content.journal = turn.nbytes

    def _make_room(self, path: Path, nbytes: int) -> bool:
        """Remove what was not used for longest, until a file fits in the place of an older one; whether it does."""
        content = self._content
        more = nbytes - content.nbytes_of(path) + _LINE
        if content.nbytes + more <= self.limit:
            return True
        keep = self._kept()
        stays = content.nbytes - content.removable + sum(map(content.nbytes_of, keep))
        return stays + more <= self.limit and content.shrink(self.limit - more, keep=keep)

    def _kept(self) -> set[Path]:
        """Files of questions that run."""
        return {path for paths in self._running.values() for path in paths}

    @property
    def _full(self) -> str:
        foreign = self._content.foreign
        others = f", with {foreign:,} bytes of files of others," if foreign else ""
        return (
            f"is full: what is used now{others} takes more than its limit of {self.limit:,} bytes. "
            "Raise store_limit, or name another folder"
        )

    @contextmanager
    def _stopping_at_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            self._stop_writing(f"cannot be written to: {error.strerror or error}{where}")

    def _stop_writing(self, reason: str) -> None:
        self._stopped = True
        if reason != self._said:
            self._said = reason
            warn(f"The store {str(self.folder)!r} {reason}. Answers come all the same; what is read now is not kept.")

    def _default_limit(self) -> int:
        return int((shutil.disk_usage(self.folder).free + self._content.nbytes) * _SHARE)
