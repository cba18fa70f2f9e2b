"""Models that cannot work with candidate tokens are refused by name, with the reason; windows are what is usable."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, PreTrainedModel

from focus_core.attention.modules import Window, decoder_parts
from focus_core.config import FocusConfig
from focus_core.errors import UnsupportedModelError
from focus_core.loading.peek import saved_window
from focus_core.methods.focus import FocusModel
from tests.cases import assert_equal_logits, computed, expected, focus_model, random_case
from tests.model_zoo import BOS, VOCABULARY, build, random_projections, randomise
from tests.reference import Reference

_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "bos_token_id": BOS,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


def _model(config: str, **settings: Any) -> PreTrainedModel:
    config_class = getattr(transformers, config)
    known = {name: value for name, value in _SIZES.items() if name in config_class.__dataclass_fields__}
    made = config_class(**{**known, **settings})
    model_class = AutoModelForSeq2SeqLM if made.is_encoder_decoder else AutoModelForCausalLM
    return randomise(model_class.from_config(made)).eval()


# --- refused ----------------------------------------------------------------------------------------------------------

REFUSED: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "mamba": ("MambaConfig", {"state_size": 4}, "MambaForCausalLM", "recurrent or hybrid"),
    "hybrid": (
        "Qwen3NextConfig",
        {
            "head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
            "num_experts": 2,
            "moe_intermediate_size": 8,
            "shared_expert_intermediate_size": 8,
            "linear_num_value_heads": 2,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
        "Qwen3NextForCausalLM",
        "linear_attention",
    ),
    "no_rope_opt": (
        "OPTConfig",
        {"ffn_dim": 32, "word_embed_proj_dim": 32},
        "OPTForCausalLM",
        "no rotary position embedding",
    ),
    "gpt2": ("GPT2Config", {"n_embd": 32, "n_layer": 2, "n_head": 2}, "GPT2LMHeadModel", "no rotary"),
    "alibi_bloom": ("BloomConfig", {"n_layer": 2, "n_head": 2}, "BloomForCausalLM", "no rotary"),
    "pythia": ("GPTNeoXConfig", {}, "GPTNeoXForCausalLM", "does not name its parts as Llama does"),
    "falcon": ("FalconConfig", {}, "FalconForCausalLM", "does not name its parts as Llama does"),
    "encoder_decoder": (
        "T5Config",
        {"d_model": 32, "d_kv": 16, "d_ff": 32, "num_layers": 2, "num_heads": 2},
        "T5ForConditionalGeneration",
        "encoder-decoder",
    ),
    "attention_sinks": (
        "GptOssConfig",
        {"head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
        "GptOssForCausalLM",
        "attention sinks",
    ),
    "other_projections": ("PhiConfig", {}, "PhiForCausalLM", "q_proj/k_proj/v_proj/o_proj"),
    "one_layer": ("LlamaConfig", {"num_hidden_layers": 1}, "LlamaForCausalLM", "has one layer"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_with_the_reason(name: str) -> None:
    """The user would get wrong answers, or an AttributeError from the depths of a forward pass."""
    config, settings, model_name, reason = REFUSED[name]
    with pytest.raises(UnsupportedModelError) as raised:
        FocusModel(_model(config, **settings))
    assert model_name in str(raised.value)
    assert reason in str(raised.value)
    assert "Use a " in str(raised.value)


# --- refused or exact: never wrong in silence -------------------------------------------------------------------------

_SLIDING = {"sliding_window": 300, "max_position_embeddings": 512}
_SLIDING_AND_FULL = {**_SLIDING, "layer_types": ["sliding_attention", "full_attention"]}
PECULIAR: dict[str, tuple[str, dict[str, Any]]] = {
    "no_rope_where_attention_is_full_cohere2": ("Cohere2Config", _SLIDING_AND_FULL),
    "no_rope_where_attention_is_full_exaone4": ("Exaone4Config", _SLIDING_AND_FULL),
    "rope_by_layer_type_olmo3": ("Olmo3Config", _SLIDING_AND_FULL),
    "norm_behind_rope_hunyuan": ("HunYuanDenseV1Config", {"head_dim": 16}),
    "attention_of_its_own_diffllama": ("DiffLlamaConfig", {"num_attention_heads": 4, "num_key_value_heads": 2}),
    "mask_of_its_own_doge": ("DogeConfig", {}),
    "shared_keys_gemma3n": (
        "Gemma3nTextConfig",
        {
            "num_hidden_layers": 4,
            "head_dim": 16,
            "num_kv_shared_layers": 2,
            "laurel_rank": 4,
            "altup_num_inputs": 2,
            "layer_types": ["full_attention"] * 4,
            "activation_sparsity_pattern": [0.0] * 4,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "head_size_by_layer_gemma4": (
        "Gemma4TextConfig",
        {
            "head_dim": 16,
            "num_kv_shared_layers": 0,
            **_SLIDING_AND_FULL,
            "vocab_size_per_layer_input": VOCABULARY,
            "hidden_size_per_layer_input": 8,
        },
    ),
    "no_rope_where_attention_is_full_afmoe": ("AfmoeConfig", {**_SLIDING_AND_FULL, "head_dim": 16, "num_experts": 2}),
    "mixture_of_experts_mixtral": ("MixtralConfig", {"num_local_experts": 2, **_SLIDING}),
    "interleaved_rope_helium": ("HeliumConfig", {"head_dim": 16}),
    "partial_rope_nemotron": ("NemotronConfig", {}),
}


@pytest.mark.parametrize("name", PECULIAR)
def test_peculiar_families_are_refused_or_exact(name: str) -> None:
    """A family that looks like Llama from outside, but is not, would give wrong answers without a word."""
    config, settings = PECULIAR[name]
    model = _model(config, **settings)
    try:
        projections = random_projections(model)
        focus = focus_model(model, projections)
    except UnsupportedModelError:
        return
    case = random_case([12, 12, 20], steps=1)
    assert_equal_logits(computed(focus, case), expected(Reference(model, projections), case))


# --- windows ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "settings", "size", "hard"),
    [
        ("llama", {}, 512, False),
        ("llama_yarn_rope", {}, 512, False),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}}, 512, True),
        ("phi3_longrope", {}, 256, True),
        ("mistral", {"sliding_window": 64}, 64, True),
        ("mistral", {"sliding_window": None}, 512, False),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": False}, 512, False),
        ("qwen2", {"sliding_window": 64, "use_sliding_window": True, "max_window_layers": 1}, 64, True),
        ("gemma2", {"sliding_window": 128}, 128, True),
        ("gemma3", {"sliding_window": 128}, 128, True),
        ("gemma3", {"sliding_window": 128, "layer_types": ["full_attention"] * 3}, 512, False),
        ("phi3", {"sliding_window": 100}, 100, True),
        ("smollm3", {"sliding_window": 64, "use_sliding_window": False}, 512, False),
    ],
)
def test_usable_window(family: str, settings: dict[str, Any], size: int, hard: bool, tmp_path: Path) -> None:
    """Tokens would fall out of a sliding window, or RoPE frequencies would change under keys already stored."""
    model = build(family, **settings)
    window = decoder_parts(model).window
    assert (window.size, window.hard) == (size, hard)
    assert window.reason
    model.config.save_pretrained(tmp_path)
    assert saved_window(tmp_path) == window  # a wrapper promises this before it loads the weights


def test_window_says_what_limits_it() -> None:
    """A user with a 128k model would not learn why only 4k of it are usable."""
    sliding = decoder_parts(build("mistral", sliding_window=64)).window
    assert sliding == Window(64, "its sliding window", hard=True)
    longrope = decoder_parts(build("phi3_longrope")).window
    assert "longrope" in longrope.reason


def test_window_set_by_hand() -> None:
    """More than a hard limit would give wrong answers; more than the trained positions is the user's own risk."""
    with pytest.raises(UnsupportedModelError, match=r"window=100: MistralForCausalLM .* at most 64 positions"):
        FocusModel(build("mistral", sliding_window=64), config=FocusConfig(window=100))
    assert FocusModel(build("mistral", sliding_window=64), config=FocusConfig(window=60)).config.window == 60
    assert FocusModel(build("llama"), config=FocusConfig(window=1000)).config.window == 1000


def test_dynamic_rope_within_its_original_length() -> None:
    """A long pass of the plain model elsewhere would leave the candidates with that pass's frequencies."""
    rope = {"rope_type": "dynamic", "rope_theta": 500.0, "factor": 4.0}
    model = build("llama", rope_parameters=rope, max_position_embeddings=96)
    projections = random_projections(model)
    case = random_case([24, 24, 15])
    wanted = expected(Reference(model, projections), case)
    focus = focus_model(model, projections)
    with torch.no_grad():
        model(torch.arange(3, 93).repeat(1, 3))  # 270 positions: the model's frequencies grow with it
    assert_equal_logits(computed(focus, case), wanted)
