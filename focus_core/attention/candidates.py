"""Candidate projections: the trainable q/k/v/o maps of the candidate token (paper §2.2, eq. 2–5)."""

from __future__ import annotations

import copy
import math
from typing import cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focus_core.attention.chunk_pass import CHUNK_ATTENTION, candidates_in_pass, wanted_in_pass
from focus_core.attention.modules import DecoderParts
from focus_core.errors import ConfigError, UnsupportedModelError


class CandidateProjections(nn.Module):
    """One projection for every linear map of every attention module.

    A projection is a full copy, weights and biases (as in the paper), or with `rank` a low-rank change of the base
    map that is zero at the start, so that both kinds begin as the base model's own maps.
    """

    def __init__(self, parts: DecoderParts, *, rank: int | None = None, dtype: torch.dtype | None = None) -> None:
        """As copies of the base maps.

        Args:
            dtype: what quantised maps compute in; copies of others have their dtype

        Raises:
            ConfigError: an impossible rank
            UnsupportedModelError: maps that are quantised in a way that cannot be undone
        """
        super().__init__()
        if rank is not None and rank < 1:
            raise ConfigError(f"rank={rank}: must be at least 1, or None for full copies.")
        self.rank = rank
        self.layers = nn.ModuleList(
            nn.ModuleDict({name: _projection(getattr(attention, name), rank, dtype) for name in names})
            for attention, names in zip(parts.attentions, names_per_layer(parts), strict=True)
        )

    def layer(self, index: int) -> nn.ModuleDict:
        return cast(nn.ModuleDict, self.layers[index])


def names_per_layer(parts: DecoderParts) -> list[tuple[str, ...]]:
    """Which maps are projected in each layer.

    Of a candidate in the last layer only key and value are used: query and output projections there would never
    get a gradient.
    """
    last = tuple(name for name in parts.projections if name not in ("q_proj", "o_proj"))
    return [parts.projections] * (parts.num_layers - 1) + [last]


def chunk_model(model: PreTrainedModel, parts: DecoderParts) -> PreTrainedModel:
    """A second shell around the weights of `model` whose attention reads chunks where their keys and values lie.

    Every pass runs under `chunk_pass.active_pass`.
    """
    return shell_of(model, parts, CHUNK_ATTENTION)


def shell_of(model: PreTrainedModel, parts: DecoderParts, attention: str) -> PreTrainedModel:
    """A second shell around the weights of `model`, which attends by the registered function named `attention`.

    The shell shares the weights of `model` (no memory, no copy) but has its own modules, so `model` itself never
    changes and may run in another thread at any time.
    """
    # Dynamic RoPE overwrites its frequencies in every pass, so these buffers are not shared.
    own = {id(buffer) for buffer in parts.rotary.buffers()}
    shared = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers()) if id(tensor) not in own}
    shell = copy.deepcopy(model, shared)
    shell.config.get_text_config()._attn_implementation = attention
    shell.config._attn_implementation = attention
    return shell


def candidate_model(model: PreTrainedModel, parts: DecoderParts, projections: CandidateProjections) -> PreTrainedModel:
    """A `chunk_model` in which candidate tokens go through `projections`."""
    shell = chunk_model(model, parts)
    for index, (layer, names) in enumerate(zip(shell.get_decoder().layers, names_per_layer(parts), strict=True)):
        for name in names:
            base = getattr(layer.self_attn, name)
            setattr(layer.self_attn, name, _CandidateLinear(base, projections.layer(index)[name]))
    last = shell.get_decoder().layers[-1]
    for module, name in ((last.self_attn, "q_proj"), (last.self_attn, "o_proj"), (last, "mlp")):
        if hasattr(module, name):
            setattr(module, name, _WantedOnly(getattr(module, name)))
    return shell


class _CandidateLinear(nn.Module):
    """The base map for ordinary tokens, the candidate projection for the last tokens of every row."""

    def __init__(self, base: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.projection = projection

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden [rows, tokens, in]` to `[rows, tokens, out]`."""
        count = candidates_in_pass()
        if count == 0:
            return cast(Tensor, self.base(hidden))
        candidates = hidden[:, hidden.shape[1] - count :]
        if isinstance(self.projection, LowRankChange):
            projected = self.base(candidates) + self.projection(candidates)
        else:
            projected = self.projection(candidates)
        if count == hidden.shape[1]:
            return cast(Tensor, projected)
        return torch.cat([self.base(hidden[:, : hidden.shape[1] - count]), projected], dim=1)


class _WantedOnly(nn.Module):
    """A part of the last layer, computed for the tokens whose logits are wanted; zeros for all others."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, hidden: Tensor) -> Tensor:
        """`hidden [rows, tokens, in]` to `[rows, tokens, out]`."""
        wanted = wanted_in_pass()
        if wanted is None:
            return cast(Tensor, self.part(hidden))
        computed: Tensor = self.part(hidden[:, wanted])
        return computed.new_zeros(*hidden.shape[:2], computed.shape[-1]).index_copy_(1, wanted, computed)


class LowRankChange(nn.Module):
    """`up(down(x))`, added to the base map; `up` is zero at the start."""

    def __init__(self, linear: nn.Linear, rank: int) -> None:
        super().__init__()
        self.down = nn.Linear(linear.in_features, rank, bias=False)
        self.up = nn.Linear(rank, linear.out_features, bias=linear.bias is not None)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        nn.init.zeros_(self.up.weight)
        if self.up.bias is not None:
            nn.init.zeros_(self.up.bias)
        self.to(device=linear.weight.device, dtype=linear.weight.dtype)

    def forward(self, hidden: Tensor) -> Tensor:
        return cast(Tensor, self.up(self.down(hidden)))


def _projection(base: nn.Module, rank: int | None, dtype: torch.dtype | None) -> nn.Module:
    linear = _ordinary(base, dtype)
    if rank is None:
        return copy.deepcopy(linear).requires_grad_(True)
    if rank > linear.in_features:
        raise ConfigError(f"rank={rank}: a map has {linear.in_features} inputs. Lower it.")
    return LowRankChange(linear, rank)


def _ordinary(base: nn.Module, dtype: torch.dtype | None) -> nn.Linear:
    """`base`, or an `nn.Linear` that computes the same where its weights are quantised.

    Kinds of quantisation have no method in common, but each map says by what it computes what its weights are: the unit
    vectors go through it.
    """
    weight = getattr(base, "weight", None)
    plain = isinstance(weight, Tensor) and type(weight.data) is Tensor and weight.is_floating_point()
    if isinstance(base, nn.Linear) and plain:
        return base
    inputs, outputs = getattr(base, "in_features", None), getattr(base, "out_features", None)
    refusal = UnsupportedModelError(
        f"The model's weights are quantised ({getattr(weight, 'dtype', type(base).__name__)}) in a way that cannot be "
        "undone, and candidate projections start as copies of weights in floating point. Load the model in bfloat16 "
        "instead, or use method='plain'."
    )
    if inputs is None or outputs is None or dtype is None:
        raise refusal
    device = next(tensor.device for tensor in (*base.parameters(), *base.buffers()))
    bias = getattr(base, "bias", None)
    made = nn.Linear(inputs, outputs, bias=bias is not None, device=device, dtype=dtype)
    try:
        with torch.no_grad():
            constant = base(torch.zeros(1, inputs, device=device, dtype=dtype))
            made.weight.copy_((base(torch.eye(inputs, device=device, dtype=dtype)) - constant).T)
            if bias is not None:
                made.bias.copy_(constant[0])
    except (RuntimeError, NotImplementedError) as error:
        raise refusal from error
    return made
