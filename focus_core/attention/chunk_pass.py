"""Attention of appended tokens: over their chunk's stored keys and values and over the tokens appended before them.

The two lie in different tensors, so that no chunk is copied for a question. At a decode step, which
only reads, scores over both are computed apart and share one softmax; query heads of a group, and the questions of a
batch, are folded into the query dimension, so that keys and values are read once for all of them and grouped heads are
never expanded. The dynamic prompt comes with many tokens, which compute so much over a chunk that a short-lived copy of
a few chunks costs nothing: they take torch's fused attention.

Chunks that lie in host memory are copied to the device a tile at a time, and the copy of the next tile, or of the next
layer's first one, begins before the current one is computed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from focus_core.attention.passes import KeysAndValues

CHUNK_ATTENTION = "focusllm_chunks"


# Scores of a tile in float32: on a CPU 16 MiB, about what a last-level cache keeps; on a GPU 256 MiB, so that few
# tiles have to be started (not measured).
_SCORES_PER_TILE = {"cpu": 1 << 22, "cuda": 1 << 26}
# Numbers in the keys of a tile, where reading them makes a copy: on a CPU 4 MiB in float32, and as much for the values.
# Not measured on a GPU.
_COPIED_PER_TILE = {"cpu": 1 << 20, "cuda": 1 << 26}
_MANY_TOKENS = 16  # from this number on, a copy of the keys and values costs less than attention gains


Fetched = Callable[[], KeysAndValues]  # gives a layer's keys and values, once they are on the device


class ChunkLayers(Protocol):
    """Chunks whose keys and values lie side by side (see `cache.chunks.ChunkRun`)."""

    @property
    def chunks(self) -> int: ...

    @property
    def tokens(self) -> int: ...

    @property
    def copied(self) -> bool: ...

    @property
    def at_once(self) -> int: ...

    def fetch(self, index: int) -> Fetched: ...

    def narrow(self, start: int, stop: int) -> ChunkLayers: ...


@dataclass(frozen=True)
class ChunkPass:
    """One pass over tokens that are appended to chunks: what attention needs besides hidden states.

    Attributes:
        runs: the chunks of this pass, in order
        questions: number of questions appended to every chunk; rows are chunk-major
        candidates: how many tokens at the end of each row are candidates
        visible: `[questions, new tokens, prompt tokens]`, which of the prompt (new tokens included) each new
            token sees; True is visible. A chunk is always visible as a whole.
        layers: layers that attend; in later ones only keys and values of the new tokens are used
    """

    runs: Sequence[ChunkLayers]
    questions: int
    candidates: int
    visible: Tensor
    layers: int
    _ahead: dict[tuple[ChunkLayers, int], Fetched] = field(default_factory=dict, init=False, repr=False)

    @property
    def wanted(self) -> Tensor | None:
        """None means every token. The pass stops before the last layer; if it cannot stop, the result is unused."""
        return None

    @cached_property
    def bias(self) -> Tensor:
        """`visible` as what is added to scores, `[questions, new tokens, prompt tokens]`."""
        return as_bias(self.visible)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor:
        """Attention of each new token over its chunk and prompt, `[rows, heads, new, head_dim]`.

        Args:
            query: of the new tokens, scaled, `[rows, heads, new, head_dim]`
            key: of the whole prompt, `[rows, kv_heads, prompt, head_dim]`; `value` likewise
            softcap: bound of the scores (Gemma 2)
        """
        if layer >= self.layers:
            return torch.zeros_like(query)
        new = query.shape[2]
        attend = partial(_attend_in_place, softcap=softcap) if new < _MANY_TOKENS or softcap else _attend_to_copies
        tiles = list(self._tiles(query, key))
        attended, row = [], 0
        for number, tile in enumerate(tiles):
            rows = slice(row, row + tile.chunks * self.questions)
            chunk = self._fetched(tile, layer)
            if number + 1 < len(tiles):
                self._fetch(tiles[number + 1], layer)
            elif layer + 1 < self.layers:
                self._fetch(tiles[0], layer + 1)
            attended.append(attend(query[rows], chunk, (key[rows], value[rows]), self.bias))
            row = rows.stop
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    def _tiles(self, query: Tensor, key: Tensor) -> Iterator[ChunkLayers]:
        """Chunks that are computed together; the same in every layer."""
        for run in self.runs:
            step = _chunks_per_tile(query, self.questions, run.tokens + key.shape[2])
            if run.copied:
                step = min(step, run.at_once, _copied_per_tile(key, run.tokens))
            for start in range(0, run.chunks, step):
                yield run.narrow(start, min(start + step, run.chunks))

    def _fetch(self, tile: ChunkLayers, layer: int) -> None:
        self._ahead[tile, layer] = tile.fetch(layer)

    def _fetched(self, tile: ChunkLayers, layer: int) -> KeysAndValues:
        if (tile, layer) not in self._ahead:  # the first of a pass
            self._fetch(tile, layer)
        return self._ahead.pop((tile, layer))()


class AttendingPass(Protocol):
    """A pass that does its own attention: `ChunkPass`, or `StepPass` of `step.py`."""

    @property
    def candidates(self) -> int: ...

    @property
    def wanted(self) -> Tensor | None: ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor: ...


# The one piece of ambient state: some families (StableLM) drop keyword arguments on the way to their attention.
_active_pass: ContextVar[AttendingPass] = ContextVar("chunk_pass")


@contextmanager
def active_pass(chunk_pass: AttendingPass) -> Iterator[None]:
    """In this block, this thread's forward passes attend as `chunk_pass` says. Never `yield` to a caller inside."""
    token = _active_pass.set(chunk_pass)
    try:
        yield
    finally:
        _active_pass.reset(token)


