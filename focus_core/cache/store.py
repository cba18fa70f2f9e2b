"""Prefilled chunks, by content: what has been read once is not read again.

In memory, of the model's device and of the host, and gone with the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Protocol
from weakref import WeakSet

from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.keys import ChunkKey
from focus_core.errors import ConfigError


class Tier(Protocol):
    """A place where prefilled chunks are kept, up to a number of bytes; the least recently used leave first."""

    @property
    def nbytes(self) -> int:
        """Bytes of everything that is kept."""

    def get(self, key: ChunkKey) -> ChunkRow | None:
        """A chunk's block and row, from now on the most recently used; `None` if it is not kept."""

    def peek(self, key: ChunkKey) -> ChunkRow | None:
        """Like `get`, and the order of use stays."""

    def put(self, block: ChunkBlock, rows: Mapping[ChunkKey, int]) -> None:
        """Keep chunks: rows of one block, which may get more of its rows later.

        A block larger than the whole budget is not kept.
        """

    def evictable(self, keep: Collection[ChunkBlock] = ()) -> int:
        """Bytes of all blocks but those in `keep`."""

    def drop(self, nbytes: int, keep: Collection[ChunkBlock] = ()) -> int:
        """Evict least recently used blocks until `nbytes` are free.

        Args:
            keep: blocks that stay

        Returns:
            the bytes that were freed
        """


class MemoryTier:
    """Blocks in one memory. A block in use outlives its eviction: its questions hold it.

    Args:
        budget: bytes
        setting: what the budget is called, for messages

    Raises:
        ConfigError: not a number of bytes
    """

    def __init__(self, budget: int, setting: str) -> None:
        if type(budget) is not int or budget < 0:
            raise ConfigError(f"{setting}={budget!r}: must be a whole number of bytes, 0 or more.")
        self._budget = budget
        self._lock = threading.RLock()
        self._rows: dict[ChunkKey, ChunkRow] = {}
        self._keys_of: OrderedDict[ChunkBlock, list[ChunkKey]] = OrderedDict()
        self._nbytes = 0

    def __repr__(self) -> str:
        kind, mib = type(self).__name__, 2**20
        return f"<{kind}: {len(self._rows)} chunks, {self._nbytes / mib:.1f} of {self._budget / mib:.1f} MiB>"

    @property
    def budget(self) -> int:
        """Bytes that it may hold."""
        return self._budget

    @property
    def nbytes(self) -> int:
        return self._nbytes

    def get(self, key: ChunkKey) -> ChunkRow | None:
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._keys_of.move_to_end(found[0])
            return found

    def peek(self, key: ChunkKey) -> ChunkRow | None:
        return self._rows.get(key)

    def put(self, block: ChunkBlock, rows: Mapping[ChunkKey, int]) -> None:
        with self._lock:
            if block.nbytes > self._budget:
                self._evicted(block, rows)
                return
            if block not in self._keys_of:
                self._keys_of[block] = []
                self._nbytes += block.nbytes
            self._keys_of[block] += rows
            self._keys_of.move_to_end(block)
            self._rows.update({key: (block, row) for key, row in rows.items()})
            while self._nbytes > self._budget:
                self._evict(next(iter(self._keys_of)))

    def evictable(self, keep: Collection[ChunkBlock] = ()) -> int:
        with self._lock:
            return sum(block.nbytes for block in self._keys_of if block not in keep)

    def drop(self, nbytes: int, keep: Collection[ChunkBlock] = ()) -> int:
        with self._lock:
            freed = 0
            for block in [block for block in self._keys_of if block not in keep]:
                if freed >= nbytes:
                    break
                freed += block.nbytes
                self._evict(block)
            return freed

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._rows.clear()
            self._keys_of.clear()
            self._nbytes = 0

    def _evict(self, block: ChunkBlock) -> None:
        keys = [key for key in self._keys_of.pop(block) if key in self._rows and self._rows[key][0] is block]
        self._nbytes -= block.nbytes
        self._evicted(block, {key: self._rows.pop(key)[1] for key in keys})

    def _evicted(self, block: ChunkBlock, rows: Mapping[ChunkKey, int]) -> None:
        """These chunks are not kept here any more."""


@dataclass(eq=False)
class Reservation:
    """Bytes of host memory that a request will take for its chunks, as long as somebody holds this."""

    nbytes: int


class HostTier(MemoryTier):
    """Blocks in host memory, for a model whose device has a memory of its own.

    The budget holds for all its blocks: those that are kept, and those that questions hold.

    Args:
        host_bytes: the budget
        bus: the way to the device
    """

    def __init__(self, host_bytes: int, bus: Bus) -> None:
        super().__init__(host_bytes, "host_bytes")
        self.bus = bus
        self._made: WeakSet[ChunkBlock] = WeakSet()
        self._reserved: WeakSet[Reservation] = WeakSet()

    @property
    def taken(self) -> int:
        """Bytes of all blocks that were made here and are kept or held by a question."""
        with self._lock:
            return sum(block.nbytes for block in self._made)

    @property
    def free(self) -> int:
        """Bytes that may be taken or reserved without an eviction."""
        with self._lock:
            return max(self._budget - self.taken - self.reserved, 0)

    @property
    def reserved(self) -> int:
        """Bytes that requests will take."""
        with self._lock:
            return sum(reservation.nbytes for reservation in self._reserved)

    def reserve(self, nbytes: int) -> Reservation | None:
        """Keep bytes free for one request; `None` if there are not enough."""
        with self._lock:
            if nbytes > self.free:
                return None
            reservation = Reservation(nbytes)
            self._reserved.add(reservation)
            return reservation

    def block_like(self, block: ChunkBlock, chunks: int, reservation: Reservation | None = None) -> ChunkBlock | None:
        """A block of the same kind in host memory, not written yet; the least recently used blocks are evicted for it.

        Args:
            reservation: of which it takes its bytes first

        Returns:
            `None` if there are not enough bytes all the same
        """
        nbytes = block.nbytes // block.chunks * chunks
        with self._lock:
            if reservation is not None:
                reservation.nbytes = max(reservation.nbytes - nbytes, 0)
            while nbytes > self.free and self._keys_of:
                self._evict(next(iter(self._keys_of)))
            if nbytes > self.free:
                return None
            made = block.in_host_memory(chunks, self.bus)
            self._made.add(made)
            return made

    def receive(self, block: ChunkBlock, rows: Mapping[ChunkKey, int]) -> None:
        """Keep copies of chunks that are evicted from the device. Those that are here count as used now."""
        with self._lock:
            here = {key for key in rows if (found := self.get(key)) and found[0].layers >= block.layers}
            missing = [key for key in rows if key not in here]
            made = self.block_like(block, len(missing)) if missing else None
            if made is not None:
                for row, key in enumerate(missing):
                    made.copy_row(row, block, rows[key])
                self.put(made, {key: row for row, key in enumerate(missing)})


class DeviceTier(MemoryTier):
    """Blocks on the device of the model.

    Args:
        store_bytes: the budget
        host: where evicted chunks go
    """

    def __init__(self, store_bytes: int, host: HostTier | None = None) -> None:
        super().__init__(store_bytes, "store_bytes")
        self.host = host

    def clear(self) -> None:
        """Forget everything, also in host memory."""
        super().clear()
        if self.host is not None:
            self.host.clear()

    def _evicted(self, block: ChunkBlock, rows: Mapping[ChunkKey, int]) -> None:
        if self.host is not None:
            self.host.receive(block, rows)
