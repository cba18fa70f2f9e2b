"""Keys and values of chunks: written once, in place, and never copied or changed by a question.

A chunk's keys and values depend on nothing but the chunk (paper §2.2), so they serve any number of questions at the
same time. What a question appends to them lies in an `AppendedCache` of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class ChunkBlock:
    """Keys and values of equally long chunks.

    Attributes:
        keys: `[layers, chunks, kv_heads, tokens, head_dim]`; a method that reads no chunk in the model's last layer
            (FocusLLM: of a candidate only keys and values are used) leaves that layer out
        values: like `keys`
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> ChunkBlock:
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))

    @property
    def layers(self) -> int:
        return int(self.keys.shape[0])

    @property
    def chunks(self) -> int:
        return int(self.keys.shape[1])

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[3])

    @property
    def nbytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def __repr__(self) -> str:
        return f"<ChunkBlock: {self.chunks} chunks of {self.tokens} tokens, {self.nbytes / 2**20:.1f} MiB>"


ChunkRow = tuple[ChunkBlock, int]  # one chunk: its block, and its row there


@dataclass(frozen=True)
class ChunkRun:
    """Consecutive chunks of one block: rows `first` to `last - 1`."""

    block: ChunkBlock
    first: int
    last: int

    @property
    def chunks(self) -> int:
        return self.last - self.first

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Views `[chunks, kv_heads, tokens, head_dim]` of one layer's keys and values."""
        rows = slice(self.first, self.last)
        return self.block.keys[index, rows], self.block.values[index, rows]

    def narrow(self, start: int, stop: int) -> ChunkRun:
        """The chunks `start` to `stop - 1` of this run."""
        return ChunkRun(self.block, self.first + start, self.first + stop)


def runs_of(rows: Sequence[ChunkRow]) -> list[ChunkRun]:
    """Chunks in the given order; neighbours in one block become one run."""
    runs: list[ChunkRun] = []
    for block, row in rows:
        if runs and runs[-1].block is block and runs[-1].last == row:
            runs[-1] = ChunkRun(block, runs[-1].first, row + 1)
        else:
            runs.append(ChunkRun(block, row, row + 1))
    return runs


@dataclass(frozen=True, eq=False)
class ChunkSet:
    """The chunks that questions are asked of, in the order of their documents.

    Attributes:
        runs: the chunks as they lie in their blocks, so that a step goes through few runs whatever the order of the
            documents and the lengths of their last chunks
        order: slot of each chunk of `runs`: its position among the chunks of the documents, from 0
    """

    runs: tuple[ChunkRun, ...]
    order: tuple[int, ...]

    @classmethod
    def of(cls, rows: Sequence[ChunkRow]) -> ChunkSet:
        """From rows in the order of the documents. A chunk that occurs again starts another run over its block."""
        blocks = {id(block): number for number, (block, _) in reversed([*enumerate(rows)])}
        seen: Counter[tuple[int, int]] = Counter()
        positions: list[tuple[int, int, int]] = []
        for block, row in rows:
            number = blocks[id(block)]
            positions.append((number, seen[number, row], row))
            seen[number, row] += 1
        order = sorted(range(len(rows)), key=positions.__getitem__)
        return cls(tuple(runs_of([rows[chunk] for chunk in order])), tuple(order))

    def __len__(self) -> int:
        return len(self.order)

    def __repr__(self) -> str:
        return f"<ChunkSet: {len(self)} chunks, {sum(run.chunks * run.block.tokens for run in self.runs)} tokens>"

    @cached_property
    def lengths(self) -> Tensor:
        """`[chunks]`, tokens of each chunk of `runs`, on the device of the blocks."""
        return self._on_device([run.block.tokens for run in self.runs for _ in range(run.chunks)])

    @cached_property
    def slots(self) -> Tensor:
        """`[chunks]`, `order` on the device of the blocks."""
        return self._on_device(self.order)

    @cached_property
    def rows(self) -> list[ChunkRow]:
        """Block and row of each chunk, in the order of the documents."""
        along = [(run.block, row) for run in self.runs for row in range(run.first, run.last)]
        found = dict(zip(self.order, along, strict=True))
        return [found[slot] for slot in range(len(self))]

    def part(self, start: int, stop: int) -> ChunkSet:
        """The chunks `start` to `stop - 1`, counted along `runs`, in this order."""
        return ChunkSet(tuple(self.between(start, stop)), tuple(range(stop - start)))

    def between(self, start: int, stop: int) -> list[ChunkRun]:
        """The runs of the chunks `start` to `stop - 1`, counted along `runs`."""
        found, offset = [], 0
        for run in self.runs:
            low, high = max(start - offset, 0), min(stop - offset, run.chunks)
            if low < high:
                found.append(run.narrow(low, high))
            offset += run.chunks
        return found

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.runs[0].block.keys.device if self.runs else None)
