"""Prefilled chunks, by content: what has been read once is not read again.

In memory, and gone with the process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Collection, Mapping
from typing import Protocol

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


class DeviceTier:
    """Blocks on the device of the model. A block in use outlives its eviction: its questions hold it.

    Args:
        store_bytes: the budget

    Raises:
        ConfigError: not a number of bytes
    """

    def __init__(self, store_bytes: int) -> None:
        if type(store_bytes) is not int or store_bytes < 0:
            raise ConfigError(f"store_bytes={store_bytes!r}: must be a whole number of bytes, 0 or more.")
        self._budget = store_bytes
        self._lock = threading.Lock()
        self._rows: dict[ChunkKey, ChunkRow] = {}
        self._keys_of: OrderedDict[ChunkBlock, list[ChunkKey]] = OrderedDict()
        self._nbytes = 0

    def __repr__(self) -> str:
        return f"<DeviceTier: {len(self._rows)} chunks, {self._nbytes / 2**20:.1f} of {self._budget / 2**20:.1f} MiB>"

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
        """Evict everything."""
        with self._lock:
            for block in list(self._keys_of):
                self._evict(block)

    def _evict(self, block: ChunkBlock) -> None:
        for key in self._keys_of.pop(block):
            if key in self._rows and self._rows[key][0] is block:
                del self._rows[key]
        self._nbytes -= block.nbytes
