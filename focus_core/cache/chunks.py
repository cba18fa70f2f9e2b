"""The keys and values of chunks: written once, in place, and never copied.

What a chunk's keys and values are depends on nothing but the chunk (paper §2.2), so a `ChunkBlock` is immutable once
filled and may serve any number of questions. What a question adds behind the chunks, the dynamic prompt and the
answer so far, lives in a `PromptCache` of its own.

The last layer is missing on purpose: of a candidate only keys and values are used, and those of layer l are made
before layer l's own attention. Nothing ever reads what the chunks' last layer would hold.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

_PROMPT_STEP = 32  # columns of a prompt are reserved in multiples of this: a copy every so many tokens


@dataclass(frozen=True, eq=False)
class ChunkBlock:
    """Keys and values of equally long chunks.

    Attributes:
        keys: `[layers - 1, chunks, kv_heads, tokens, head_dim]`
        values: like `keys`
    """

    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, shape: tuple[int, int, int, int, int], *, dtype: torch.dtype, device: torch.device) -> ChunkBlock:
        return cls(torch.empty(shape, dtype=dtype, device=device), torch.empty(shape, dtype=dtype, device=device))

    @property
    def chunks(self) -> int:
        return int(self.keys.shape[1])

    @property
    def tokens(self) -> int:
        return int(self.keys.shape[3])

    @property
    def nbytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()


ChunkRow = tuple[ChunkBlock, int]  # where one chunk lies


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
    def layers(self) -> int:
        """Layers with stored keys and values; the model has one more."""
        return int(self.block.keys.shape[0])

    def layer(self, index: int) -> tuple[Tensor, Tensor]:
        """Views `[chunks, kv_heads, tokens, head_dim]` of one layer's keys and values."""
        rows = slice(self.first, self.last)
        return self.block.keys[index, rows], self.block.values[index, rows]

    def narrow(self, start: int, stop: int) -> ChunkRun:
        """The chunks `start` to `stop - 1` of this run."""
        return ChunkRun(self.block, self.first + start, self.first + stop)


