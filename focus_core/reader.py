"""Chunks by way of the store: what has been read before is found, the rest is read and kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from focus_core.chunk_cache import ChunkBlock, ChunkCache
from focus_core.chunking import TokenIds
from focus_core.model import FocusModel
from focus_core.progress import Report
from focus_core.registry import SharedModel
from focus_core.store import ChunkKey, ChunkRow, chunk_key

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

    def read(self, chunks: Sequence[TokenIds], report: Report) -> Reading:
        """All chunks, in order; a chunk that occurs twice is read once.

        Raises:
            OutOfMemoryError: before any work, if what is missing does not fit
        """
        keys = [chunk_key(self._shared.identity, chunk) for chunk in chunks]
        found = {key: self._shared.store.get(key) for key in keys}
        rows: dict[ChunkKey, ChunkRow] = {key: row for key, row in found.items() if row is not None}
        missing = {key: chunk for key, chunk in zip(keys, chunks, strict=True) if key not in rows}
        lengths = [len(chunk) for chunk in missing.values()]
        # What is kept for later gives way: other programs may have taken memory since the store got its budget.
        self._shared.store.release(self._focus.lacking_memory_for(lengths))
        self._focus.require_memory_for(lengths)
        unread = list(missing)
        for start in range(0, len(unread), _CHUNKS_PER_BLOCK):
            block = unread[start : start + _CHUNKS_PER_BLOCK]
            rows |= self._read_block({key: missing[key] for key in block}, report, start, len(unread))
        return Reading(
            cache=ChunkCache.from_rows([rows[key] for key in keys]),
            tokens=sum(map(self._text_tokens, chunks)),
            tokens_read=sum(map(self._text_tokens, missing.values())),
        )

    def _read_block(
        self, chunks: dict[ChunkKey, TokenIds], report: Report, before: int, total: int
    ) -> dict[ChunkKey, ChunkRow]:
        tokens = [torch.tensor(chunk) for chunk in chunks.values()]
        with self._shared.turn:
            cache = self._focus.prefill(tokens, progress=lambda done, _: report(before + done, total))
        rows = dict(zip(chunks, cache.rows(), strict=True))
        keys_of: dict[ChunkBlock, list[ChunkKey]] = {}
        for key, (block, _) in rows.items():
            keys_of.setdefault(block, []).append(key)
        for block, keys in keys_of.items():
            self._shared.store.put(keys, block)
        return rows

    def _text_tokens(self, chunk: TokenIds) -> int:
        return len(chunk) - (self._bos is not None and chunk[0] == self._bos)
