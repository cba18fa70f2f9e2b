"""The memory: the candidates' keys and values, read-only, in front of the local context (paper §2.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class Memory:
    """One slot per chunk and layer; slot i is at position i.

    Attributes:
        keys: `[layers, questions, kv_heads, chunks, head_dim]`
        values: like `keys`
    """

    keys: Tensor
    values: Tensor

    @property
    def slots(self) -> int:
        """Number of chunks that the memory condenses."""
        return int(self.keys.shape[-2])

    def as_cache(self) -> Cache:
        """What transformers takes as `past_key_values`: masks and positions of the local context follow from it."""
        return Cache(layers=[_MemoryLayer(k, v) for k, v in zip(self.keys, self.values, strict=True)])

    def decoder_inputs(self, local_ids: Tensor, padding: Tensor | None, hidden: Tensor | None = None) -> dict[str, Any]:
        """Arguments of the decoder for a pass over local contexts after this memory; logits of the last token only.

        Args:
            local_ids: `[questions, tokens]`; positions follow the last slot
            padding: `[questions]`, unused tokens at the left of each row; `None` stands for none in any row
            hidden: `[questions, chunks]`, slots that no token of the row sees; `None` stands for none in any row
        """
        mask = position_ids = None
        if padding is not None or hidden is not None:
            unused = local_ids.new_zeros(len(local_ids)) if padding is None else padding
            columns = torch.arange(local_ids.shape[1], device=local_ids.device) - unused[:, None]
            position_ids = (self.slots + columns).clamp(min=0)
            mask = nn.functional.pad((columns >= 0).long(), (self.slots, 0), value=1)
            if hidden is not None:
                mask[:, : self.slots].masked_fill_(hidden, 0)
        return {
            "input_ids": local_ids,
            "attention_mask": mask,
            "position_ids": position_ids,
            "past_key_values": self.as_cache(),
            "use_cache": True,
            "logits_to_keep": 1,
        }


class _MemoryLayer(CacheLayerMixin):
    """Hands the memory out in front of the new tokens and keeps nothing of them."""

    is_sliding = False

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.keys, self.values = keys, values
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing to do: the memory is complete when it is made."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys = torch.cat([self.keys.to(key_states.dtype), key_states], dim=-2)
        return keys, torch.cat([self.values.to(value_states.dtype), value_states], dim=-2)

    def get_seq_length(self) -> int:
        return int(self.keys.shape[-2])

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_max_length(self) -> int:
        return -1