@dataclass
class PromptCache:
    """Keys and values of what follows every chunk: the dynamic prompt and the tokens generated so far.

    Attributes:
        keys: of each layer but the last, `[chunks * questions, kv_heads, capacity, head_dim]`, chunk-major
        values: like `keys`
        length: columns in use. The last of them is the candidate's, which the next step overwrites, because it
            reads that token again as an ordinary one
        padding: `[questions]`, unused columns at the left of each question
        tokens_per_pass: how many tokens pass the model together, settled once: another division rounds otherwise,
            and on a GPU it is a question to the driver
    """

    keys: list[Tensor]
    values: list[Tensor]
    padding: Tensor
    tokens_per_pass: int
    length: int = 0

    @classmethod
    def empty(
        cls,
        layers: int,
        shape: tuple[int, int, int],
        *,
        dtype: torch.dtype,
        device: torch.device,
        padding: Tensor,
        tokens_per_pass: int,
    ) -> PromptCache:
        """Without room yet; `shape` is rows, kv_heads, head_dim."""
        rows, kv_heads, dim = shape
        keys, values = ([torch.empty(rows, kv_heads, 0, dim, dtype=dtype, device=device)] * layers for _ in range(2))
        return cls(keys, values, padding.to(device), tokens_per_pass)

    @property
    def nbytes(self) -> int:
        return sum(states.nbytes for states in (*self.keys, *self.values))

    def reserve(self, columns: int) -> None:
        """Set `length` to `columns`, and make room where there is none.

        Room is made in steps, so that few calls copy, and layer by layer, so that never more than one layer's keys
        exist twice.
        """
        if columns > self.keys[0].shape[2]:
            capacity = (columns // _PROMPT_STEP + 1) * _PROMPT_STEP
            for states in (self.keys, self.values):
                for layer, old in enumerate(states):
                    states[layer] = old.new_empty(*old.shape[:2], capacity, old.shape[3])
                    states[layer][:, :, : self.length] = old[:, :, : self.length]
        self.length = columns

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest columns, `[rows, kv_heads, new, head_dim]`, and return all of them.

        The last layer's are not kept, and come back as they are.
        """
        if layer == len(self.keys):
            return keys, values
        columns = slice(self.length - keys.shape[2], self.length)
        self.keys[layer][:, :, columns], self.values[layer][:, :, columns] = keys, values
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def rows(self, rows: slice) -> PromptCache:
        """A view of some of the rows."""
        keys, values = ([layer[rows] for layer in states] for states in (self.keys, self.values))
        return PromptCache(keys, values, self.padding, self.tokens_per_pass, self.length)

    def select_questions(self, keep: Tensor, unused: int) -> None:
        """Forget the questions whose indices are not in `keep`, layer by layer as in `reserve`.

        Args:
            unused: columns at the left that are padding in all that stay
        """
        questions, keep = len(self.padding), keep.to(self.padding.device)
        for states in (self.keys, self.values):
            for layer, old in enumerate(states):
                states[layer] = old.unflatten(0, (-1, questions))[:, keep, :, unused:].flatten(0, 1)
        self.padding = self.padding[keep] - unused
        self.length -= unused


def runs_of(rows: Sequence[ChunkRow]) -> list[ChunkRun]:
    """Chunks in the given order; neighbours that lie side by side in one block become one run."""
    runs: list[ChunkRun] = []
    for block, row in rows:
        if runs and runs[-1].block is block and runs[-1].last == row:
            runs[-1] = ChunkRun(block, runs[-1].first, row + 1)
        else:
            runs.append(ChunkRun(block, row, row + 1))
    return runs


@dataclass
class ChunkCache:
    """All chunks that a question is asked of, and what the question has appended to them so far.

    Attributes:
        runs: the chunks as they lie in their blocks, so that a step has few runs to go through, whatever the order
            of the documents and the lengths of their last chunks
        order: which chunk of the documents each one is, counted from 0: the slot of its candidate
    """

    runs: Sequence[ChunkRun]
    order: Sequence[int]
    prompt: PromptCache | None = field(default=None)

    @classmethod
    def from_rows(cls, rows: Sequence[ChunkRow]) -> ChunkCache:
        """Chunks in the order of the documents; those that come again lie behind their block's others, as a run."""
        blocks = {id(block): number for number, (block, _) in reversed([*enumerate(rows)])}
        seen: Counter[tuple[int, int]] = Counter()
        places: list[tuple[int, int, int]] = []
        for block, row in rows:
            number = blocks[id(block)]
            places.append((number, seen[number, row], row))
            seen[number, row] += 1
        order = sorted(range(len(rows)), key=places.__getitem__)
        return cls(runs_of([rows[chunk] for chunk in order]), order)

    @property
    def chunks(self) -> int:
        return sum(run.chunks for run in self.runs)

    @cached_property
    def lengths(self) -> Tensor:
        """`[chunks]`, tokens of each chunk as they lie in their blocks, on the device of those."""
        return self._on_device([run.block.tokens for run in self.runs for _ in range(run.chunks)])

    @cached_property
    def slots(self) -> Tensor:
        """`[chunks]`, `order` on the device of the blocks."""
        return self._on_device(self.order)

    def rows(self) -> list[ChunkRow]:
        """Block and row of each chunk, as `from_rows` takes them."""
        stored = ((run.block, row) for run in self.runs for row in range(run.first, run.last))
        by_chunk = dict(zip(self.order, stored, strict=True))
        return [by_chunk[chunk] for chunk in range(self.chunks)]

    def _on_device(self, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers, dtype=torch.long, device=self.runs[0].block.keys.device if self.runs else None)

    def between(self, start: int, stop: int) -> list[ChunkRun]:
        """The runs that hold the chunks `start` to `stop - 1`, as they lie in their blocks."""
        found, offset = [], 0
        for run in self.runs:
            low, high = max(start - offset, 0), min(stop - offset, run.chunks)
            if low < high:
                found.append(run.narrow(low, high))
            offset += run.chunks
        return found

    def select_questions(self, keep: Tensor, unused: int) -> None:
        """Forget the questions whose indices are not in `keep`, and columns that are padding in all that stay."""
        assert self.prompt is not None
        self.prompt.select_questions(keep, unused)
