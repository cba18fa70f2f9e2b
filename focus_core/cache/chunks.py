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

from focus_core.cache import int8


@dataclass(frozen=True, eq=False)
class ChunkBlock:
    """Keys and values of equally long chunks.

    Attributes:
        keys: `[layers, chunks, kv_heads, tokens, head_dim]`; a method that reads no chunk in the model's last layer
            (FocusLLM: of a candidate only keys and values are used) leaves that layer out
        values: like `keys`
        key_scales: where both are int8, `[layers, chunks, kv_heads, 1, head_dim]` of the model's dtype; else `None`
        value_scales: likewise, `[layers, chunks, kv_heads, tokens, 1]`
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None

    @classmethod
    def empty(
        cls,
        shape: tuple[int, int, int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        kv_dtype: str | None = None,
    ) -> ChunkBlock:
        """Not written yet; `dtype` is the model's, `kv_dtype` as in `FocusConfig`."""
        layers, chunks, kv_heads, tokens, dim = shape
        kept = dtype if kv_dtype is None else torch.int8
        scales = () if kv_dtype is None else ((layers, chunks, kv_heads, 1, dim), (layers, chunks, kv_heads, tokens, 1))
        return cls(
            *(torch.empty(shape, dtype=kept, device=device) for _ in range(2)),
            *(torch.empty(of_scales, dtype=dtype, device=device) for of_scales in scales),
        )

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
    def tensors(self) -> dict[str, Tensor]:
        """All that the block consists of, by the name of the attribute."""
        named = {name: getattr(self, name) for name in ("keys", "values", "key_scales", "value_scales")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    @property
    def nbytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.tensors.values())

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

    @property
    def tokens(self) -> int:
        """Tokens of each chunk."""
        return self.block.tokens

    @property
    def copied(self) -> bool:
        """Whether `layer` makes a copy."""
        return self.block.key_scales is not None

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values `[chunks, kv_heads, tokens, head_dim]`, in the dtype of the model.

        Views, unless the block is quantised: narrow the run first to the chunks that are needed at a time.
        """
        rows, block = (index, slice(self.first, self.last)), self.block
        keys, values = block.keys[rows], block.values[rows]
        if block.key_scales is None or block.value_scales is None:
            return keys, values
        return int8.dequantized(keys, block.key_scales[rows]), int8.dequantized(values, block.value_scales[rows])

    def write(self, index: int, keys: Tensor, values: Tensor) -> None:
        """Set one layer's keys and values, `[chunks, kv_heads, tokens, head_dim]`."""
        rows, block = (index, slice(self.first, self.last)), self.block
        if block.key_scales is None or block.value_scales is None:
            block.keys[rows], block.values[rows] = keys, values
            return
        block.keys[rows], block.key_scales[rows] = int8.quantized(keys, int8.KEY_SCALE_DIM)
        block.values[rows], block.value_scales[rows] = int8.quantized(values, int8.VALUE_SCALE_DIM)

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
