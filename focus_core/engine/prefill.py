"""The chunks that one request needs: found in the store, or prefilled a pass at a time."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkSet
from focus_core.cache.store import ChunkKey, Tier
from focus_core.device import lacking_memory, require_memory
from focus_core.methods.base import Method, Prefilling
from focus_core.text.chunking import Chunk

_CHUNKS_PER_BLOCK = 32  # prefilled, kept and evicted together; an interrupt loses at most these


class ChunkPrefill:
    """Collects the keys and values of chunks, for one request or for several that are made together.

    Args:
        device: of the model
        store: where they are looked for and kept
        tiers: stores of all engines of the model, which evict chunks when the memory is short
        appended_tokens: of a question, for which memory is required too
    """

    def __init__(
        self,
        device: torch.device,
        method: Method,
        chunks: Sequence[Chunk],
        *,
        store: Tier,
        tiers: Sequence[Tier],
        appended_tokens: int = 0,
    ) -> None:
        self.chunks = chunks
        self.method = method
        self.wanted = {chunk.key: chunk for chunk in chunks}  # a chunk that occurs twice is read once
        self.rows: dict[ChunkKey, ChunkRow] = {}
        self.block: list[ChunkKey] = []  # the chunks whose passes are running
        self.begun = False
        self._device, self._store, self._tiers = device, store, tiers
        self._appended_tokens = appended_tokens
        self._passes: Prefilling | None = None
        self._in_block = self._prefilled_tokens = 0
        self._first_missing = 0

    # --- progress -----------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.wanted)

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks prefilled since `begin`, and in all."""
        missing = len(self.wanted) - len(self.rows)
        return self._first_missing - missing + self._in_block, self._first_missing

    @property
    def chunk_set(self) -> ChunkSet:
        """All chunks, once they are there."""
        return ChunkSet.of([self.rows[chunk.key] for chunk in self.chunks])

    @property
    def missing_bytes(self) -> int:
        """Bytes of keys and values that are not there yet; on a CPU memory is taken when it is written, not before."""
        missing = (chunk for key, chunk in self.wanted.items() if key not in self.rows)
        return sum(map(len, missing)) * self.method.bytes_per_token

    # --- work ---------------------------------------------------------------------------------------------------------

    def begin(self, others: int = 0) -> None:
        """Look into the store, and begin if there is memory for everything that is not there.

        Args:
            others: bytes that others are about to take; while there are not enough for both, this one waits

        Raises:
            OutOfMemoryError: before any work, with both numbers
        """
        for key in self.wanted:
            row = self._store.get(key)
            if row is not None and row[0].layers >= self.method.cached_layers:
                self.rows[key] = row
        nbytes = self.missing_bytes + self._appended_tokens * self.method.bytes_per_token
        lacking = lacking_memory(nbytes + others, self._device)
        if lacking:
            self._evict(lacking)
            require_memory(nbytes, self._device, what=f"{nbytes // self.method.bytes_per_token} tokens")
            lacking = lacking_memory(nbytes + others, self._device)
        self.begun = not lacking
        self._first_missing = len(self.wanted) - len(self.rows)

    def find(self, rows: dict[ChunkKey, ChunkRow]) -> bool:
        """Take chunks that were prefilled for another request; whether any of them is wanted here."""
        wanted = [
            key
            for key, (block, _) in rows.items()
            if key in self.wanted and key not in self.rows and block.layers >= self.method.cached_layers
        ]
        self.rows |= {key: rows[key] for key in wanted}
        return bool(wanted)

    def missing(self, elsewhere: set[ChunkKey]) -> list[ChunkKey]:
        """Chunks that are neither here nor being prefilled `elsewhere`."""
        return [key for key in self.wanted if key not in self.rows and key not in elsewhere]

    def step(self, elsewhere: set[ChunkKey]) -> dict[ChunkKey, ChunkRow]:
        """One pass of the model; the rows of a block once it is complete."""
        if self._passes is None:
            self.block = self.missing(elsewhere)[:_CHUNKS_PER_BLOCK]
            self._passes = self.method.prefill([self.wanted[key] for key in self.block])
        try:
            self._in_block = next(self._passes)
            if self._in_block < len(self.block):
                return {}
            next(self._passes)  # ends, and gives the rows
        except StopIteration as finished:
            return self._finish(finished.value)
        raise RuntimeError(f"{self.method.name}.prefill goes on after its last chunk.")

    def take_prefilled_tokens(self) -> int:
        """Tokens that were prefilled here, for the usage of the first request that asks; 0 for others."""
        taken, self._prefilled_tokens = self._prefilled_tokens, 0
        return taken

    def abandon(self) -> None:
        """Forget the passes of an unfinished block."""
        self.block, self._passes, self._in_block = [], None, 0

    def _finish(self, rows: list[ChunkRow]) -> dict[ChunkKey, ChunkRow]:
        finished = dict(zip(self.block, rows, strict=True))
        self.rows |= finished
        self._prefilled_tokens += sum(len(self.wanted[key].token_ids) for key in finished)
        self.abandon()
        keys_of: dict[ChunkBlock, list[ChunkKey]] = {}
        for key, (block, _) in finished.items():
            keys_of.setdefault(block, []).append(key)
        for block, keys in keys_of.items():
            self._store.put(keys, block)
        return finished

    def _evict(self, nbytes: int) -> None:
        """Evict stored chunks if less memory is free than when the budget was set."""
        in_use = {block for block, _ in self.rows.values()}
        if sum(tier.evictable(in_use) for tier in self._tiers) < nbytes:
            return  # evicting everything would not be enough
        for tier in self._tiers:
            if nbytes > 0:
                nbytes -= tier.drop(nbytes, in_use)
