"""The chunks that one request needs: found in memory, loaded a file at a time, or prefilled a pass at a time."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from focus_core import device as machine
from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkSet
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import Room, plan_tiers
from focus_core.cache.store import Tier
from focus_core.cache.tiers import ChunkStore
from focus_core.methods.base import Method
from focus_core.progress import Reading
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenIds

_CHUNKS_PER_BLOCK = 32  # kept and evicted together


class ChunkPrefill:
    """Collects the keys and values of chunks, for one request or for several that are made together.

    Args:
        device: of the model
        store: where they are looked for and kept
        tiers: memory of all engines of the model, which evict chunks when it is short
        appended_tokens: of a question, for which memory is required too
    """

    def __init__(
        self,
        device: torch.device,
        method: Method,
        chunks: Sequence[Chunk],
        *,
        store: ChunkStore,
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
        self._stored: dict[ChunkKey, ChunkHeader] = {}  # what the folder holds of the missing ones
        self._passes: Iterator[Mapping[ChunkKey, ChunkRow]] | None = None
        self._prefilled_tokens = 0
        self._first_missing = 0
        self._found: set[ChunkKey] = set()  # where nothing has to be read
        self._began = 0.0

    # --- progress -----------------------------------------------------------------------------------------------------

    @property
    def complete(self) -> bool:
        return len(self.rows) == len(self.wanted)

    @property
    def progress(self) -> tuple[int, int]:
        """Chunks prefilled or loaded since `begin`, and in all."""
        missing = len(self.wanted) - len(self.rows)
        return self._first_missing - missing, self._first_missing

    @property
    def reading(self) -> Reading:
        """How far it is, for whoever wants to know more than `progress`."""
        read = len(self.rows.keys() - self._found)
        return Reading(len(self.wanted), len(self._found), read, time.perf_counter() - self._began)

    @property
    def chunk_set(self) -> ChunkSet:
        """All chunks, once they are there."""
        return ChunkSet.of([self.rows[chunk.key] for chunk in self.chunks])

    def chunks_read(self) -> ChunkSet:
        """`chunk_set`, for those who call for it later."""
        return self.chunk_set

    @property
    def missing_bytes(self) -> int:
        """Bytes of keys and values that are not there yet; those of a running block count to its end.

        On a CPU memory is taken when it is written, not before.
        """
        missing = self._missing_tokens
        return self.method.chunk_bytes(len(missing), sum(missing))

    @property
    def _missing_tokens(self) -> list[int]:
        """Tokens of each chunk that is not there yet, or whose block is not."""
        return [len(chunk) for key, chunk in self.wanted.items() if key not in self.rows or key in self.block]

    # --- work ---------------------------------------------------------------------------------------------------------

    def begin(self, others: int = 0) -> None:
        """Look into the store, and begin if there is memory for everything that is not there.

        Args:
            others: bytes that others are about to take; while there are not enough for both, this one waits

        Raises:
            OutOfMemoryError: before any work, with both numbers
        """
        layers = self.method.cached_layers
        self.rows |= self._store.rows(self.wanted, self._tokens_of, layers=layers)
        in_use = {block for block, _ in self.rows.values()}
        plan = plan_tiers(
            {key: self.method.chunk_bytes(1, len(chunk)) for key, chunk in self.wanted.items()},
            memory=self.rows,
            besides=self._appended_tokens * self.method.bytes_per_token,
            others=others,
            free=machine.free_memory(self._device),
            evictable=sum(tier.evictable(in_use) for tier in self._tiers),
        )
        self.begun = plan.room == Room()
        if not self.begun:
            self._evict(plan.room.evict, in_use)  # less memory is free than when the budget was set
            tokens = sum(self._missing_tokens) + self._appended_tokens
            machine.require_memory(plan.needed, self._device, what=f"{tokens} tokens")
            self.begun = not machine.lacking_memory(plan.needed + others, self._device)
        if self.begun:
            self._stored = self._store.stored(plan.missing, self._tokens_of, layers=layers)
            self._warn_once_loaded()
            self._found, self._began = {*self.rows, *self._stored}, time.perf_counter()
        self._first_missing = len(self.wanted) - len(self.rows)

    def find(self, rows: Mapping[ChunkKey, ChunkRow]) -> bool:
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

    def step(self, elsewhere: set[ChunkKey]) -> Mapping[ChunkKey, ChunkRow]:
        """One pass of the model, or one file of the store: the chunks that are there with it."""
        rows = next(self._passes, None) if self._passes is not None else None
        if rows is None:  # nothing has begun, or a file at the end of a block could not be used
            self._passes = self._next_block(self.missing(elsewhere))
            rows = next(self._passes)
        self.rows |= rows
        if all(key in self.rows for key in self.block):
            self.abandon()
        return rows

    def load_stored(self) -> None:
        """Load everything that the folder holds, and prefill nothing."""
        while stored := [key for key in self.missing(set()) if key in self._stored]:
            for rows in self._load(stored):
                self.rows |= rows

    def take_prefilled_tokens(self) -> int:
        """Tokens that were prefilled here, for the usage of the first request that asks; 0 for others."""
        taken, self._prefilled_tokens = self._prefilled_tokens, 0
        return taken

    def abandon(self) -> None:
        """End the passes of a block, finished or not; what they have read is kept."""
        self._store.keep({key: self.rows[key] for key in self.block if key in self.rows})
        self.block, self._passes = [], None

    def _next_block(self, missing: Sequence[ChunkKey]) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        stored = [key for key in missing if key in self._stored]
        self.block = list(stored or missing)[:_CHUNKS_PER_BLOCK]
        return self._load(self.block) if stored else self._prefill(self.block)

    def _prefill(self, keys: Sequence[ChunkKey]) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        for of_pass in self.method.prefill([self.wanted[key] for key in keys]):
            rows = {keys[index]: row for index, row in of_pass.items()}
            self._prefilled_tokens += sum(len(self.wanted[key].token_ids) for key in rows)
            self._store.save(rows, self._tokens_of)
            yield rows

    def _load(self, keys: Sequence[ChunkKey]) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Chunks of the store; those that cannot be used are left for `_prefill`."""
        found = {key: self._stored[key] for key in keys}
        for key, rows in zip(keys, self._store.load(found, self._tokens_of, self._device), strict=True):
            del self._stored[key]
            if not rows:
                self._found.discard(key)
            self._warn_once_loaded()
            yield rows

    def _warn_once_loaded(self) -> None:
        if not self._stored:
            self._store.warn_of_unusable()

    def _tokens_of(self, key: ChunkKey) -> TokenIds:
        return self.wanted[key].row

    def _evict(self, nbytes: int, in_use: Collection[ChunkBlock]) -> None:
        for tier in self._tiers:
            if nbytes > 0:
                nbytes -= tier.drop(nbytes, in_use)
