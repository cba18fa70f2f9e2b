"""How much the newest token of a local context attends to each slot of the memory, in a pass that is made anyway.

A pass over a memory hands every layer's last query and keys to `SlotAttention.add`. `StepPass` does so itself; the
frozen model does it as `watched_model`, which computes the same with the same attention.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from focus_core.attention.candidates import shell_of
from focus_core.attention.modules import DecoderParts
from focus_core.errors import ConfigError


class SlotAttention:
    """The attention of some local contexts' last tokens, gathered over the layers of one pass.

    Args:
        questions: `[watched]`, which of the local contexts of the pass; the others cost nothing
        slots: number of slots, which come first among the keys
    """

    def __init__(self, questions: Tensor, slots: int) -> None:
        self._questions, self._slots = questions, slots
        self._layers: list[Tensor] = []
        self._order: Tensor | None = None

    def add(self, query: Tensor, keys: Tensor, visible: Tensor | None, softcap: float | None) -> None:
        """One layer's.

        Args:
            query: of the last tokens, scaled, `[questions, heads, head_dim]`
            keys: `[questions, kv_heads, slots + local, head_dim]`
            visible: `[questions, slots + local]`, the keys that the last token sees; `None` where it sees all
            softcap: bound of the scores (Gemma 2)
        """
        query, keys = query[self._questions], keys[self._questions]
        # [watched, kv_heads, group, slots + local]: heads of a group share their keys
        scores = (query.unflatten(1, (keys.shape[1], -1)) @ keys.transpose(-1, -2)).float()
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        if visible is not None:
            scores = scores.masked_fill(~visible[self._questions][:, None, None], float("-inf"))
        self._layers.append(scores.softmax(-1)[..., : self._slots].mean((1, 2)))

    def sort(self, slots: Tensor) -> None:
        """Say that the keys of the pass were those of these `slots`, and not of slots 0, 1, 2, …"""
        self._order = slots.argsort()

    def shares(self) -> Tensor:
        """`[watched, slots]`, in the order of the slots: the mean over layers and heads. A row sums to at most 1."""
        mean = torch.stack(self._layers).mean(0)
        return mean if self._order is None else mean[:, self._order]


_WATCHABLE = ("sdpa", "eager")
_watching: ContextVar[Callable[[Tensor, Tensor, float | None], None]] = ContextVar("slot_attention")


@contextmanager
def watched_by(attention: SlotAttention, visible: Tensor | None) -> Iterator[None]:
    """In this block, this thread's passes of a `watched_model` report to `attention`.

    Args:
        visible: as for `SlotAttention.add`
    """

    def add(query: Tensor, keys: Tensor, softcap: float | None) -> None:
        attention.add(query, keys, visible, softcap)

    token = _watching.set(add)
    try:
        yield
    finally:
        _watching.reset(token)


def is_watchable(model: PreTrainedModel) -> bool:
    """Whether `watched_model` attends as the model does: flash attention looks itself up by the config's name."""
    return model.config.get_text_config()._attn_implementation in _WATCHABLE


def require_watchable(model: PreTrainedModel) -> None:
    """Refuse a model whose attention function cannot be watched.

    Raises:
        ConfigError: names it, and the way out
    """
    if not is_watchable(model):
        usual: str = model.config.get_text_config()._attn_implementation
        raise ConfigError(
            f"live_evidence=True works with attn_implementation={' or '.join(map(repr, _WATCHABLE))}, and this model "
            f"was loaded with {usual!r}. Load it with one of these, or leave live_evidence out."
        )


def watched_model(model: PreTrainedModel, parts: DecoderParts) -> PreTrainedModel:
    """A second shell around the weights of `model`, which attends and masks as `model` does, to the bit."""
    usual: str = model.config.get_text_config()._attn_implementation
    name = f"focusllm_watched_{usual}"
    AttentionInterface.register(name, partial(_watched_attention, usual))
    if usual in ALL_MASK_ATTENTION_FUNCTIONS:
        AttentionMaskInterface.register(name, ALL_MASK_ATTENTION_FUNCTIONS[usual])
    return shell_of(model, parts, name)


def _watched_attention(
    usual: str, module: nn.Module, query: Tensor, key: Tensor, *arguments: Any, **settings: Any
) -> tuple[Tensor, Tensor | None]:
    """The attention function of `watched_model`, in the form that transformers calls."""
    scaling = settings.get("scaling")
    last = query[:, :, -1] * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    _watching.get()(last, key, settings.get("softcap"))
    eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    attend = ALL_ATTENTION_FUNCTIONS.get_interface(usual, eager)
    found: tuple[Tensor, Tensor | None] = attend(module, query, key, *arguments, **settings)
    return found
