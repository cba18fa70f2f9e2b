"""Keys and values of the tokens that questions append to chunks: dynamic prompts and the answers so far.

They belong to the questions, never to the chunks: the caller holds them, can keep some of the questions and join
others, and the chunks' own keys and values stay as they were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_COLUMNS = 32  # capacity grows in multiples of this, so that one call in 32 copies


@dataclass
class AppendedCache:
    """What a batch of questions has appended to every chunk so far.

    Attributes:
        keys: of each layer, `[chunks * questions, kv_heads, capacity, head_dim]`, chunk-major
        values: like `keys`
        padding: `[questions]`, unused columns at the left of each question
        tokens_per_pass: tokens that pass the model together. Fixed at the first call: regrouping changes rounding, and
            querying free GPU memory is slow
        length: columns in use. The last one is the candidate's, and the next step overwrites it: it appends that
            token again, as an ordinary one
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
        padding: Tensor,
        dtype: torch.dtype,
        device: torch.device,
        tokens_per_pass: int,
    ) -> AppendedCache:
        """Without any columns; `shape` is rows, kv_heads, head_dim."""
        rows, kv_heads, dim = shape
        keys, values = ([torch.empty(rows, kv_heads, 0, dim, dtype=dtype, device=device)] * layers for _ in range(2))
        return cls(keys, values, padding.to(device), tokens_per_pass)

    @property
    def questions(self) -> int:
        return len(self.padding)

    @property
    def nbytes(self) -> int:
        return sum(states.nbytes for states in (*self.keys, *self.values))

    def reserve(self, columns: int) -> None:
        """Set `length` to `columns`, with capacity for them.

        Layer by layer, so that no more than one layer's keys exist twice.
        """
        if columns > self.keys[0].shape[2]:
            capacity = _capacity(columns)
            for states in (self.keys, self.values):
                for layer, old in enumerate(states):
                    states[layer] = old.new_empty(*old.shape[:2], capacity, old.shape[3])
                    states[layer][:, :, : self.length] = old[:, :, : self.length]
        self.length = columns

    def store(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Write the newest columns, `[rows, kv_heads, new, head_dim]`, and return all of them.

        Those of a layer that is not kept come back unchanged.
        """
        if layer == len(self.keys):
            return keys, values
        columns = slice(self.length - keys.shape[2], self.length)
        self.keys[layer][:, :, columns], self.values[layer][:, :, columns] = keys, values
        return self.keys[layer][:, :, : self.length], self.values[layer][:, :, : self.length]

    def rows(self, rows: slice) -> AppendedCache:
        """A view of some of the rows."""
        keys, values = ([layer[rows] for layer in states] for states in (self.keys, self.values))
        return AppendedCache(keys, values, self.padding, self.tokens_per_pass, self.length)

    def keep(self, questions: Sequence[int], unused: int = 0) -> None:
        """Drop all questions but these, layer by layer as in `reserve`.

        Args:
            unused: columns at the left that are padding in all that stay
        """
        index = torch.tensor(questions, device=self.padding.device)
        for states in (self.keys, self.values):
            for layer, old in enumerate(states):
                states[layer] = old.unflatten(0, (-1, self.questions))[:, index, :, unused:].flatten(0, 1)
        self.padding = self.padding[index] - unused
        self.length -= unused

    def join(self, other: AppendedCache) -> None:
        """Add the questions of `other`, appended to the same chunks; the shorter ones get padding at the left."""
        length = max(self.length, other.length)
        parts = [(cache, length - cache.length) for cache in (self, other)]
        for mine, theirs in ((self.keys, other.keys), (self.values, other.values)):
            for layer, pair in enumerate(zip(mine, theirs, strict=True)):
                mine[layer] = _side_by_side(pair, parts, length)
        self.padding = torch.cat([cache.padding + shift for cache, shift in parts])
        self.length = length


def _side_by_side(states: tuple[Tensor, Tensor], parts: Sequence[tuple[AppendedCache, int]], length: int) -> Tensor:
    """One layer's keys (or values) of two caches, `[chunks * questions, …]` each, in one tensor of `length` columns."""
    questions = [cache.questions for cache, _ in parts]
    chunks = len(states[0]) // questions[0]
    _, kv_heads, _, dim = states[0].shape
    # Zeros, because a hidden column still takes part in 0 × value.
    joined = states[0].new_zeros(chunks, sum(questions), kv_heads, _capacity(length), dim)
    first = 0
    for old, (cache, shift) in zip(states, parts, strict=True):
        into = joined[:, first : first + cache.questions, :, shift:length]
        into.copy_(old[:, :, : cache.length].unflatten(0, (chunks, cache.questions)))
        first += cache.questions
    return joined.flatten(0, 1)


def _capacity(columns: int) -> int:
    return (columns // _COLUMNS + 1) * _COLUMNS
