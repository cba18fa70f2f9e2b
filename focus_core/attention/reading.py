"""How candidates read: attention over a chunk's stored keys and values and over the dynamic prompt behind it.

The two lie in different tensors, so that chunks are never copied to make room for a question. Scores over both are
computed apart and share one softmax. Query heads of a group, and the questions of a batch, are folded into the query
dimension, so that keys and values are read once for all of them and grouped heads are never expanded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

READER_ATTENTION = "focusllm_reader"

_SCORES_PER_TILE = 1 << 22  # float32 scores held at a time, 16 MiB: about what a last-level cache keeps


class ChunkLayers(Protocol):
    """Chunks whose keys and values lie side by side (see `chunk_cache.ChunkRun`)."""

    @property
    def chunks(self) -> int: ...

    @property
    def layers(self) -> int: ...

    def layer(self, index: int) -> tuple[Tensor, Tensor]: ...


@dataclass(frozen=True)
class ReaderPass:
    """What one pass of the reader needs besides hidden states.

    Attributes:
        runs: the chunks of this pass, in order
        questions: how many questions are read at once; rows are chunk-major
        candidates: how many tokens at the end of each row are candidates
        visible: `[questions, new tokens, prompt tokens]`, which of the prompt (new tokens included) each new
            token sees; True is visible. A chunk is always visible as a whole.
    """

    runs: Sequence[ChunkLayers]
    questions: int
    candidates: int
    visible: Tensor


# The one piece of ambient state: some families (StableLM) drop keyword arguments on the way to their attention.
_reader_pass: ContextVar[ReaderPass] = ContextVar("reader_pass")


@contextmanager
def reading(reader_pass: ReaderPass) -> Iterator[None]:
    """Within it, the reader of this thread works on `reader_pass`. Never `yield` to a caller inside."""
    token = _reader_pass.set(reader_pass)
    try:
        yield
    finally:
        _reader_pass.reset(token)


def candidates_in_pass() -> int:
    """How many tokens at the end of each row are candidates."""
    return _reader_pass.get().candidates


def _reader_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """The attention function of the reader, in the form transformers calls it.

    `key` and `value` hold the prompt, `[rows, kv_heads, prompt, head_dim]`; masks come from the pass.
    """
    current, layer = _reader_pass.get(), cast(int, module.layer_idx)
    if layer >= current.runs[0].layers:
        # The last layer, in a pass that may not end early: nobody reads what comes out of it.
        return torch.zeros_like(query.transpose(1, 2)), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    bias = torch.zeros(current.visible.shape, dtype=torch.float32, device=query.device)
    bias = bias.masked_fill_(~current.visible, float("-inf"))
    output = torch.empty_like(query.transpose(1, 2))
    row = 0
    for run in current.runs:
        keys, values = run.layer(layer)
        step = _chunks_per_tile(query, current.questions, keys.shape[2] + key.shape[2])
        for start in range(0, run.chunks, step):
            stop = min(start + step, run.chunks)
            rows = slice((row + start) * current.questions, (row + stop) * current.questions)
            chunk = keys[start:stop], values[start:stop]
            tile = _attend(query[rows] * scale, chunk, (key[rows], value[rows]), bias, softcap)
            output[rows] = tile.transpose(1, 2)
        row += run.chunks
    return output, None


def _chunks_per_tile(query: Tensor, questions: int, visible_tokens: int) -> int:
    scores_per_chunk = questions * query.shape[1] * query.shape[2] * visible_tokens
    return max(1, _SCORES_PER_TILE // scores_per_chunk)


def _attend(
    query: Tensor, chunk: tuple[Tensor, Tensor], prompt: tuple[Tensor, Tensor], bias: Tensor, softcap: float | None
) -> Tensor:
    """One softmax over chunk and prompt.

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
    questions, new, _ = bias.shape
    # [chunks, questions, kv_heads, group * new, dim]: heads of a group share their keys
    grouped = query.reshape(chunks, questions, kv_heads, -1, dim)

    def fold(states: Tensor) -> Tensor:  # questions move beside the queries, so that a chunk is read once for all
        return states.transpose(1, 2).flatten(2, 3)

    prompt_keys, prompt_values = (s.unflatten(0, (chunks, questions)) for s in (prompt_keys, prompt_values))
    over_chunk = fold(grouped) @ chunk_keys.transpose(-1, -2)
    over_prompt = fold(grouped @ prompt_keys.transpose(-1, -2))
    # Half-precision scores stay as they are: softmax sums in float32 by itself, and casting them costs more than it.
    scores = torch.cat([over_chunk, over_prompt], dim=-1)
    if softcap is not None:
        scores = torch.tanh(scores.float() / softcap) * softcap
    by_token = scores.unflatten(2, (questions, -1, new))
    by_token[..., tokens:] += bias[:, None]
    weights = torch.softmax(scores, dim=-1).to(over_chunk.dtype)
    from_chunk = weights[..., :tokens] @ chunk_values
    from_prompt = weights[..., tokens:].unflatten(2, (questions, -1)).transpose(1, 2) @ prompt_values
    attended = from_chunk.unflatten(2, (questions, -1)).transpose(1, 2) + from_prompt
    return attended.reshape(query.shape)


# Registered for attention only: without a mask function of the same name transformers makes no mask, as we want.
AttentionInterface.register(READER_ATTENTION, _reader_attention)
