"""What the chunks of a request take of the memories of device and host, by what is free there now."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from focus_core import device as machine
from focus_core.cache.chunks import ChunkBlock
from focus_core.cache.keys import ChunkKey
from focus_core.cache.planner import Host, TierPlan, plan_tiers
from focus_core.cache.store import Tier
from focus_core.cache.tiers import ChunkStore, Rows
from focus_core.errors import OutOfMemoryError
from focus_core.methods.base import Method

GROUP_BYTES = 2**30  # of chunks that are prefilled on the device before they move to host memory; not measured


@dataclass(frozen=True, eq=False)
class Memories:
    """The memories that a request takes its bytes from.

    Args:
        device: of the model
        store: of the engine
        tiers: on the device, of all engines of the model
    """

    device: torch.device
    store: ChunkStore
    tiers: Sequence[Tier]

    @property
    def free(self) -> int:
        """Bytes that are free on the device."""
        return machine.free_memory(self.device)

    def plan(
        self,
        method: Method,
        sizes: Mapping[ChunkKey, int],
        *,
        held: Rows,
        in_host: Rows,
        disk: Collection[ChunkKey] = (),
        appended_tokens: int = 0,
        others: int = 0,
        busy: Collection[ChunkBlock] = (),
        evicting: bool = True,
        host_evicting: bool = True,
    ) -> TierPlan:
        """The plan for chunks of these bytes.

        Args:
            held: chunks that are there; most lie on the device
            in_host: others that lie in host memory
            disk: others that are on disk
            appended_tokens: of a question
            others: bytes of the device that other requests are about to take
            busy: blocks that other requests hold, whose eviction would free nothing
            evicting: whether other chunks may be evicted from the device
            host_evicting: whether other chunks may be evicted from host memory
        """
        in_use = {*blocks_of(held), *blocks_of(in_host), *busy}
        return plan_tiers(
            sizes,
            memory=held,
            host=self._host(method, sizes, held, in_host, in_use, evicting=host_evicting) if sizes else None,
            disk=disk,
            besides=appended_tokens * method.bytes_per_token,
            others=others,
            free=self.free,
            evictable=sum(tier.evictable(in_use) for tier in self.tiers) if evicting else 0,
        )

    def plan_moved(
        self,
        method: Method,
        sizes: Mapping[ChunkKey, int],
        in_host: Rows,
        *,
        disk: Collection[ChunkKey],
        appended_tokens: int,
        ended: Collection[ChunkBlock] = (),
        reserved: int = 0,
    ) -> TierPlan:
        """The plan once the chunks that the device holds have moved to host memory.

        Args:
            ended: blocks of other requests that will be free by then
            reserved: bytes of host memory that will be
        """
        in_use = blocks_of(in_host).union(ended)
        in_memory = reserved + sum(block.nbytes for block in in_use - blocks_of(in_host) if block.bus is not None)
        return plan_tiers(
            sizes,
            memory=(),
            host=self._host(method, sizes, {}, in_host, in_use, ended=in_memory),
            disk=disk,
            besides=appended_tokens * method.bytes_per_token,
            free=self.free + sum(block.nbytes for block in ended if block.bus is None),
            evictable=sum(tier.evictable(ended) for tier in self.tiers),
        )

    def _host(
        self,
        method: Method,
        sizes: Mapping[ChunkKey, int],
        held: Rows,
        in_host: Rows,
        in_use: Collection[ChunkBlock],
        *,
        evicting: bool = True,
        ended: int = 0,
    ) -> Host | None:
        tier = self.store.host
        if tier is None:
            return None
        anew = [size for key, size in sizes.items() if key not in held and key not in in_host]
        return Host(
            in_host,
            free=tier.free + ended,
            evictable=tier.evictable(in_use) if evicting else 0,
            in_flight=tier.bus.missing_bytes(largest_layer(method, sizes)) + group_bytes(anew),
        )

    def evict(self, nbytes: int, keep: Collection[ChunkBlock]) -> None:
        """Evict so many bytes from the device, of blocks other than these, to host memory if chunks are kept there."""
        for tier in self.tiers:
            if nbytes > 0:
                nbytes -= tier.drop(nbytes, keep)

    def evict_from_host(self, nbytes: int, keep: Collection[ChunkBlock]) -> None:
        """Evict so many bytes from host memory, of blocks other than these."""
        if self.store.host is not None:
            self.store.host.drop(nbytes, keep)

    def lack(self, plan: TierPlan, *, what: str) -> OutOfMemoryError:
        """The error for a plan that lacks bytes."""
        host = self.store.host
        return machine.lack_of_memory(
            plan.needed,
            self.free,
            self.device,
            what=what,
            host_free=None if host is None else host.free,
        )


def blocks_of(rows: Rows) -> set[ChunkBlock]:
    """The blocks that some chunks lie in."""
    return {block for block, _ in rows.values()}


def largest_layer(method: Method, sizes: Mapping[ChunkKey, int]) -> int:
    """Bytes of one layer of the largest chunk."""
    return -(-max(sizes.values(), default=0) // max(method.cached_layers, 1))


def group_of(keys: Sequence[ChunkKey], sizes: Mapping[ChunkKey, int]) -> list[ChunkKey]:
    """The first of some chunks, at least one, that are prefilled together for host memory."""
    count = 1
    while count < len(keys) and sum(sizes[key] for key in keys[: count + 1]) <= GROUP_BYTES:
        count += 1
    return list(keys[:count])


def group_bytes(sizes: Collection[int]) -> int:
    """Bytes that chunks of these sizes take on the device, at most, while they are prefilled for host memory."""
    return min(sum(sizes), max(GROUP_BYTES, max(sizes, default=0)))
