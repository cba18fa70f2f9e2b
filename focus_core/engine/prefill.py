"""The chunks that one request needs: found in memory, loaded a file at a time, or prefilled a pass at a time.

Where there is no room for all of them on the device, the others stay in host memory: they are prefilled on the device a
few at a time, and moved.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch

from focus_core import device as machine
from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkSet
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import Room, TierPlan
from focus_core.cache.store import Reservation
from focus_core.cache.tiers import Rows
from focus_core.engine.memory_plan import Memories, blocks_of, group_bytes, group_of, largest_layer
from focus_core.methods.base import Method
from focus_core.progress import Reading
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenIds

_CHUNKS_PER_BLOCK = 32  # kept and evicted together


class ChunkPrefill:
    """Collects the keys and values of chunks, for one request or for several that are made together.

    Args:
        memories: with the store in which they are looked for and kept
        appended_tokens: of a question, for which memory is required too
    """

    def __init__(
        self,
        memories: Memories,
        method: Method,
        chunks: Sequence[Chunk],
        *,
        appended_tokens: int = 0,
    ) -> None:
        self.chunks = chunks
        self.method = method
        self.wanted = {chunk.key: chunk for chunk in chunks}  # a chunk that occurs twice is read once
        self.rows: Rows = {}
        self.block: list[ChunkKey] = []  # the chunks whose passes are running
        self.begun = False
        self.waited_beside: tuple[int, frozenset[int]] | None = None  # what others held when it last had to wait
        self._memories, self._store, self._device = memories, memories.store, memories.device
        self._appended_tokens = appended_tokens
        self._sizes = {key: method.chunk_bytes(1, len(chunk)) for key, chunk in self.wanted.items()}
        self._stored: dict[ChunkKey, ChunkHeader] = {}  # what the folder holds of the missing ones
        self._raised: Rows = {}  # what host memory holds of those that the device takes
        self._streamed: frozenset[ChunkKey] = frozenset()  # those that stay in host memory
        self._reservation: Reservation | None = None
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
        """Bytes of keys and values that the device will still take; those of a running block count to its end.

        On a CPU memory is taken when it is written, not before.
        """
        missing = [key for key in self.wanted if key not in self.rows or key in self.block]
        group = group_bytes([self._sizes[key] for key in missing if key in self._streamed])
        return sum(self._sizes[key] for key in missing if key not in self._streamed) + group

    # --- work ---------------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> set[ChunkBlock]:
        """The blocks that it holds, on the device and in host memory."""
        return blocks_of(self.rows) | blocks_of(self._raised)

    def begin(self, others: int = 0, busy: Collection[ChunkBlock] = ()) -> None:
        """Look into the store, and begin if there is memory for everything that is not there.

        Args:
            others: bytes that others are about to take; while there are not enough for both, this one waits
            busy: blocks that others hold until they end; while bytes lack because of them, this one waits

        Raises:
            OutOfMemoryError: before any work, with both numbers
        """
        in_host = self._look()
        plan = self._plan(in_host, others, busy)
        if plan.lacking and self._move_down(plan, busy):
            in_host = self._look()
            plan = self._plan(in_host, others, busy)
        keep = {*blocks_of(self.rows), *blocks_of(in_host), *busy}
        if plan.room.evict:  # less memory is free than when the budget was set
            self._memories.evict(plan.room.evict, keep)
            plan = self._plan(in_host, others, busy, evicting=False)
        if plan.streamed and plan.host_room.evict:
            self._memories.evict_from_host(plan.host_room.evict, keep)
            plan = self._plan(in_host, others, busy, evicting=False, host_evicting=False)
        if plan.lacking and not ((others or busy) and self._fits_alone(in_host, busy)):
            tokens = sum(len(self.wanted[key]) for key in (*plan.missing, *plan.raised)) + self._appended_tokens
            raise self._memories.lack(plan, what=f"{tokens} tokens")
        self.begun = plan.room == Room() and self._reserve(plan)
        if self.begun:
            self._start(plan, in_host)
        else:
            self.rows = {}  # two that wait would wait for each other's
        self._first_missing = len(self.wanted) - len(self.rows)

    def _look(self) -> Rows:
        """Take the chunks that lie on the device, and return others that lie in host memory."""
        found, in_host = self._store.rows(self, self.wanted, self._tokens_of, layers=self.method.cached_layers)
        self.rows |= found
        return {key: row for key, row in in_host.items() if key not in self.rows}

    def _fits_alone(self, in_host: Rows, busy: Collection[ChunkBlock]) -> bool:
        """Whether no bytes lack once the others have ended."""
        host = self._store.host
        plan = self._memories.plan_moved(
            self.method,
            self._sizes,
            {**self.rows, **in_host},
            disk=(),
            appended_tokens=self._appended_tokens,
            ended=busy,
            reserved=0 if host is None else host.reserved,
        )
        return not plan.lacking

    def _plan(
        self,
        in_host: Rows,
        others: int,
        busy: Collection[ChunkBlock],
        *,
        evicting: bool = True,
        host_evicting: bool = True,
    ) -> TierPlan:
        return self._memories.plan(
            self.method,
            self._sizes,
            held=self.rows,
            in_host=in_host,
            appended_tokens=self._appended_tokens,
            others=others,
            busy=busy,
            evicting=evicting,
            host_evicting=host_evicting,
        )

    def _move_down(self, plan: TierPlan, busy: Collection[ChunkBlock]) -> bool:
        """Move the chunks of this request to host memory, if they leave no bytes for its question; whether any did."""
        short = plan.least - self._memories.free
        elsewhere = {key: row for key, row in self.rows.items() if row[0].bus is not None}
        if self._store.host is None or short <= 0 or len(elsewhere) == len(self.rows):
            return False
        self.rows = elsewhere
        return self._store.memory.drop(short, busy) > 0

    def _reserve(self, plan: TierPlan) -> bool:
        """Whether host memory has bytes for what is streamed; they are free until it comes."""
        host = self._store.host
        if not plan.streamed or host is None:
            return True
        self._reservation = host.reserve(plan.host_needed)
        if self._reservation is not None:
            host.bus.reserve(largest_layer(self.method, self._sizes))
        return self._reservation is not None

    def _start(self, plan: TierPlan, in_host: Rows) -> None:
        self._streamed = frozenset(plan.streamed)
        self.rows |= {key: in_host[key] for key in plan.raised if key in self._streamed}
        self._raised = {key: in_host[key] for key in plan.raised if key not in self._streamed}
        self._stored = self._store.stored(plan.missing, self._tokens_of, layers=self.method.cached_layers)
        self._warn_once_loaded()
        self._found = {*self.rows, *self._raised, *self._stored}
        self._began = time.perf_counter()

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
        """One pass of the model, one file of the store, or one block of host memory: the chunks that it gives."""
        rows = next(self._passes, None) if self._passes is not None else None
        if rows is None:  # nothing has begun, or a file at the end of a block could not be used
            self.abandon()
            self._passes = self._next_block(self.missing(elsewhere))
            rows = next(self._passes)
        self.rows |= rows
        if all(key in self.rows for key in self.block):
            self.abandon()
        return rows

    def load_stored(self) -> None:
        """Take everything that host memory and the folder hold, and prefill nothing."""
        while kept := [key for key in self.missing(set()) if key in self._raised or key in self._stored]:
            for rows in self._next_block(kept):
                self.rows |= rows
        self.block = []

    def take_prefilled_tokens(self) -> int:
        """Tokens that were prefilled here, for the usage of the first request that asks; 0 for others."""
        taken, self._prefilled_tokens = self._prefilled_tokens, 0
        return taken

    def abandon(self) -> None:
        """End the passes of a block, finished or not; what they have read is kept."""
        self._store.keep({key: self.rows[key] for key in self.block if key in self.rows})
        self.block, self._passes = [], None

    def release(self) -> None:
        """Give back the bytes that were reserved for chunks: they are there, or nobody waits for them."""
        self._reservation = None

    def _next_block(self, missing: Sequence[ChunkKey]) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """The passes that make the next chunks, which are all raised, loaded or prefilled, and all for one memory."""
        there = next((kept for kept in (self._raised, self._stored) if any(key in kept for key in missing)), None)
        alike = [key for key in missing if there is None or key in there]
        streamed = alike[0] in self._streamed
        alike = [key for key in alike if (key in self._streamed) == streamed][:_CHUNKS_PER_BLOCK]
        self.block = group_of(alike, self._sizes) if streamed and there is None else alike
        if there is None:
            return self._prefill(self.block, streamed=streamed)
        return self._raise(self.block) if there is self._raised else self._load(self.block, streamed=streamed)

    def _prefill(self, keys: Sequence[ChunkKey], *, streamed: bool) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        moved: dict[ChunkBlock, ChunkBlock] = {}
        for of_pass in self.method.prefill([self.wanted[key] for key in keys]):
            rows = {keys[index]: row for index, row in of_pass.items()}
            self._prefilled_tokens += sum(len(self.wanted[key].token_ids) for key in rows)
            if streamed:
                rows = {key: self._moved(row, moved) for key, row in rows.items()}
            self._store.save(rows, self._tokens_of)
            yield rows

    def _moved(self, chunk: ChunkRow, moved: dict[ChunkBlock, ChunkBlock]) -> ChunkRow:
        """A chunk in host memory that has been prefilled on the device."""
        block, row = chunk
        if block not in moved:
            moved[block] = self._host_block(block, block.chunks)
        moved[block].copy_row(row, block, row)
        return moved[block], row

    def _raise(self, keys: Sequence[ChunkKey]) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Chunks of host memory, copied to the device; a block of it per item."""
        of_block: dict[ChunkBlock, list[ChunkKey]] = {}
        for key in keys:
            of_block.setdefault(self._raised[key][0], []).append(key)
        for block, of_keys in of_block.items():
            copy = block.on_device(len(of_keys), self._device, layers=self.method.cached_layers)
            for row, key in enumerate(of_keys):
                copy.copy_row(row, block, self._raised.pop(key)[1])
            yield {key: (copy, row) for row, key in enumerate(of_keys)}

    def _load(self, keys: Sequence[ChunkKey], *, streamed: bool) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Chunks of the store; those that cannot be used are left for `_prefill`."""

        def allocate(header: ChunkHeader, chunks: int) -> ChunkBlock:
            if streamed:
                return self._host_block(header.block(1, torch.device("meta")), chunks)
            return header.block(chunks, self._device)

        found = {key: self._stored[key] for key in keys}
        for key, rows in zip(keys, self._store.load(found, self._tokens_of, allocate), strict=True):
            del self._stored[key]
            if not rows:
                self._found.discard(key)
            self._warn_once_loaded()
            yield rows

    def _host_block(self, like: ChunkBlock, chunks: int) -> ChunkBlock:
        host = self._store.host
        assert host is not None, "nothing is streamed without it"
        block = host.block_like(like, chunks, self._reservation)
        if block is None:  # files with more layers than were counted
            nbytes = like.nbytes // like.chunks * chunks
            raise machine.lack_of_host_memory(nbytes, host.free, what=f"{chunks} chunks")
        return block

    def _warn_once_loaded(self) -> None:
        if not self._stored:
            self._store.warn_of_unusable()

    def _tokens_of(self, key: ChunkKey) -> TokenIds:
        return self.wanted[key].row
