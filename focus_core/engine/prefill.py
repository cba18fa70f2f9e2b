"""Chunks by way of the store: what has been read before is found, the rest is read and kept."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from focus_core.cache.chunks import ChunkBlock, ChunkCache, ChunkRow
from focus_core.text.chunking import TokenIds
from focus_core.methods.focus import FocusModel
from focus_core.progress import Report
from focus_core.engine.shared import SharedModel
from focus_core.cache.store import ChunkKey, chunk_key

_CHUNKS_PER_BLOCK = 32  # read, kept and dropped together; whoever stops in between loses at most so many


@dataclass(frozen=True)
class Reading:
    """Chunks that are ready for a question.

    Attributes:
        tokens: tokens of all chunks, without BOS
        tokens_read: those of them that the store did not have
    """

    cache: ChunkCache
    tokens: int
    tokens_read: int


class ChunkReader:
    """Reads chunks for the engines of one model."""

    def __init__(self, focus: FocusModel, shared: SharedModel, bos: int | None) -> None:
        self._focus = focus
        self._shared = shared
        self._bos = bos

    def read(self, chunks: Sequence[TokenIds], report: Report, *, behind: int = 0) -> Reading:
        """All chunks, in order; a chunk that occurs twice is read once.

        Args:
            behind: how many tokens of questions and answers each chunk must have room for

        Raises:
            OutOfMemoryError: before any work, if what is missing does not fit
        """
        keys = [chunk_key(self._shared.key, chunk) for chunk in chunks]
        wanted = dict(zip(keys, chunks, strict=True))
        rows = self._stored(wanted)
        missing: list[ChunkKey] = []
        if len(rows) == len(wanted):
            self._make_room([], rows, behind * len(chunks))
        else:
            with self._shared.reading:
                rows = self._stored(wanted)  # whoever read before us may have read the same
                missing = [key for key in wanted if key not in rows]
                self._make_room([wanted[key] for key in missing], rows, behind * len(chunks))
                for start in range(0, len(missing), _CHUNKS_PER_BLOCK):
                    block = missing[start : start + _CHUNKS_PER_BLOCK]
                    rows |= self._read_block({key: wanted[key] for key in block}, report, start, len(missing))
        return Reading(
            cache=ChunkCache.from_rows([rows[key] for key in keys]),
            tokens=sum(map(self._text_tokens, chunks)),
            tokens_read=sum(self._text_tokens(wanted[key]) for key in missing),
        )

    def room_behind(self, chunks: Sequence[TokenIds]) -> int:
        """For how many tokens of questions and answers there is memory, once the chunks have been read."""
        wanted = {chunk_key(self._shared.key, chunk): len(chunk) for chunk in chunks}
        known = self._stored(wanted)
        return self._focus.free_tokens - sum(length for key, length in wanted.items() if key not in known)

    def _stored(self, keys: Iterable[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        found = {key: self._shared.store.get(key) for key in keys}
        return {key: row for key, row in found.items() if row is not None}

    def _make_room(self, chunks: Sequence[TokenIds], rows: dict[ChunkKey, ChunkRow], behind: int) -> None:
        """What is kept for later gives way: other programs may have taken memory since the store got its budget."""
        lengths = [*map(len, chunks), behind]
        self._shared.store.release(self._focus.lacking_memory_for(lengths), keep={block for block, _ in rows.values()})
        self._focus.require_memory_for(lengths)

    def _read_block(
        self, chunks: dict[ChunkKey, TokenIds], report: Report, before: int, total: int
    ) -> dict[ChunkKey, ChunkRow]:
        with self._shared.one_pass() as turn:

            def progress(done: int, _: int) -> None:
                with turn.paused():  # between two passes; whoever gets the report may take long, or ask something
                    report(before + done, total)

            cache = self._focus.prefill([torch.tensor(chunk) for chunk in chunks.values()], progress=progress)
        rows = dict(zip(chunks, cache.rows(), strict=True))
        keys_of: dict[ChunkBlock, list[ChunkKey]] = {}
        for key, (block, _) in rows.items():
            keys_of.setdefault(block, []).append(key)
        for block, keys in keys_of.items():
            self._shared.store.put(keys, block)
        return rows

    def _text_tokens(self, chunk: TokenIds) -> int:
        return len(chunk) - (self._bos is not None and chunk[0] == self._bos)
