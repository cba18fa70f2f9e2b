"""The store keeps to its budget, drops what was unused longest, and never confuses two chunks."""

from __future__ import annotations

import torch

from focus_core.cache.chunks import ChunkBlock
from focus_core.cache.store import ChunkStore, chunk_key


def _block(chunks: int = 1) -> ChunkBlock:
    return ChunkBlock.empty((1, chunks, 1, 4, 2), dtype=torch.float32, device=torch.device("cpu"))


SIZE = _block().nbytes


def test_key_depends_on_tokens_and_model() -> None:
    keys = {chunk_key("a", [1, 2]), chunk_key("a", [1, 3]), chunk_key("a", [1, 2, 0]), chunk_key("b", [1, 2])}
    assert len(keys) == 4
    assert chunk_key("a", [1, 2]) in keys


def test_finds_block_and_row() -> None:
    store, block = ChunkStore(10 * SIZE), _block(2)
    store.put([b"x", b"y"], block)
    assert store.get(b"y") == (block, 1)
    assert store.get(b"z") is None


def test_drops_the_block_unused_for_the_longest_time() -> None:
    store = ChunkStore(2 * SIZE)
    store.put([b"a"], _block())
    store.put([b"b"], _block())
    store.get(b"a")
    store.put([b"c"], _block())
    assert [store.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]
    assert store.nbytes == 2 * SIZE


def test_block_larger_than_the_budget_is_not_kept() -> None:
    store = ChunkStore(SIZE)
    store.put([b"a"], _block())
    store.put([b"b", b"c"], _block(2))
    assert store.nbytes <= SIZE
    assert store.get(b"b") is None


def test_a_smaller_budget_holds_at_once() -> None:
    """A store that is told to keep nothing would keep what it has for good."""
    store = ChunkStore(2 * SIZE)
    for key in (b"a", b"b"):
        store.put([key], _block())
    store.limit(SIZE)
    assert [store.get(key) is not None for key in (b"a", b"b")] == [False, True]
    store.limit(0)
    assert store.nbytes == 0


def test_dropping_an_old_block_leaves_the_newer_one_of_the_same_chunk() -> None:
    store, newer = ChunkStore(2 * SIZE), _block()
    store.put([b"a"], _block())
    store.put([b"a"], newer)
    store.put([b"b"], _block())
    assert store.get(b"a") == (newer, 0)


def test_release_gives_up_the_longest_unused() -> None:
    store = ChunkStore(3 * SIZE)
    for key in (b"a", b"b", b"c"):
        store.put([key], _block())
    store.get(b"a")
    store.release(0)
    assert store.nbytes == 3 * SIZE
    store.release(SIZE + 1)
    assert [store.get(key) is not None for key in (b"a", b"b", b"c")] == [True, False, False]
    store.release(SIZE)
    assert store.nbytes == 0


def test_release_of_more_than_there_is_drops_nothing() -> None:
    """The caller is going to be refused: the others' chunks need not pay for that."""
    store, used = ChunkStore(2 * SIZE), _block()
    store.put([b"a"], used)
    store.put([b"b"], _block())
    store.release(2 * SIZE + 1)
    store.release(SIZE + 1, keep={used})
    assert store.nbytes == 2 * SIZE
    store.release(SIZE, keep={used})
    assert store.get(b"a") == (used, 0)


def test_a_block_beyond_the_budget_drives_out_nothing() -> None:
    store = ChunkStore(SIZE)
    store.put([b"a"], _block())
    larger = ChunkBlock.empty((1, 2, 1, 1, 1 << 20), dtype=torch.float32, device=torch.device("cpu"))
    assert larger.nbytes > SIZE
    store.put([b"b", b"c"], larger)
    assert (store.get(b"a") is None, store.get(b"b")) == (False, None)


def test_clear() -> None:
    store = ChunkStore(10 * SIZE)
    store.put([b"a"], _block())
    store.clear()
    assert (store.nbytes, store.get(b"a")) == (0, None)
