"""The floor under a measured time: the least computing and reading that the method needs, at the machine's rates.

A pass cannot end before its multiplications are done, nor before everything it reads has been read once:

    floor of a pass = max(FLOPs / matrix rate, bytes / bandwidth)

and passes that need each other's results add up. Counted are the matrix products of linear maps and of attention (a
multiplication and an addition are two FLOPs), the weights, and the keys and values of caches. Norms, rotations,
softmax, activations and writing cost time too but are left out: a floor must not be too high.

The method is counted as it is defined, not as we wrote it. Of a chunk's tokens only keys and values are ever used, so
nothing after those of the last layer but one is needed; of the candidate those of the last layer too; of the local
context the whole last layer for the last token only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import LlamaConfig

from benchmarks.machine import Rates


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama-like decoder."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    vocabulary: int

    def config(self, window: int) -> LlamaConfig:
        """A model of this shape that knows `window` positions."""
        return LlamaConfig(
            hidden_size=self.hidden,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            intermediate_size=self.intermediate,
            vocab_size=self.vocabulary,
            max_position_embeddings=window,
            rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        )

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def keys_values(self) -> int:
        """Weights that make the keys and values of a layer."""
        return 2 * self.hidden * self.kv_heads * self.head_dim

    @property
    def attention(self) -> int:
        """Weights of a layer's four attention maps."""
        return self.keys_values + 2 * self.hidden * self.hidden

    @property
    def layer(self) -> int:
        """Weights of a layer."""
        return self.attention + 3 * self.hidden * self.intermediate

    def pairs(self, count: float) -> float:
        """FLOPs of one layer's attention over this number of pairs of a query and a key."""
        return 4 * self.hidden * count

    def cached(self, tokens: int) -> int:
        """Elements that one layer's cache holds of this number of tokens."""
        return 2 * self.kv_heads * self.head_dim * tokens


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes of one pass."""

    flops: float
    bytes: float


def seconds(passes: Sequence[Work], rates: Rates) -> float:
    """The floor of passes that follow each other."""
    return sum(max(work.flops / rates.flops, work.bytes / rates.bytes) for work in passes)


# --- the method -----------------------------------------------------------------------------------------------------


def prefill(s: Shape, itemsize: int, chunks: Sequence[int]) -> Work:
    """Keys and values of all layers but the last, for every token of every chunk."""
    full = s.layers - 2
    linear = 2 * sum(chunks) * (full * s.layer + s.keys_values)
    pairs = sum(_causal(tokens) for tokens in chunks)
    return Work(linear + full * s.pairs(pairs), itemsize * (full * s.layer + s.keys_values))


def candidates(s: Shape, itemsize: int, chunks: Sequence[int], new: int, before: int) -> Work:
    """`new` tokens appended to every chunk and to `before` earlier tokens of the dynamic prompt; the last condenses."""
    full, rows = s.layers - 2, len(chunks)
    ordinary = 2 * rows * (new - 1) * (full * s.layer + s.keys_values)
    candidate = 2 * rows * ((full + 1) * s.layer + s.keys_values)
    seen_by_candidate = sum(chunks) + rows * (before + new)
    seen_by_others = (new - 1) * (sum(chunks) + rows * before) + rows * _causal(new - 1)
    attention = full * s.pairs(seen_by_others) + (full + 1) * s.pairs(seen_by_candidate)
    # In the last layer but one, ordinary tokens need nothing but the maps of keys and values.
    weights = full * (s.layer + s.attention) + s.layer + 2 * s.keys_values
    read = (full + 1) * s.cached(sum(chunks) + rows * before)
    return Work(ordinary + candidate + attention, itemsize * (weights + read))


def local_pass(s: Shape, itemsize: int, slots: int, tokens: int) -> Work:
    """Local context after the memory, up to the next token's logits."""
    full, head = s.layers - 1, s.hidden * s.vocabulary
    last = s.keys_values * tokens + (s.layer - s.keys_values)
    linear = 2 * (full * s.layer * tokens + last + head)
    attention = full * s.pairs(_causal(tokens) + tokens * slots) + s.pairs(tokens + slots)
    return Work(linear + attention, itemsize * (s.layers * (s.layer + s.cached(slots)) + head))


def together(s: Shape, itemsize: int, of_candidates: Work, of_local: Work) -> Work:
    """`candidates` and `local_pass` in one pass, which reads the model's own weights once for both."""
    full = s.layers - 2
    shared = full * s.layer + (s.layer - s.attention) + s.keys_values
    return Work(of_candidates.flops + of_local.flops, of_candidates.bytes + of_local.bytes - itemsize * shared)


# --- the alternatives -----------------------------------------------------------------------------------------------


def one_chunk(s: Shape, itemsize: int, new: int, before: int) -> Work:
    """The authors' way: `new` tokens of one row after `before` cached ones, the last of them a candidate."""
    linear = 2 * new * s.layers * s.layer
    attention = s.layers * s.pairs(new * before + _causal(new))
    return Work(linear + attention, itemsize * s.layers * (s.layer + s.attention + s.cached(before)))


def full_attention(s: Shape, itemsize: int, new: int, before: int) -> Work:
    """The plain model: `new` tokens after `before` cached ones, up to the next token's logits."""
    head = s.hidden * s.vocabulary
    linear = 2 * (new * s.layers * s.layer + head)
    attention = s.layers * s.pairs(new * before + _causal(new))
    return Work(linear + attention, itemsize * (s.layers * (s.layer + s.cached(before)) + head))


def _causal(tokens: int) -> float:
    return tokens * (tokens + 1) / 2
