"""One pass for a whole decode step: what is appended to the chunks, and the local contexts, side by side.

Layer l of the local context needs the candidates' keys and values of layer l and of no later one (paper §2.3), so
both can go through the decoder together, and its weights are read once per token instead of twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from focus_core.attention.chunk_pass import ChunkPass, as_bias
from focus_core.attention.passes import KeysAndValues
from focus_core.attention.slot_attention import SlotAttention


@dataclass(frozen=True)
class StepPass:
    """A pass over one row of tokens: of each chunk row the previous token, all local contexts, each row's candidate.

    A chunk row is a chunk followed by one question; rows are chunk-major.

    Attributes:
        chunk_pass: attention of the two new tokens of each chunk row
        chunks: number of chunks
        local_visible: `[questions, local, slots + local]`, what each token of a local context sees
        store: gets a layer's `[rows, kv_heads, 2, head_dim]` keys and values of the chunk rows; returns those of the
            whole prompt
        move_to_slots: moves a layer's candidate keys `[questions, kv_heads, slots, head_dim]` to their slots
        attention: gathers what the local contexts' last tokens attend to, where someone wants to know
    """

    chunk_pass: ChunkPass
    chunks: int
    local_visible: Tensor
    store: Callable[[int, Tensor, Tensor], KeysAndValues]
    move_to_slots: Callable[[int, Tensor], Tensor]
    attention: SlotAttention | None = None
    _masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict, init=False, repr=False)

    @property
    def questions(self) -> int:
        return self.chunk_pass.questions

    @property
    def candidates(self) -> int:
        """How many tokens at the end of the row are candidates: one per chunk row."""
        return self.chunks * self.questions

    @cached_property
    def wanted(self) -> Tensor:
        """`[questions]`: index in the row of each local context's last token, whose logits alone are computed."""
        local = self.local_visible.shape[1]
        ends = torch.arange(1, self.questions + 1, device=self.local_visible.device) * local
        return self.candidates + ends - 1

    def side_by_side(self, appended: Tensor, local: Tensor) -> Tensor:
        """`appended [chunks * questions, 2]` and `local [questions, tokens]` to one row `[1, tokens of the pass]`."""
        return torch.cat([appended[:, 0], local.flatten(), appended[:, 1]])[None]

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, softcap: float | None) -> Tensor:
        """Chunk rows attend to chunk and prompt, local contexts to the memory and themselves.

        Takes and returns `[1, heads, tokens of the pass, head_dim]`; `query` is scaled, heads of `key` and `value`
        are grouped.
        """
        appended_query, local_query = self._apart(query)
        appended_key, local_key = self._apart(key)
        appended_value, local_value = self._apart(value)
        memory = self.move_to_slots(layer, self._slots(appended_key)), self._slots(appended_value)
        keys, values = (torch.cat(pair, dim=2) for pair in zip(memory, (local_key, local_value), strict=True))
        mask = self._local_mask(query.shape[1] // keys.shape[1], query.dtype)
        local = _attend(local_query, keys, values, mask, softcap)
        if self.attention is not None:
            self.attention.add(local_query[:, :, -1], keys, self.local_visible[:, -1], softcap)
        prompt = self.store(layer, appended_key, appended_value)
        appended = self.chunk_pass.attend(layer, appended_query, *prompt, softcap)
        return self._together(appended, local)

    def _local_mask(self, group: int, dtype: torch.dtype) -> Tensor:
        """`local_visible` for scores, `[questions, 1, group * local, slots + local]`; made once for all layers."""
        if (group, dtype) not in self._masks:
            # Heads of a group share their keys, so their queries follow one another.
            self._masks[group, dtype] = as_bias(self.local_visible).to(dtype).repeat(1, group, 1)[:, None]
        return self._masks[group, dtype]

    def _apart(self, states: Tensor) -> tuple[Tensor, Tensor]:
        """`[1, heads, tokens, dim]` to `[chunks * questions, heads, 2, dim]` and `[questions, heads, local, dim]`."""
        rows, tokens = self.candidates, states.shape[2]
        previous, local, candidates = states[0].split([rows, tokens - 2 * rows, rows], dim=1)
        appended = torch.stack([previous, candidates], dim=2).transpose(0, 1)
        return appended, local.unflatten(1, (self.questions, -1)).transpose(0, 1)

    def _together(self, appended: Tensor, local: Tensor) -> Tensor:
        appended, local = appended.transpose(0, 1), local.transpose(0, 1).flatten(1, 2)
        return torch.cat([appended[:, :, 0], local, appended[:, :, 1]], dim=1)[None]

    def _slots(self, appended: Tensor) -> Tensor:
        """Of `[chunks * questions, kv_heads, 2, dim]` the candidates, `[questions, kv_heads, slots, dim]`."""
        return appended[:, :, -1].unflatten(0, (self.chunks, self.questions)).permute(1, 2, 0, 3)


def _attend(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor, softcap: float | None) -> Tensor:
    """`query [batch, heads, new, dim]` over `keys [batch, kv_heads, tokens, dim]`; heads of a group share their keys.

    `mask [batch, 1, group * new, tokens]` is added to the scores.
    """
    batch, kv_heads = keys.shape[:2]
    grouped = query.reshape(batch, kv_heads, -1, query.shape[-1])
    if softcap is None:
        attended = nn.functional.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask, scale=1.0)
    else:
        scores = torch.tanh((grouped @ keys.transpose(-1, -2)).float() / softcap) * softcap + mask
        attended = torch.softmax(scores, dim=-1).to(query.dtype) @ values
    return attended.reshape(query.shape)
