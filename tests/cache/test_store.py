"""The store keeps to its budget and evicts the least recently used blocks."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings

from focus_core.cache.store import DeviceTier, Tier
from focus_core.errors import ConfigError
from tests.cache.conformance import BUDGET, SIZE, TierConformance, block_of


def test_finds_block_and_row() -> None:
    store, block = DeviceTier(10 * SIZE), block_of(2)
    store.put(block, {b"x": 0, b"y": 1})
    assert store.get(b"y") == (block, 1)
    assert store.get(b"z") is None


def test_a_newer_block_of_the_same_chunk_outlives_the_older() -> None:
    store, newer = DeviceTier(2 * SIZE), block_of()
    store.put(block_of(), {b"a": 0})
    store.put(newer, {b"a": 0})
    store.put(block_of(), {b"b": 0})
    assert store.get(b"a") == (newer, 0)


def test_a_block_beyond_the_budget_evicts_nothing() -> None:
    store = DeviceTier(SIZE)
    store.put(block_of(), {b"a": 0})
    store.put(block_of(2), {b"b": 0, b"c": 1})
    assert (store.get(b"a") is None, store.get(b"b")) == (False, None)


def test_blocks_in_use_stay() -> None:
    """They would stay in memory all the same, and be counted as free."""
    store, used = DeviceTier(2 * SIZE), block_of()
    store.put(used, {b"a": 0})
    store.put(block_of(), {b"b": 0})
    assert store.evictable(keep={used}) == SIZE
    assert store.drop(5 * SIZE, keep={used}) == SIZE
    assert store.get(b"a") == (used, 0)


@pytest.mark.parametrize("nbytes", ["1GB", -5, 1.5])
def test_what_is_no_size_is_refused(nbytes: Any) -> None:
    with pytest.raises(ConfigError, match=f"store_bytes={nbytes!r}"):
        DeviceTier(nbytes)


def test_a_store_shows_its_size() -> None:
    store = DeviceTier(2**20)
    store.put(block_of(2), {b"a": 0, b"b": 1})
    assert repr(store) == "<DeviceTier: 2 chunks, 0.0 of 1.0 MiB>"


class DeviceTierConformance(TierConformance):
    def tier(self) -> Tier:
        return DeviceTier(BUDGET)


TestDeviceTier = DeviceTierConformance.TestCase
TestDeviceTier.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
