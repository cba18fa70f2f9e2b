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
class Host:
    """Host memory as a plan sees it.

    Attributes:
        keys: of chunks that are there
        free: bytes
        evictable: bytes of stored chunks there that are not wanted here
        in_flight: bytes of the device that copies of streamed chunks take, and a group of them while it is prefilled
    """

    keys: Collection[ChunkKey] = ()
    free: int = 0
    evictable: int = 0
    in_flight: int = 0


@dataclass(frozen=True)
class TierPlan:
    """Where chunks come from, and what each memory must take for them. Each key stands in one of the first four lists.

    Attributes:
        held: in the memory of the device already
        raised: in host memory
        load: on disk
        prefill: nowhere
        streamed: of the last three, those that the device has no bytes for: they stay in host memory, and every pass
            copies them to the device, a few at a time
        needed: bytes that the device must take besides those that are held
        room: how it makes room for them
        lacking: bytes for which there is no room, also once other requests have theirs
        least: bytes that the device must take besides those that are held, if all others are streamed
        in_flight: of these, what the copies take
        host_needed: bytes that host memory must take, or would have to
        host_room: how it makes room for them, or why nothing is streamed
    """

    held: tuple[ChunkKey, ...]
    raised: tuple[ChunkKey, ...]
    load: tuple[ChunkKey, ...]
    prefill: tuple[ChunkKey, ...]
    streamed: tuple[ChunkKey, ...]
    needed: int
    room: Room
    lacking: int = 0
    least: int = 0
    in_flight: int = 0
    host_needed: int = 0
    host_room: Room = Room()

    @property
    def missing(self) -> tuple[ChunkKey, ...]:
        """Chunks that are in no memory."""
        return self.load + self.prefill


def plan_tiers(
    wanted: Mapping[ChunkKey, int],
    *,
    memory: Collection[ChunkKey],
    host: Host | None = None,
    disk: Collection[ChunkKey] = (),
    besides: int = 0,
    others: int = 0,
    free: int,
    evictable: int = 0,
) -> TierPlan:
    """The plan for chunks with so many bytes of keys and values each.

    What does not fit the device is streamed from host memory, if there is another one than the device's and it holds
    what does not fit; otherwise bytes are lacking.

    Args:
        memory: keys of chunks in the memory of the device
        disk: keys of chunks on disk
        besides: bytes that a question and its answer append
        others: bytes that other requests are about to take, for which there must be room too
        free: bytes that are free on the device
        evictable: bytes of stored chunks there that are not wanted here
    """
    missing = [key for key in wanted if key not in memory]
    in_host = () if host is None else host.keys
    elsewhere = [key for key in missing if key not in in_host]
    needed, streamed = sum(wanted[key] for key in missing) + besides, tuple[ChunkKey, ...]()
    host_needed, host_room = 0, Room()
    if host is not None and needed > free + evictable:
        beside = _first_that_fit({key: wanted[key] for key in missing}, free + evictable - besides - host.in_flight)
        left = tuple(key for key in missing if key not in beside)
        of_host = sum(wanted[key] for key in left if key not in in_host)
        on_device = sum(wanted[key] for key in beside) + besides + host.in_flight
        if left and on_device <= free + evictable:
            host_needed, host_room = of_host, room_for(of_host, free=host.free, evictable=host.evictable)
            if not host_room.lacking:
                needed, streamed = on_device, left
    return TierPlan(
        held=tuple(key for key in wanted if key in memory),
        raised=tuple(key for key in missing if key in in_host),
        load=tuple(key for key in elsewhere if key in disk),
        prefill=tuple(key for key in elsewhere if key not in disk),
        streamed=streamed,
        needed=needed,
        room=room_for(needed + others, free=free, evictable=evictable),
        lacking=room_for(needed, free=free, evictable=evictable).lacking,
        least=besides if host is None else besides + host.in_flight,
        in_flight=0 if host is None else host.in_flight,
        host_needed=host_needed,
        host_room=host_room,
    )


def _first_that_fit(wanted: Mapping[ChunkKey, int], nbytes: int) -> set[ChunkKey]:
    """The first chunks that together take no more than `nbytes`."""
    fitting, taken = set[ChunkKey](), 0
    for key, of_chunk in wanted.items():
        taken += of_chunk
        if taken > nbytes:
            break
        fitting.add(key)
    return fitting
