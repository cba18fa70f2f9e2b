"""Where an engine keeps prefilled chunks: in memory, and in a folder if it has one."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch

from focus_core.cache.chunk_file import ChunkHeader
from focus_core.cache.chunks import ChunkBlock, ChunkRow
from focus_core.cache.disk import DiskTier, TokensOf
from focus_core.cache.keys import ChunkKey
from focus_core.cache.store import DeviceTier


@dataclass(frozen=True, eq=False)
class ChunkStore:
    """The tiers of one engine.

    Attributes:
        memory: on the model's device
        disk: a folder, which outlives the process
    """

    memory: DeviceTier
    disk: DiskTier | None = None

    def rows(self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int) -> dict[ChunkKey, ChunkRow]:
        """Chunks in memory with at least so many layers; they and their files count as used now.

        What was read before the folder was named, by another engine of the model, is written now.
        """
        found = {key: row for key in keys if (row := self.memory.get(key)) and row[0].layers >= layers}
        if self.disk is not None:
            missing = self.disk.touch(keys)
            self.disk.save({key: found[key] for key in found if key in missing}, tokens_of)
        return found

    def stored(self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int) -> dict[ChunkKey, ChunkHeader]:
        """Chunks in the folder."""
        return self.disk.find(keys, tokens_of, layers=layers) if self.disk is not None else {}

    def look(
        self, keys: Collection[ChunkKey], tokens_of: TokensOf, *, layers: int
    ) -> tuple[dict[ChunkKey, ChunkRow], dict[ChunkKey, ChunkHeader]]:
        """Chunks in memory and chunks in the folder, for a plan: nothing counts as used, and nothing is warned of."""
        rows = {key: row for key in keys if (row := self.memory.peek(key)) and row[0].layers >= layers}
        return rows, self.disk.look(keys, tokens_of, layers=layers) if self.disk is not None else {}

    def load(
        self, found: Mapping[ChunkKey, ChunkHeader], tokens_of: TokensOf, device: torch.device
    ) -> Iterator[Mapping[ChunkKey, ChunkRow]]:
        """Chunks from the folder, a file per item."""
        if self.disk is not None:
            yield from self.disk.load(found, tokens_of, device)

    def warn_of_unusable(self) -> None:
        """One warning for the files that could not be used."""
        if self.disk is not None:
            self.disk.warn_of_unusable()

    def save(self, rows: Mapping[ChunkKey, ChunkRow], tokens_of: TokensOf) -> None:
        """Write chunks that have just been prefilled into the folder."""
        if self.disk is not None:
            self.disk.save(rows, tokens_of)

    def keep(self, rows: Mapping[ChunkKey, ChunkRow]) -> None:
        """Keep chunks in memory."""
        of_block: dict[ChunkBlock, dict[ChunkKey, int]] = {}
        for key, (block, row) in rows.items():
            of_block.setdefault(block, {})[key] = row
        for block, keys in of_block.items():
            self.memory.put(block, keys)
