"""Chunks that have been read, by content: what has been read once is not read again.

In memory, and gone with the process.
"""

from __future__ import annotations

import hashlib
import threading
from array import array
from collections import OrderedDict
from collections.abc import Collection, Sequence

from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.errors import ConfigError

ChunkKey = bytes


def chunk_key(identity: str, tokens: Sequence[int]) -> ChunkKey:
    """What the keys and values of a chunk depend on: its tokens (BOS included), and the model and dtype."""
    digest = hashlib.sha256(identity.encode())
    digest.update(array("q", tokens).tobytes())
    return digest.digest()


class ChunkStore:
    """Blocks of keys and values up to a number of bytes; the block unused for the longest time goes first.

    A block that a question is working on stays alive with that question, even when it has left the store.

    Args:
        store_bytes: the budget

    Raises:
        ConfigError: not a number of bytes
    """

    def __init__(self, store_bytes: int) -> None:
        self._lock = threading.Lock()
        self._rows: dict[ChunkKey, ChunkRow] = {}
        self._keys_of: OrderedDict[ChunkBlock, list[ChunkKey]] = OrderedDict()
        self._nbytes = 0
        self.limit(store_bytes)

    def limit(self, store_bytes: int) -> None:
        """Another budget from now on; what is beyond it goes at once.

        Raises:
            ConfigError: not a number of bytes
        """
        if type(store_bytes) is not int or store_bytes < 0:
            raise ConfigError(f"store_bytes={store_bytes!r}: must be a whole number of bytes, 0 or more.")
        with self._lock:
            self._budget = store_bytes
            self._drop_what_is_beyond()

    @property
    def nbytes(self) -> int:
        """Bytes of all blocks in the store."""
        return self._nbytes

    def get(self, key: ChunkKey) -> ChunkRow | None:
        """The block and row of a chunk, now the most recently used; `None` where it has to be read."""
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._keys_of.move_to_end(found[0])
            return found

    def put(self, keys: Sequence[ChunkKey], block: ChunkBlock) -> None:
        """Keep a block whose row i is the chunk `keys[i]`; a block larger than the whole budget is not kept."""
        with self._lock:
            if block.nbytes > self._budget:
                return
            self._keys_of[block] = list(keys)
            self._rows.update({key: (block, row) for row, key in enumerate(keys)})
            self._nbytes += block.nbytes
            self._drop_what_is_beyond()

    def release(self, nbytes: int, keep: Collection[ChunkBlock] = ()) -> None:
        """Drop blocks, the longest unused first, until so many bytes are given up; none where that cannot be reached.

        Args:
            keep: blocks that stay
        """
        with self._lock:
            droppable = [block for block in self._keys_of if block not in keep]
            if sum(block.nbytes for block in droppable) < nbytes:
                return
            for block in droppable:
                if nbytes <= 0:
                    return
                nbytes -= block.nbytes
                self._drop(block)

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            for block in list(self._keys_of):
                self._drop(block)

    def _drop_what_is_beyond(self) -> None:
        while self._nbytes > self._budget:
            self._drop(next(iter(self._keys_of)))

    def _drop(self, block: ChunkBlock) -> None:
        for key in self._keys_of.pop(block):
            if key in self._rows and self._rows[key][0] is block:
                del self._rows[key]
        self._nbytes -= block.nbytes
