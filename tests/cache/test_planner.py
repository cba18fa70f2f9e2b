"""The arithmetic of tiers, against one that goes through chunks and bytes one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from focus_core.cache.planner import Host, Room, plan_tiers, room_for

KEYS = [b"a", b"b", b"c", b"d"]
few = st.integers(0, 12)
some = st.sets(st.sampled_from(KEYS))


@given(wanted=st.dictionaries(st.sampled_from(KEYS), few), memory=some, disk=some, besides=few, others=few, free=few)
def test_every_chunk_comes_from_the_nearest_tier(
    wanted: dict[bytes, int], memory: set[bytes], disk: set[bytes], besides: int, others: int, free: int
) -> None:
    plan = plan_tiers(wanted, memory=memory, disk=disk, besides=besides, others=others, free=free)
    held, load, prefill, needed = [], [], [], besides
    for key, nbytes in wanted.items():
        if key in memory:
            held.append(key)
            continue
        needed += nbytes
        (load if key in disk else prefill).append(key)
    assert (list(plan.held), list(plan.load), list(plan.prefill)) == (held, load, prefill)
    assert (plan.needed, plan.missing) == (needed, (*load, *prefill))
    assert plan.room == room_for(needed + others, free=free, evictable=0)


@given(nbytes=few, free=st.integers(-5, 12), evictable=few)
def test_room_is_made_byte_by_byte(nbytes: int, free: int, evictable: int) -> None:
    room, left, evicted, lacking = room_for(nbytes, free=free, evictable=evictable), free, 0, 0
    while left < nbytes:
        left += 1
        if evicted < evictable:
            evicted += 1
        else:
            lacking += 1
    assert room == (Room(evict=evicted) if not lacking else Room(lacking=lacking))  # in vain nothing is evicted


@given(
    wanted=st.dictionaries(st.sampled_from(KEYS), st.integers(1, 12)),
    memory=some,
    in_host=some,
    disk=some,
    besides=few,
    others=few,
    free=few,
    evictable=few,
    host_free=few,
    host_evictable=few,
    in_flight=few,
)
def test_what_does_not_fit_the_device_is_streamed(
    wanted: dict[bytes, int],
    memory: set[bytes],
    in_host: set[bytes],
    disk: set[bytes],
    besides: int,
    others: int,
    free: int,
    evictable: int,
    host_free: int,
    host_evictable: int,
    in_flight: int,
) -> None:
    """Every way to stream the last of the missing chunks is tried: the plan takes the one with the fewest."""
    host = Host(in_host, host_free, host_evictable, in_flight)
    plan = plan_tiers(
        wanted, memory=memory, host=host, disk=disk, besides=besides, others=others, free=free, evictable=evictable
    )
    missing, most = [key for key in wanted if key not in memory], free + evictable
    ways = []
    for count in range(len(missing) + 1):
        resident, streamed = missing[: len(missing) - count], missing[len(missing) - count :]
        on_device = sum(wanted[key] for key in resident) + besides + (in_flight if streamed else 0)
        of_host = sum(wanted[key] for key in streamed if key not in in_host)
        if on_device <= most:
            ways.append((streamed, on_device, of_host))
    if ways and ways[0][2] <= host_free + host_evictable:
        streamed, needed, of_host = ways[0]
        assert (list(plan.streamed), plan.needed, plan.lacking) == (streamed, needed, 0)
        assert plan.host_room == room_for(of_host if streamed else 0, free=host_free, evictable=host_evictable)
        assert plan.room == room_for(needed + others, free=free, evictable=evictable)
    else:
        assert (plan.streamed, plan.lacking > 0) == ((), True)
        assert plan.needed == sum(wanted[key] for key in missing) + besides
    assert set(plan.raised) == {key for key in missing if key in in_host}
    assert sorted([*plan.held, *plan.raised, *plan.load, *plan.prefill]) == sorted(wanted)
