"""What every tier must do: a state machine, which a new tier's test inherits."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from focus_core.cache.chunks import ChunkBlock
from focus_core.cache.store import Tier

KEYS = (b"a", b"b", b"c", b"d", b"e")


def block_of(chunks: int = 1) -> ChunkBlock:
    return ChunkBlock.empty((1, chunks, 1, 4, 2), dtype=torch.float32, device=torch.device("cpu"))


SIZE = block_of().nbytes
BUDGET = 6 * SIZE


class TierConformance(RuleBasedStateMachine):
    """Any sequence of operations, against a list in order of use that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.store = self.tier()
        self.by_use: list[ChunkBlock] = []  # the least recently used first
        self.keys_of: dict[ChunkBlock, list[bytes]] = {}  # in the order of `put`

    def tier(self) -> Tier:
        """An empty tier that may hold `BUDGET` bytes."""
        raise NotImplementedError

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    def put(self, keys: list[bytes]) -> None:
        block = block_of(len(keys))
        self.store.put(block, {key: row for row, key in enumerate(keys)})
        self.keys_of[block] = keys
        self.by_use.append(block)
        while sum(block.nbytes for block in self.by_use) > BUDGET:
            self.by_use.pop(0)

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: bytes) -> None:
        newest = next((block for block in reversed(self.keys_of) if key in self.keys_of[block]), None)
        found = self.store.get(key)
        if newest not in self.by_use:
            assert found is None
            return
        assert newest is not None
        assert found == (newest, self.keys_of[newest].index(key))
        self.by_use.remove(newest)
        self.by_use.append(newest)

    @rule(key=st.sampled_from(KEYS))
    def peek(self, key: bytes) -> None:
        newest = next((block for block in reversed(self.keys_of) if key in self.keys_of[block]), None)
        found = self.store.peek(key)  # the order of use stays
        assert (found[0] if found else None) is (newest if newest in self.by_use else None)

    @rule(blocks=st.integers(0, 7))
    def drop(self, blocks: int) -> None:
        freed = 0
        while freed < blocks * SIZE and self.by_use:
            freed += self.by_use.pop(0).nbytes
        assert self.store.drop(blocks * SIZE) == freed

    @invariant()
    def same_size(self) -> None:
        assert self.store.nbytes == sum(block.nbytes for block in self.by_use)
