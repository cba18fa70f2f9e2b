"""The oracle: the method in plain steps, without any cache, every step from scratch (paper §2, eq. 1–5).

It shares nothing with `focus_core` but the weights: chunks pass an ordinary model one at a time with everything
behind them, a candidate's key is not turned but made again at the place where it belongs, and attention is eager.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from focus_core.attention.candidates import CandidateProjections

TokenIds = Sequence[int]


class Reference:
    """Next-token logits of a model with candidate projections, the slow way."""

    def __init__(self, model: PreTrainedModel, projections: CandidateProjections) -> None:
        self._frozen = _eager_copy(model)
        self._candidate_model = _eager_copy(model)
        for index, attention in enumerate(self._attentions()):
            for name, projection in projections.layer(index).items():
                linear = getattr(attention, name)
                linear.register_forward_hook(partial(_project_last_token, _candidate_map(linear, projection)))

    @torch.no_grad()
    def logits(self, chunks: Sequence[TokenIds], prompt: TokenIds, local: TokenIds, generated: TokenIds = ()) -> Tensor:
        """Logits `[vocab]` of the token after `generated`."""
        candidates = [self._candidate([*chunk, *prompt, *generated], slot) for slot, chunk in enumerate(chunks)]
        memory = DynamicCache()
        for layer in range(len(self._attentions()) if candidates else 0):
            keys = torch.cat([candidate.layers[layer].keys for candidate in candidates], dim=2)
            values = torch.cat([candidate.layers[layer].values for candidate in candidates], dim=2)
            memory.update(keys, values, layer)
        return self._run(self._frozen, [*local, *generated], past_key_values=memory)

    def _candidate(self, row: TokenIds, slot: int) -> DynamicCache:
        """Keys and values of the last token of `row` in every layer, as they are at position `slot`."""
        inputs: dict[nn.Module, Tensor] = {}

        def record(attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
            inputs[attention] = kwargs["hidden_states"][:, -1:]

        def replay(attention: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return args, {**kwargs, "hidden_states": inputs[attention]}

        with self._before_each_attention(record):
            self._run(self._candidate_model, row)
        cache = DynamicCache()
        position = torch.tensor([[slot]], device=self._frozen.device)
        with self._before_each_attention(replay):
            self._run(self._candidate_model, row[-1:], position_ids=position, past_key_values=cache)
        return cache

    @staticmethod
    def _run(model: PreTrainedModel, row: TokenIds, **arguments: Any) -> Tensor:
        logits: Tensor = model(torch.tensor([list(row)], device=model.device), **arguments).logits[0, -1]
        return logits

    def _attentions(self) -> list[nn.Module]:
        return [layer.self_attn for layer in self._candidate_model.get_decoder().layers]

    @contextmanager
    def _before_each_attention(self, hook: Callable[..., Any]) -> Iterator[None]:
        handles = [a.register_forward_pre_hook(hook, with_kwargs=True) for a in self._attentions()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _eager_copy(model: PreTrainedModel) -> PreTrainedModel:
    model = copy.deepcopy(model).eval()
    model.set_attn_implementation("eager")
    return model


def _candidate_map(base: nn.Linear, projection: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a candidate projection; a low-rank one is merged into the base map."""
    own = projection.state_dict()
    if "weight" in own:
        return own["weight"], own.get("bias")
    bias = None if base.bias is None else base.bias.detach() + own["up.bias"]
    return base.weight.detach() + own["up.weight"] @ own["down.weight"], bias


def _project_last_token(
    candidate_map: tuple[Tensor, Tensor | None], linear: nn.Module, args: tuple[Tensor], output: Tensor
) -> Tensor:
    weight, bias = candidate_map
    return torch.cat([output[:, :-1], nn.functional.linear(args[0][:, -1:], weight, bias)], dim=1)
