"""Where an engine keeps prefilled chunks: on the device, in host memory, and in a folder if it has one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import Allocate, DiskTier, TokensOf
from focus_core.cache.keys import ChunkKey
from focus_core.cache.store import DeviceTier, HostTier

Rows = dict[ChunkKey, ChunkRow]


@dataclass(frozen=True, eq=False)
class ChunkStore:
    """The tiers of one engine.

    Attributes:
        memory: on the model's device, with a tier in host memory where that is another memory
        disk: a folder, which outlives the process
    """

    memory: DeviceTier
    disk: DiskTier | None = None

    @property
    def host(self) -> HostTier | None:
        """In host memory."""
        return self.memory.host

    def rows(
        self, question: object, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int
    ) -> tuple[Rows, Rows]:
        """Chunks on the device, and others in host memory, with at least so many layers.

        As long as somebody holds `question`, its files are not evicted. They and those of the chunks count as used now.
        What was read before the folder was named, by another engine of the model, is written now.
        """
        found = _with_layers({key: self.memory.get(key) for key in keys}, layers)
        others = [key for key in keys if key not in found]
        in_host = {} if self.host is None else _with_layers({key: self.host.get(key) for key in others}, layers)
        if self.disk is not None:
            missing = self.disk.touch(question, keys)
            self.disk.save({key: row for key, row in (found | in_host).items() if key in missing}, tokens_of)
        return found, in_host

    def stored(self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int) -> dict[ChunkKey, ChunkHeader]:
        """Chunks in the folder."""
        return self.disk.find(keys, tokens_of, layers=layers) if self.disk is not None else {}

    def look(
        self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int
    ) -> tuple[Rows, Rows, dict[ChunkKey, ChunkHeader]]:
        """Chunks on the device, others in host memory, and those in the folder, for a plan.

        Nothing counts as used, and nothing is warned of.
        """
        rows = _with_layers({key: self.memory.peek(key) for key in keys}, layers)
        others = [key for key in keys if key not in rows]
        in_host = {} if self.host is None else _with_layers({key: self.host.peek(key) for key in others}, layers)
        return rows, in_host, self.disk.look(keys, tokens_of, layers=layers) if self.disk is not None else {}

    def load(
        self, found: Mapping[ChunkKey, ChunkHeader], tokens_of: TokensOf, allocate: Allocate
    ) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Chunks from the folder, a file per item."""
        if self.disk is not None:
            yield from self.disk.load(found, tokens_of, allocate)

    def warn_of_unusable(self) -> None:
        """One warning for the files that could not be used."""
        if self.disk is not None:
            self.disk.warn_of_unusable()

    def save(self, rows: Mapping[ChunkKey, ChunkRow], tokens_of: TokensOf) -> None:
        """Write chunks that have just been prefilled into the folder."""
        if self.disk is not None:
            self.disk.save(rows, tokens_of)

    def keep(self, rows: Mapping[ChunkKey, ChunkRow]) -> None:
        """Keep chunks in the memory where they lie."""
        of_block: dict[ChunkBlock, dict[ChunkKey, int]] = {}
        for key, (block, row) in rows.items():
            of_block.setdefault(block, {})[key] = row
        for block, keys in of_block.items():
            tier = self.memory if block.bus is None else self.host
            if tier is not None:
                tier.put(block, keys)


def _with_layers(found: Mapping[ChunkKey, ChunkRow | None], layers: int) -> Rows:
    return {key: row for key, row in found.items() if row is not None and row[0].layers >= layers}
