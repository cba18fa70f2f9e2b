"""What chunks take of each tier: arithmetic on bytes, which knows no model and changes nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from focus_core.cache.keys import ChunkKey


@dataclass(frozen=True)
class Room:
    """How room for some bytes is made in a tier.

    Attributes:
        evict: bytes of other chunks that give way; a tier evicts whole blocks or files, so it may be more
        lacking: bytes for which there is no room, whatever gives way
    """

    evict: int = 0
    lacking: int = 0


def room_for(nbytes: int, *, free: int, evictable: int) -> Room:
    """Room for `nbytes`. If evicting everything would not be enough, nothing gives way."""
    short = max(nbytes - free, 0)
    return Room(evict=short) if short <= evictable else Room(lacking=short - evictable)


@dataclass(frozen=True)
class TierPlan:
    """Where chunks come from, and what the device must take for them. Each key stands in one of the three lists.

    Attributes:
        held: in memory already
        load: on disk
        prefill: neither
        needed: bytes that the device must take besides those that are held
        room: how it makes room for them
    """

    held: tuple[ChunkKey, ...]
    load: tuple[ChunkKey, ...]
    prefill: tuple[ChunkKey, ...]
    needed: int
    room: Room

    @property
    def missing(self) -> tuple[ChunkKey, ...]:
        """Chunks that are not in memory."""
        return self.load + self.prefill


def plan_tiers(
    wanted: Mapping[ChunkKey, int],
    *,
    memory: Collection[ChunkKey],
    disk: Collection[ChunkKey] = (),
    besides: int = 0,
    others: int = 0,
    free: int,
    evictable: int = 0,
) -> TierPlan:
    """The plan for chunks with so many bytes of keys and values each.

    Args:
        memory: keys of chunks in memory
        disk: keys of chunks on disk
        besides: bytes that a question and its answer append
        others: bytes that other requests are about to take, for which there must be room too
        free: bytes that are free on the device
        evictable: bytes of stored chunks there that are not wanted here
    """
    held = tuple(key for key in wanted if key in memory)
    missing = [key for key in wanted if key not in memory]
    needed = sum(wanted[key] for key in missing) + besides
    return TierPlan(
        held,
        load=tuple(key for key in missing if key in disk),
        prefill=tuple(key for key in missing if key not in disk),
        needed=needed,
        room=room_for(needed + others, free=free, evictable=evictable),
    )
