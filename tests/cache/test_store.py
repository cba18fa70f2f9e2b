"""The store keeps to its budget and evicts the least recently used blocks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from focus_core.cache.chunks import ChunkBlock
from focus_core.cache.store import DeviceTier
from focus_core.errors import ConfigError


def _block(chunks: int = 1, tokens: int = 4) -> ChunkBlock:
    return ChunkBlock.empty((1, chunks, 1, tokens, 2), dtype=torch.float32, device=torch.device("cpu"))


SIZE = _block().nbytes
KEYS = (b"a", b"b", b"c", b"d", b"e")


def test_finds_block_and_row() -> None:
    store, block = DeviceTier(10 * SIZE), _block(2)
    store.put([b"x", b"y"], block)
    assert store.get(b"y") == (block, 1)
    assert store.get(b"z") is None


def test_a_newer_block_of_the_same_chunk_outlives_the_older() -> None:
    store, newer = DeviceTier(2 * SIZE), _block()
    store.put([b"a"], _block())
    store.put([b"a"], newer)
    store.put([b"b"], _block())
    assert store.get(b"a") == (newer, 0)


def test_a_block_beyond_the_budget_evicts_nothing() -> None:
    store = DeviceTier(SIZE)
    store.put([b"a"], _block())
    store.put([b"b", b"c"], _block(2))
    assert (store.get(b"a") is None, store.get(b"b")) == (False, None)


def test_blocks_in_use_stay() -> None:
    """They would stay in memory all the same, and be counted as free."""
    store, used = DeviceTier(2 * SIZE), _block()
    store.put([b"a"], used)
    store.put([b"b"], _block())
    assert store.evictable(keep={used}) == SIZE
    assert store.drop(5 * SIZE, keep={used}) == SIZE
    assert store.get(b"a") == (used, 0)


@pytest.mark.parametrize("nbytes", ["1GB", -5, 1.5])
def test_what_is_no_size_is_refused(nbytes: Any) -> None:
    with pytest.raises(ConfigError, match=f"store_bytes={nbytes!r}"):
        DeviceTier(nbytes)


def test_a_store_shows_its_size() -> None:
    store = DeviceTier(2**20)
    store.put([b"a", b"b"], _block(2))
    assert repr(store) == "<DeviceTier: 2 chunks, 0.0 of 1.0 MiB>"


class StoreAgainstList(RuleBasedStateMachine):
    """Any sequence of operations, against a list in order of use that is searched from end to end."""

    def __init__(self) -> None:
        super().__init__()
        self.store = DeviceTier(6 * SIZE)
        self.by_use: list[ChunkBlock] = []  # the least recently used first
        self.keys_of: dict[ChunkBlock, list[bytes]] = {}  # in the order of `put`

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=3, unique=True))
    def put(self, keys: list[bytes]) -> None:
        block = _block(len(keys))
        self.store.put(keys, block)
        self.keys_of[block] = keys
        self.by_use.append(block)
        while sum(block.nbytes for block in self.by_use) > 6 * SIZE:
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

    @rule(blocks=st.integers(0, 7))
    def drop(self, blocks: int) -> None:
        freed = 0
        while freed < blocks * SIZE and self.by_use:
            freed += self.by_use.pop(0).nbytes
        assert self.store.drop(blocks * SIZE) == freed

    @invariant()
    def same_size(self) -> None:
        assert self.store.nbytes == sum(block.nbytes for block in self.by_use)


TestStoreAgainstList = StoreAgainstList.TestCase
TestStoreAgainstList.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
