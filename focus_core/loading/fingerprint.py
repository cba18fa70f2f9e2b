"""A sample of a base model's weights, which tells whether an adapter belongs to it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from focus_core.attention.modules import DecoderParts

_SAMPLED_WEIGHTS = 4  # of every matrix, to tell base models apart
_ROUNDING = 0.02  # bfloat16 rounds by 0.004 at most
_SMALLEST = 1e-6  # float16 rounds weights of this size to zero


def weights_fingerprint(model: PreTrainedModel, parts: DecoderParts) -> dict[str, Any]:
    """The shape of a base model, and some weights of every layer.

    Weights instead of a hash, so that the same model in another dtype is still the same model.
    """
    config = model.config.get_text_config()
    shape = {name: getattr(config, name) for name in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")}
    shape |= {"num_attention_heads": config.num_attention_heads, "kv_heads": parts.kv_heads}
    sampled = {"embedding": [model.get_input_embeddings().weight]}
    for index, layer in enumerate(model.get_decoder().layers):
        sampled[f"layer {index}"] = [parameter for parameter in layer.parameters() if parameter.ndim == 2]
    return {"shape": shape, "weights": {name: _sample(matrices) for name, matrices in sampled.items()}}


def differences(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """How the model of an adapter (`theirs`) differs from the loaded one; empty if only the dtype may differ.

    Args:
        theirs: the `weights_fingerprint` saved with an adapter
        ours: that of the loaded model
    """
    shapes = [
        f"{name}: adapter {theirs['shape'].get(name)}, model {value}"
        for name, value in ours["shape"].items()
        if theirs["shape"].get(name) != value
    ]
    return shapes or [
        f"weights of {name}: adapter {theirs['weights'].get(name, '')[:20]}…, model {sample[:20]}…"
        for name, sample in ours["weights"].items()
        if not _alike(theirs["weights"].get(name, ""), sample)
    ]


def _sample(matrices: Sequence[Tensor]) -> str:
    """Evenly spaced weights of each matrix; quantised matrices and those without values are left out."""
    found: list[float] = []
    for matrix in matrices:
        if matrix.is_floating_point() and matrix.device.type != "meta":
            flat = matrix.detach().flatten()
            positions = torch.linspace(0, len(flat) - 1, _SAMPLED_WEIGHTS, dtype=torch.float64).long()
            found += flat[positions.to(flat.device)].tolist()
    return " ".join(f"{value:.4g}" for value in found)


def _alike(theirs: str, ours: str) -> bool:
    """Whether two samples are of the same weights, up to rounding to another dtype."""
    try:
        a, b = ([float(value) for value in sample.split()] for sample in (theirs, ours))
    except ValueError:
        return False
    if len(a) != len(b):
        return False
    starts = range(0, len(a), _SAMPLED_WEIGHTS)
    pairs = ((a[start : start + _SAMPLED_WEIGHTS], b[start : start + _SAMPLED_WEIGHTS]) for start in starts)
    return all(math.dist(x, y) <= _ROUNDING * math.hypot(*x) + _SMALLEST for x, y in pairs)
