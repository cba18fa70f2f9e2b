"""Keys and values of chunks: written once, in place, and never copied or changed by a question.

A chunk's keys and values depend on nothing but the chunk (paper §2.2), so they serve any number of questions at the
same time. What a question appends to them lies in an `AppendedCache` of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor

from focus_core.cache import int8
from focus_core.cache.bus import Bus


@dataclass(frozen=True, eq=False)
class ChunkBlock:
    """Keys and values of equally long chunks.

    Attributes:
        keys: `[layers, chunks, kv_heads, tokens, head_dim]`; a method that reads no chunk in the model's last layer
            (FocusLLM: of a candidate only keys and values are used) leaves that layer out
        values: like `keys`
        key_scales: where both are int8, `[layers, chunks, kv_heads, 1, head_dim]` of the model's dtype; else `None`
        value_scales: likewise, `[layers, chunks, kv_heads, tokens, 1]`
        bus: where they lie in host memory, the way to the device that reads them; else `None`
    """

    keys: Tensor
    values: Tensor
    key_scales: Tensor | None = None
    value_scales: Tensor | None = None
    bus: Bus | None = field(default=None, kw_only=True)

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

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, Tensor], *, bus: Bus | None = None) -> ChunkBlock:
        """Of what `tensors` of another block gives, by the same names."""
        scales = tensors.get("key_scales"), tensors.get("value_scales")
        return cls(tensors["keys"], tensors["values"], *scales, bus=bus)

    def on_device(self, chunks: int, device: torch.device, *, layers: int) -> ChunkBlock:
        """A block for chunks of the same kind, not written yet, that is read where it lies."""
        return ChunkBlock.of_tensors(self._empty(layers, chunks, device))

    def in_host_memory(self, chunks: int, bus: Bus) -> ChunkBlock:
        """A block for chunks of the same kind, not written yet, from which a bus copies to the device."""
        states = self._empty(self.layers, chunks, torch.device("cpu"))
        block = ChunkBlock.of_tensors(states, bus=bus)
        bus.pin(block, [*states.values()])
        return block

    def _empty(self, layers: int, chunks: int, device: torch.device) -> dict[str, Tensor]:
        return {
            name: torch.empty((layers, chunks, *of.shape[2:]), dtype=of.dtype, device=device)
            for name, of in self.tensors.items()
        }

    def copy_row(self, row: int, other: ChunkBlock, of: int) -> None:
        """Write row `row` as row `of` of another block of the same kind; of its layers, the first ones."""
        for name, states in self.tensors.items():
            for mine, theirs in zip(states, other.tensors[name], strict=False):  # a layer's row is contiguous
                mine[row].copy_(theirs[of])

    @property
    def device(self) -> torch.device:
        """Where attention reads it."""
        return self.keys.device if self.bus is None else self.bus.device

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
        return self.block.key_scales is not None or self.block.bus is not None

    @property
    def at_once(self) -> int:
        """Chunks, at least one, that one `fetch` should bring; of a block that lies on the device, all."""
        of_chunk, bus = self.block.nbytes // (self.block.layers * self.block.chunks), self.block.bus
        return self.chunks if bus is None else max(1, bus.copy_bytes // of_chunk)

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """One layer's keys and values `[chunks, kv_heads, tokens, head_dim]`, in the dtype of the model.

        Views, unless the block is quantised or lies in host memory: narrow the run first to the chunks that are needed
        at a time.
        """
        return self._exact([states.to(self.block.device) for states in self._states(index)])

    def fetch(self, index: int) -> Callable[[], tuple[Tensor, Tensor]]:
        """Like `layer`, in two parts: from host memory it begins to copy, and the result waits for the copy.

        The copy lasts until the second `fetch` over the same bus after it.
        """
        if self.block.bus is None:
            return partial(self.layer, index)
        copied = self.block.bus.fetch(self._states(index))
        return lambda: self._exact(copied())

    def _states(self, index: int) -> list[Tensor]:
        """One layer's rows as they are kept, in the order of `ChunkBlock.tensors`."""
        return [states[index, self.first : self.last] for states in self.block.tensors.values()]

    @staticmethod
    def _exact(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        keys, values, *scales = states
        if not scales:
            return keys, values
        return int8.dequantized(keys, scales[0]), int8.dequantized(values, scales[1])

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
        return torch.tensor(numbers, dtype=torch.long, device=self.runs[0].block.device if self.runs else None)
