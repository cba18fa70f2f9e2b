"""The tier in host memory: what leaves the device is found there, and its budget holds for all of its blocks."""

from __future__ import annotations

import threading

import pytest
import torch
from hypothesis import settings

from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkBlock
from focus_core.cache.store import DeviceTier, HostTier, Tier
from focus_core.errors import ConfigError
from tests.cache.conformance import BUDGET, SIZE, TierConformance, block_of

CPU = torch.device("cpu")


def host_of(chunks: int) -> HostTier:
    return HostTier(chunks * SIZE, Bus(CPU))


def filled(number: int, chunks: int = 1) -> ChunkBlock:
    block = block_of(chunks)
    for states in block.tensors.values():
        states.copy_(torch.arange(number, number + states.numel()).view(states.shape))
    return block


def test_what_leaves_the_device_lies_in_host_memory() -> None:
    host = host_of(4)
    device, first = DeviceTier(2 * SIZE, host), filled(7, 2)
    device.put(first, {b"a": 0, b"b": 1})
    device.put(filled(90), {b"c": 0})
    assert device.get(b"b") is None
    found = host.get(b"b")
    assert found is not None
    block, row = found
    assert block.bus is host.bus
    assert torch.equal(block.keys[:, row], first.keys[:, 1])
    assert torch.equal(block.values[:, row], first.values[:, 1])


def test_what_is_there_is_not_copied_again() -> None:
    """Chunks that go up and down would fill host memory with copies of themselves."""
    host = host_of(4)
    device = DeviceTier(SIZE, host)
    for _ in range(3):
        device.put(filled(7), {b"a": 0})
        device.put(filled(8), {b"b": 0})
    assert host.nbytes == host.taken == 2 * SIZE


def test_a_block_beyond_the_budget_of_the_device_is_kept_in_host_memory() -> None:
    host = host_of(4)
    DeviceTier(0, host).put(filled(7, 2), {b"a": 0, b"b": 1})
    assert (host.get(b"a") is not None, host.nbytes) == (True, 2 * SIZE)


@pytest.mark.parametrize("what", ["taken", "reserved", "free"])
def test_bytes_are_counted_while_nothing_changes(what: str) -> None:
    """A plan of another thread failed when a block was made meanwhile: a set changed its size."""
    host = host_of(4)
    counting = threading.Thread(target=lambda: getattr(host, what), daemon=True)
    with host._lock:
        counting.start()
        counting.join(0.05)
        assert counting.is_alive()
    counting.join(10)
    assert not counting.is_alive()


def test_blocks_that_a_question_holds_count() -> None:
    """They take their bytes all the same, after they have been evicted."""
    host = host_of(2)
    host.receive(filled(1), {b"a": 0})
    host.receive(filled(2), {b"b": 0})
    held = host.get(b"a")
    assert host.drop(2 * SIZE) == 2 * SIZE
    assert (host.nbytes, host.taken, host.free) == (0, SIZE, SIZE)
    assert host.block_like(block_of(), 2) is None
    assert host.block_like(block_of(), 1) is not None
    del held
    assert host.taken == 0


def test_the_least_recently_used_block_is_evicted_first() -> None:
    host = host_of(2)
    host.receive(filled(1), {b"a": 0})
    host.receive(filled(2), {b"b": 0})
    host.get(b"a")
    host.receive(filled(3), {b"c": 0})
    assert [host.peek(key) is not None for key in (b"a", b"b", b"c")] == [True, False, True]


def test_reserved_bytes_are_for_one_request() -> None:
    """Chunks that leave the device would take what a running request was promised."""
    host = host_of(3)
    reservation = host.reserve(2 * SIZE)
    assert reservation is not None
    assert host.reserve(2 * SIZE) is None
    host.receive(filled(1, 2), {b"a": 0, b"b": 1})
    assert host.nbytes == 0
    block = host.block_like(block_of(), 2, reservation)
    assert (block is not None, reservation.nbytes, host.taken, host.free) == (True, 0, 2 * SIZE, SIZE)
    del reservation
    assert host.reserved == 0


def test_a_copy_lasts_until_the_second_after_it() -> None:
    bus = Bus(CPU, copy_bytes=1)
    sources = [filled(number).keys for number in range(4)]
    copies = [bus.fetch([source])() for source in sources[:2]]
    assert all(torch.equal(copy[0], source) for copy, source in zip(copies, sources[:2], strict=True))
    bus.fetch([sources[2]])()
    assert torch.equal(copies[1][0], sources[1])
    assert torch.equal(copies[0][0], sources[2])  # the same bytes again


def test_copies_keep_dtypes_and_shapes() -> None:
    states = [torch.randint(-9, 9, (3, 5), dtype=torch.int8), torch.randn(3, 7).bfloat16(), torch.randn(1, 1).double()]
    for copy, state in zip(Bus(CPU).fetch(states)(), states, strict=True):
        assert (copy.dtype, copy.data_ptr() == state.data_ptr()) == (state.dtype, False)
        assert torch.equal(copy, state)


def test_reserved_buffers_do_not_grow() -> None:
    bus = Bus(CPU, copy_bytes=100)
    missing = bus.missing_bytes(SIZE)
    bus.reserve(SIZE)
    assert (bus.nbytes, bus.missing_bytes(SIZE)) == (missing, 0)
    bus.fetch([*filled(1).tensors.values()])
    assert bus.nbytes == missing


def test_clearing_the_device_forgets_host_memory_too() -> None:
    host = host_of(4)
    device = DeviceTier(SIZE, host)
    device.put(filled(1), {b"a": 0})
    device.put(filled(2), {b"b": 0})
    device.clear()
    assert (device.nbytes, host.nbytes, host.taken, host.get(b"a")) == (0, 0, 0, None)


def test_what_is_no_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="host_bytes='1GB'"):
        HostTier("1GB", Bus(CPU))  # type: ignore[arg-type]


class HostTierConformance(TierConformance):
    def tier(self) -> Tier:
        return HostTier(BUDGET, Bus(CPU))


TestHostTier = HostTierConformance.TestCase
TestHostTier.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
