"""The arithmetic of tiers, against one that goes through chunks and bytes one by one."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from focus_core.cache.planner import Room, plan_tiers, room_for

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
