"""Decoding: from a text to next-token logits, one step per token, by chunks or by the plain model.

Both ways have the same three methods, so that whoever samples need not know which one runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache

from focus_core.cache.chunks import ChunkCache

if TYPE_CHECKING:
    from focus_core.methods.focus import FocusModel


class Decoding(Protocol):
    """A batch of texts that are continued together."""

    def start(self) -> Tensor:
        """Next-token logits `[questions, vocab]` before anything has been generated."""

    def step(self, tokens: Tensor) -> Tensor:
        """Next-token logits after appending `tokens [questions]`."""

    def select_questions(self, keep: Tensor) -> None:
        """Go on with only the questions whose indices are in `keep`."""


class FocusDecoding:
    """The method, step by step, for a batch of questions about the same chunks.

    Args:
        cache: prefilled chunks
        local_contexts: token ids of each question's local context
        dynamic_prompts: token ids that are appended to every chunk, one per question
    """

    def __init__(
        self,
        model: FocusModel,
        cache: ChunkCache,
        local_contexts: Sequence[Sequence[int]],
        dynamic_prompts: Sequence[Sequence[int]],
    ) -> None:
        self._model = model
        self._cache = cache
        self._local, self._local_padding = pad_left(local_contexts)
        self._pending, self._prompt_padding = pad_left(dynamic_prompts)

    def start(self) -> Tensor:
        memory = self._model.decode_candidates(self._cache, self._pending, padding=self._prompt_padding)
        return self._model.next_token_logits(self._local, memory, padding=self._local_padding)

    def step(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._pending.device)
        # The previous candidate is read again, as an ordinary token; only the newest is the candidate.
        self._pending = torch.stack([self._pending[:, -1], tokens], dim=1)
        self._local = torch.cat([self._local, tokens[:, None]], dim=1)
        return self._model.decode_step(self._cache, self._pending, self._local, padding=self._local_padding)

    def select_questions(self, keep: Tensor) -> None:
        keep = keep.to(self._local.device)
        # Padding beside a longer question goes with it; it lies on the CPU, so this is no wait for a device.
        self._prompt_padding, unused = without_unused(self._prompt_padding[keep])
        self._cache.select_questions(keep, unused)
        self._local_padding, unused = without_unused(self._local_padding[keep])
        self._local, self._pending = self._local[keep, unused:], self._pending[keep]


class PlainDecoding:
    """The model as it is, with an ordinary cache: what the paper does up to the model's window."""

    def __init__(self, model: FocusModel, prompts: Sequence[Sequence[int]]) -> None:
        self._model = model.model
        self._prompts, self._padding = pad_left(prompts)
        self._padded = bool((self._padding > 0).any())  # asked here, where it costs no wait for the device
        self._padding = self._padding.to(model.device)
        self._cache = DynamicCache()  # given no config, so that it never drops what a sliding window could not see
        self._length = 0

    def start(self) -> Tensor:
        return self._append(self._prompts)

    def step(self, tokens: Tensor) -> Tensor:
        return self._append(tokens[:, None])

    def select_questions(self, keep: Tensor) -> None:
        self._cache.batch_select_indices(keep.to(self._padding.device))
        self._padding = self._padding[keep.to(self._padding.device)]

    @torch.no_grad()
    def _append(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._padding.device)
        columns = torch.arange(self._length + tokens.shape[1], device=tokens.device)
        position_ids = (columns[self._length :] - self._padding[:, None]).clamp(min=0)
        mask = (columns >= self._padding[:, None]).long() if self._padded else None
        self._length = len(columns)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits


def without_unused(padding: Tensor) -> tuple[Tensor, int]:
    """Padding without what all rows have of it, and how much that is."""
    unused = int(padding.min())
    return padding - unused, unused


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids `[rows, longest]` with zeros at the left, and how many there are in each row."""
    longest = max(len(row) for row in rows)
    padding = [longest - len(row) for row in rows]
    ids = [[0] * missing + list(row) for missing, row in zip(padding, rows, strict=True)]
    return torch.tensor(ids, dtype=torch.long), torch.tensor(padding, dtype=torch.long)
