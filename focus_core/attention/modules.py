"""Which parts of a transformers model are used, and whether the model can work with candidate tokens at all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from focus_core.errors import UnsupportedModelError

_SPLIT_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
_FUSED_PROJECTIONS = ("qkv_proj", "o_proj")

_WAY_OUT = "Use a RoPE model such as Llama, Qwen, Mistral or Gemma 3."

# Families whose modules have Llama's names, but compute something that reading in chunks would get wrong.
_LOOK_ALIKES = {
    "cohere2": "its layers with full attention have no rotary embedding",
    "exaone4": "its layers with full attention have no rotary embedding",
    "hunyuan_v1_dense": "it normalises keys after rotating them, so they cannot be rotated further",
    "hunyuan_v1_moe": "it normalises keys after rotating them, so they cannot be rotated further",
    "diffllama": "its attention is a difference of two, with a value layout of its own",
    "doge": "its attention mask depends on the values",
    "gemma3n_text": "some of its layers use the keys and values of others",
    "gemma4_text": "the head size differs between its layers",
    "gemma4_unified_text": "the head size differs between its layers",
    "beam": "some of its layers have no rotary embedding",
    "afmoe": "its layers with full attention have no rotary embedding",
}


@dataclass(frozen=True)
class Window:
    """How many positions a pass may have.

    Attributes:
        reason: what sets the limit
        hard: beyond it results are wrong, instead of merely untrained
    """

    size: int
    reason: str
    hard: bool


@dataclass(frozen=True)
class DecoderParts:
    """The inside of a supported model, found by name."""

    attentions: tuple[nn.Module, ...]  # one per layer
    projections: tuple[str, ...]  # names of the linear maps in each attention module
    rotary: nn.Module
    apply_rotary: Callable[..., tuple[Any, Any]]
    kv_heads: int
    head_dim: int
    window: Window
    name: str

    @property
    def num_layers(self) -> int:
        return len(self.attentions)


def decoder_parts(model: PreTrainedModel) -> DecoderParts:
    """What the method needs from `model`.

    Raises:
        UnsupportedModelError: naming what is missing and what would work instead.
    """
    config = model.config.get_text_config()
    name = f"{type(model).__name__} (model type '{config.model_type}')"
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; FocusLLM needs a decoder-only model. {_WAY_OUT}")
    if config.model_type in _LOOK_ALIKES:
        raise UnsupportedModelError(f"{name} cannot be read in chunks: {_LOOK_ALIKES[config.model_type]}. {_WAY_OUT}")
    decoder = model.get_decoder()
    attentions = _attention_modules(decoder, config, name, rotated=_rotates_keys(model, config))
    rotary = getattr(decoder, "rotary_emb", None)
    apply_rotary = getattr(sys.modules[type(attentions[0]).__module__], "apply_rotary_pos_emb", None)
    if rotary is None or apply_rotary is None:
        raise UnsupportedModelError(
            f"{name} has no rotary position embedding that stands outside its layers, so a candidate's key cannot be "
            f"moved to its slot in the memory. {_WAY_OUT}"
        )
    heads = config.num_attention_heads
    return DecoderParts(
        attentions=attentions,
        projections=_projection_names(attentions[0], name),
        rotary=rotary,
        apply_rotary=apply_rotary,
        kv_heads=getattr(config, "num_key_value_heads", None) or heads,
        head_dim=getattr(config, "head_dim", None) or config.hidden_size // heads,
        window=window_of(config, name, attentions),
        name=name,
    )


def _rotates_keys(model: PreTrainedModel, config: Any) -> bool:
    """Whether there is a rotary embedding anywhere; some families compute it without a module of that name."""
    settings = (getattr(config, setting, None) for setting in ("rope_parameters", "rope_theta", "rotary_dim"))
    return any("rotary" in name for name, _ in model.named_modules()) or any(map(bool, settings))


def _attention_modules(decoder: nn.Module, config: Any, name: str, *, rotated: bool) -> tuple[nn.Module, ...]:
    layers = getattr(decoder, "layers", None)
    if layers is not None and len(layers) < 2:
        raise UnsupportedModelError(f"{name} has one layer; candidates need two. {_WAY_OUT}")
    layer_types = set(getattr(config, "layer_types", None) or ())
    foreign = layer_types - {"full_attention", "sliding_attention"}
    without = [i for i, layer in enumerate(layers or ()) if not hasattr(layer, "self_attn")]
    if foreign or (layers is not None and without and (len(without) < len(layers) or not rotated)):
        kinds = ", ".join(sorted(foreign)) or f"layer {without[0]} has no self_attn"
        raise UnsupportedModelError(
            f"{name} is recurrent or hybrid ({kinds}): such a layer has no keys and values that a memory could "
            f"stand in front of. {_WAY_OUT}"
        )
    if not rotated:
        raise UnsupportedModelError(
            f"{name} has no rotary position embedding, so a candidate's key cannot be moved to its slot in the memory. "
            f"{_WAY_OUT}"
        )
    if layers is None or without:
        raise UnsupportedModelError(
            f"{name} does not name its parts as Llama does ({type(decoder).__name__} has no layers with self_attn), so "
            f"candidates have no way into it. {_WAY_OUT}"
        )
    attentions = tuple(layer.self_attn for layer in layers)
    if any(getattr(attention, "sinks", None) is not None for attention in attentions):
        raise UnsupportedModelError(
            f"{name} uses attention sinks, which reading in chunks does not support. {_WAY_OUT}"
        )
    return attentions


def _projection_names(attention: nn.Module, name: str) -> tuple[str, ...]:
    for names in (_SPLIT_PROJECTIONS, _FUSED_PROJECTIONS):
        if all(hasattr(attention, n) for n in names):
            return names
    raise UnsupportedModelError(
        f"{name}: its attention has neither {'/'.join(_SPLIT_PROJECTIONS)} nor {'/'.join(_FUSED_PROJECTIONS)}, so "
        f"there is nothing for the candidate projections to stand beside. {_WAY_OUT}"
    )


def window_of(config: Any, name: str, attentions: Iterable[nn.Module] = ()) -> Window:
    """The smallest of: trained positions, original positions of length-dependent RoPE, sliding window.

    Args:
        config: of a text model
        name: of the model, for messages
        attentions: its attention modules, where they are there; a family may keep its sliding window in them alone

    Raises:
        UnsupportedModelError: `config` does not say for how many positions the model was trained
    """
    trained: int | None = getattr(config, "max_position_embeddings", None)
    if trained is None:
        raise UnsupportedModelError(
            f"{name}: its config has no max_position_embeddings, so its window is unknown. Set it in the config, or "
            "use another model."
        )
    limits = [Window(trained, "max_position_embeddings", hard=False)]
    for parameters in _rope_parameters(config):
        kind = parameters.get("rope_type")
        if kind in ("dynamic", "longrope"):
            # Their frequencies change once a pass is longer than this, and with them every key already cached.
            original = parameters.get("original_max_position_embeddings")
            original = original or getattr(config, "original_max_position_embeddings", None) or trained
            limits.append(Window(original, f"the original length of its {kind} RoPE", hard=True))
    sliding = [getattr(attention, "sliding_window", None) for attention in attentions]
    if getattr(config, "use_sliding_window", True):
        kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
        sliding.append(getattr(config, "sliding_window", None) if "sliding_attention" in kinds else None)
    limits += [Window(size, "its sliding window", hard=True) for size in sliding if size]
    return min(limits, key=lambda limit: (limit.size, not limit.hard))


def _rope_parameters(config: Any) -> list[dict[str, Any]]:
    parameters = getattr(config, "rope_parameters", None) or {}
    nested = [value for value in parameters.values() if isinstance(value, dict)]
    return nested or [parameters]
