"""Tiny random models of every supported family, and candidate projections to go with them.

Weights are far larger than a fresh model's, so that every head attends sharply and a mistake of position, mask or
layer changes the logits by much more than rounding does. `test_exactness.py` checks that it is so.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    Glm4Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    SmolLM3Config,
    StableLmConfig,
)

from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts

VOCABULARY = 96
WINDOW = 512
BOS = 1

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": WINDOW,
    "bos_token_id": BOS,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
}
_THETA = 500.0  # small, so that neighbouring positions differ in many dimensions
_PLAIN_ROPE = {"rope_type": "default", "rope_theta": _THETA}
_LINEAR_ROPE = {"rope_type": "linear", "rope_theta": _THETA, "factor": 4.0}
_YARN_ROPE = {"rope_type": "yarn", "rope_theta": _THETA, "factor": 4.0, "original_max_position_embeddings": 128}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": _THETA,
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
_LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": _THETA,
    "original_max_position_embeddings": 256,
    "factor": 2.0,
    "short_factor": [1.0 + i / 8 for i in range(8)],
    "long_factor": [4.0 + i for i in range(8)],
}

# name -> config class and what differs from `_SIZES`
_FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {}),
    "llama_linear_rope": (LlamaConfig, {"rope_parameters": _LINEAR_ROPE}),
    "llama_llama3_rope": (LlamaConfig, {"rope_parameters": _LLAMA3_ROPE}),
    "llama_yarn_rope": (LlamaConfig, {"rope_parameters": _YARN_ROPE}),
    "llama_bias": (LlamaConfig, {"attention_bias": True, "mlp_bias": True}),
    "mistral": (MistralConfig, {"sliding_window": 300}),
    "qwen2": (Qwen2Config, {}),
    "qwen3": (Qwen3Config, {"head_dim": 24}),
    "gemma2": (
        Gemma2Config,
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 16,
            "sliding_window": 300,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 6.0,
        },
    ),
    "gemma3": (
        Gemma3TextConfig,
        {
            "head_dim": 24,
            "query_pre_attn_scalar": 16,
            "sliding_window": 300,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "rope_parameters": {"full_attention": _YARN_ROPE, "sliding_attention": _PLAIN_ROPE},
        },
    ),
    "phi3": (Phi3Config, {}),
    "phi3_longrope": (
        Phi3Config,
        {"rope_parameters": _LONGROPE, "original_max_position_embeddings": 256},
    ),
    "olmo2": (Olmo2Config, {}),
    "cohere": (CohereConfig, {"use_qk_norm": True, "logit_scale": 0.5}),
    "glm4": (Glm4Config, {"head_dim": 16, "attention_bias": True}),
    "granite": (
        GraniteConfig,
        {
            "attention_multiplier": 0.4,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.6,
            "logits_scaling": 2.0,
        },
    ),
    "stablelm": (StableLmConfig, {"use_qkv_bias": True, "qk_layernorm": True}),
    "smollm3": (SmolLM3Config, {"no_rope_layers": [1, 0, 1]}),
}

FAMILIES = tuple(_FAMILIES)
# Of every kind of attention, RoPE and projections one; where all families take the same way, the others are slow tests.
KINDS = ("llama", "llama_bias", "llama_yarn_rope", "gemma2", "gemma3", "phi3", "stablelm", "smollm3")
FAMILIES_BY_KIND = [pytest.param(name, marks=[] if name in KINDS else [pytest.mark.slow]) for name in FAMILIES]


def build(family: str, *, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random float32 model of a family; `settings` replace fields of its config."""
    config_class, own = _FAMILIES[family]
    rope = {} if config_class is Gemma3TextConfig else {"rope_parameters": dict(_PLAIN_ROPE)}
    model = AutoModelForCausalLM.from_config(config_class(**{**_SIZES, **rope, **own, **settings}))
    return randomise(model, seed=seed).eval()


@torch.no_grad()
def randomise(model: PreTrainedModel, *, seed: int = 0) -> PreTrainedModel:
    """Large random maps; norms and biases disturbed. Returns `model`."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.zero_()
    _disturb(model, scale=0.2, seed=seed)
    return model


def random_projections(model: PreTrainedModel, *, rank: int | None = None, seed: int = 1) -> CandidateProjections:
    """The model's own maps, each disturbed in its own way, so that a mix-up of maps or layers shows."""
    projections = CandidateProjections(decoder_parts(model), rank=rank)
    _disturb(projections, scale=0.1, seed=seed)
    return projections.requires_grad_(False)


def random_tokens(count: int, *, seed: int) -> list[int]:
    """Ordinary tokens: no BOS, EOS or padding among them."""
    generator = torch.Generator().manual_seed(seed)
    tokens: list[int] = torch.randint(3, VOCABULARY, (count,), generator=generator).tolist()
    return tokens


@torch.no_grad()
def _disturb(module: nn.Module, *, scale: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        parameter += (scale * torch.randn(parameter.shape, generator=generator)).to(parameter.device)