def candidates_in_pass() -> int:
    """How many tokens at the end of each row are candidates."""
    return _active_pass.get().candidates


def wanted_in_pass() -> Tensor | None:
    """Tokens of each row whose last layer is computed; None for all of them."""
    return _active_pass.get().wanted


def _chunk_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of `chunk_model`, in the form that transformers calls; masks come from the pass."""
    query = query * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    attended = _active_pass.get().attend(cast(int, module.layer_idx), query, key, value, softcap)
    return attended.transpose(1, 2), None


def as_bias(visible: Tensor) -> Tensor:
    """0 where `visible` is True and -inf elsewhere, float32: what is added to scores."""
    zeros = torch.zeros(visible.shape, dtype=torch.float32, device=visible.device)
    return zeros.masked_fill_(~visible, float("-inf"))


def _chunks_per_tile(query: Tensor, questions: int, visible_tokens: int) -> int:
    scores_per_chunk = questions * query.shape[1] * query.shape[2] * visible_tokens
    return max(1, _SCORES_PER_TILE.get(query.device.type, _SCORES_PER_TILE["cpu"]) // scores_per_chunk)


def _copied_per_tile(key: Tensor, tokens: int) -> int:
    keys_per_chunk = key.shape[1] * tokens * key.shape[3]
    return max(1, _COPIED_PER_TILE.get(key.device.type, _COPIED_PER_TILE["cpu"]) // keys_per_chunk)


def _attend_in_place(
    query: Tensor, chunk: KeysAndValues, prompt: KeysAndValues, bias: Tensor, *, softcap: float | None
) -> Tensor:
    """One softmax over chunk and prompt, which are read where they lie.

    Args:
        query: scaled, `[chunks * questions, heads, new, head_dim]`
        chunk: keys and values `[chunks, kv_heads, tokens, head_dim]`
        prompt: keys and values `[chunks * questions, kv_heads, prompt, head_dim]`
        bias: `[questions, new, prompt]`, 0 or -inf
        softcap: bound of the scores (Gemma 2)

    Returns:
        `[chunks * questions, heads, new, head_dim]`
    """
    (chunk_keys, chunk_values), (prompt_keys, prompt_values) = chunk, prompt
    chunks, kv_heads, tokens, dim = chunk_keys.shape
    questions, new, prompt_tokens = bias.shape
    # [chunks, questions, kv_heads, group * new, dim]: heads of a group share their keys
    grouped = query.reshape(chunks, questions, kv_heads, -1, dim)

    def fold(states: Tensor) -> Tensor:  # questions move beside the queries, so that a chunk is read once for all
        return states.transpose(1, 2).flatten(2, 3)

    def unfold(states: Tensor) -> Tensor:
        return states.unflatten(2, (questions, -1)).transpose(1, 2)

    prompt_keys, prompt_values = (s.unflatten(0, (chunks, questions)) for s in (prompt_keys, prompt_values))
    folded = fold(grouped)
    scores = query.new_empty(*folded.shape[:3], tokens + prompt_tokens, dtype=torch.float32)
    scores[..., :tokens] = folded @ chunk_keys.transpose(-1, -2)
    scores[..., tokens:] = fold(grouped @ prompt_keys.transpose(-1, -2))
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    scores.unflatten(2, (questions, -1, new))[..., tokens:] += bias[:, None]
    weights = torch.softmax(scores, dim=-1).to(query.dtype)
    attended = unfold(weights[..., :tokens] @ chunk_values) + unfold(weights[..., tokens:]) @ prompt_values
    return attended.reshape(query.shape)


def _attend_to_copies(query: Tensor, chunk: KeysAndValues, prompt: KeysAndValues, bias: Tensor) -> Tensor:
    """The same with torch's fused attention, over a copy of a tile's keys and values.

    Takes and returns what `_attend_in_place` does. Many queries share the copy, and no scores are held.
    """
    chunks, kv_heads, tokens, dim = chunk[0].shape
    questions = len(bias)
    keys, values = (
        torch.cat([of_chunk if questions == 1 else of_chunk.repeat_interleave(questions, dim=0), of_prompt], dim=2)
        for of_chunk, of_prompt in zip(chunk, prompt, strict=True)
    )
    grouped = query.reshape(len(query), kv_heads, -1, dim)  # heads of a group share their keys
    group = query.shape[1] // kv_heads
    # One question's mask is the same for every chunk.
    mask = nn.functional.pad(bias, (tokens, 0)).repeat(chunks if questions > 1 else 1, group, 1)
    attended = nn.functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask[:, None].to(query.dtype), scale=1.0
    )
    return attended.reshape(query.shape)


# Registered for attention only: without a mask function of the same name transformers makes no mask, as we want.
AttentionInterface.register(CHUNK_ATTENTION, _chunk_attention)
