"""What `focus_core/attention` leans on inside transformers. After an upgrade this file says what has to change.

Each message names the file that relies on what has gone.
"""

from __future__ import annotations

import copy
import inspect
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from focus_core.attention.candidates import candidate_model
from focus_core.attention.chunk_pass import CHUNK_ATTENTION
from focus_core.attention.memory import Memory
from focus_core.attention.modules import decoder_parts
from focus_core.attention.passes import PassCache, until_done
from focus_core.methods.plain import RoomyLayer
from tests.cases import assert_equal_logits, computed, expected, focus_model, random_case
from tests.model_zoo import FAMILIES, build, random_projections, random_tokens
from tests.reference import Reference

IDS = torch.tensor([random_tokens(12, seed=1)])
_seen: list[tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]] = []


def _recording_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    _seen.append((query, key, value, attention_mask, {"layer_idx": module.layer_idx, **kwargs}))
    return query.transpose(1, 2), None


AttentionInterface.register("focusllm_test_recording", _recording_attention)


@torch.no_grad()
def _recorded(model: PreTrainedModel) -> list[tuple[Tensor, Tensor, Tensor, Tensor | None, dict[str, Any]]]:
    """What a registered attention function gets in each layer."""
    _seen.clear()
    model = copy.deepcopy(model)
    model.config._attn_implementation = "focusllm_test_recording"
    model(IDS)
    return list(_seen)


class _RecordingCache(DynamicCache):
    """Notes every `update`."""

    def __init__(self) -> None:
        super().__init__()
        self.updates: list[tuple[int, Tensor, Tensor]] = []

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.updates.append((layer_idx, key_states, value_states))
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


# --- modules of a model -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_names_inside_a_decoder(family: str) -> None:
    """Supported families would be refused, or their projections not be found."""
    model = build(family)
    decoder = model.get_decoder()
    for index, layer in enumerate(decoder.layers):
        attention = layer.self_attn
        split, fused = ("q_proj", "k_proj", "v_proj", "o_proj"), ("qkv_proj", "o_proj")
        names = split if hasattr(attention, "q_proj") else fused
        for name in names:
            linear = getattr(attention, name, None)
            assert isinstance(linear, nn.Linear), f"{family}: self_attn.{name}: change attention/modules.py"
        assert attention.layer_idx == index, "self_attn.layer_idx: change attention/reading.py"
    module = sys.modules[type(decoder.layers[0].self_attn).__module__]
    apply = getattr(module, "apply_rotary_pos_emb", None)
    assert apply is not None, "apply_rotary_pos_emb beside the attention class: change attention/modules.py"
    assert list(inspect.signature(apply).parameters)[:4] == ["q", "k", "cos", "sin"], "change attention/rope.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_rotary_embedding(family: str) -> None:
    """Keys could not be moved, or would be moved with the frequencies of another kind of layer."""
    model = build(family)
    rotary = model.get_decoder().rotary_emb
    parameters = list(inspect.signature(rotary.forward).parameters)
    assert parameters[:2] == ["x", "position_ids"], "rotary_emb(x, position_ids): change attention/rope.py"
    kinds = model.config.layer_types if "layer_type" in parameters else [None]
    for kind in kinds:
        name = "attention_scaling" if kind is None else f"{kind}_attention_scaling"
        assert isinstance(getattr(rotary, name, None), float | int), f"rotary_emb.{name}: change attention/rope.py"
        cos, sin = rotary(torch.zeros(1, 1, 8), torch.tensor([[0, -3]]), *([kind] if kind else []))
        assert cos.shape[:2] == sin.shape[:2] == (1, 2), "one angle per position: change attention/rope.py"
        scale = getattr(rotary, name)
        assert torch.allclose(cos[0, 0], torch.full_like(cos[0, 0], scale)), "no turn at 0: change attention/rope.py"


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "cohere", "glm4", "stablelm", "gemma3"])
def test_cache_is_updated_after_rope_and_norm(family: str) -> None:
    """A stored key would not have a position yet: memory and chunks would be without order."""
    model = build(family)
    seen: list[Tensor] = []
    for position in (0, 50):
        cache = _RecordingCache()
        with torch.no_grad():
            model(IDS[:, :1], position_ids=torch.tensor([[position]]), past_key_values=cache)
        assert [index for index, _, _ in cache.updates] == list(range(model.config.num_hidden_layers))
        seen.append(torch.stack([keys for _, keys, _ in cache.updates]))
        values = cache.updates[0][2]
        assert seen[-1].shape[1:4] == (1, values.shape[1], 1), "[rows, kv_heads, tokens, head_dim]: attention/passes.py"
    assert (seen[0] - seen[1]).abs().max() > 0.1, "keys come before RoPE now: change attention/passes.py and rope.py"


def test_deepcopy_with_a_memo_shares_parameters() -> None:
    """The reader would be a second copy of the model in memory."""
    model = build("llama")
    parameters = list(model.parameters())
    twin = copy.deepcopy(model, {id(parameter): parameter for parameter in parameters})
    message = "copy.deepcopy(model, memo) no longer shares tensors: change attention/candidates.py"
    assert all(a is b for a, b in zip(parameters, twin.parameters(), strict=True)), message
    assert twin.config is not model.config, message
    assert twin.get_decoder().layers[0].self_attn.config is twin.config, "one config per shell: attention/candidates.py"


# --- attention functions and masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("make_mask", [create_causal_mask, create_sliding_window_causal_mask])
def test_attention_without_a_mask_of_its_name_gets_none(make_mask: Any) -> None:
    """transformers would make masks for the reader, of sizes that it knows nothing about."""
    model = build("mistral")
    model.config._attn_implementation = CHUNK_ATTENTION
    mask = make_mask(
        config=model.config,
        inputs_embeds=torch.zeros(2, 5, 64),
        attention_mask=None,
        past_key_values=PassCache(3, lambda layer, keys, values: (keys, values), last=2, run_through=True),
        position_ids=torch.arange(5)[None],
    )
    assert mask is None, "an attention name without a registered mask gets one now: change attention/reading.py"


@pytest.mark.parametrize("family", FAMILIES)
def test_how_an_attention_function_is_called(family: str) -> None:
    """The reader would attend with another scale or without Gemma 2's bound."""
    model = build(family)
    calls = _recorded(model)
    assert [call[4]["layer_idx"] for call in calls] == list(range(model.config.num_hidden_layers))
    query, key, value, mask, arguments = calls[0]
    heads, kv_heads = model.config.num_attention_heads, model.config.num_key_value_heads
    message = "shapes or arguments of attention functions: change attention/reading.py"
    assert query.shape[:3] == (1, heads, IDS.shape[1]), message
    assert key.shape[:3] == value.shape[:3] == (1, kv_heads, IDS.shape[1]), message
    assert mask is None, message
    assert isinstance(arguments["scaling"], float), message
    assert arguments.get("softcap") == getattr(model.config, "attn_logit_softcapping", None), message


def test_reader_has_its_attention_and_the_model_its_own() -> None:
    """Setting the reader's attention would change the model's, or change nothing at all."""
    model = build("llama")
    own = model.config._attn_implementation
    reader = candidate_model(model, decoder_parts(model), random_projections(model))
    message = "config._attn_implementation no longer chooses the attention: change attention/candidates.py"
    assert model.config._attn_implementation == own != CHUNK_ATTENTION, message
    assert reader.get_decoder().layers[0].self_attn.config._attn_implementation == CHUNK_ATTENTION, message


# --- caches -----------------------------------------------------------------------------------------------------------


def test_what_a_cache_layer_must_have() -> None:
    """Our cache layers would lack a method that transformers calls."""
    assert CacheLayerMixin.__abstractmethods__ == {
        *("lazy_initialization", "update", "get_seq_length", "get_mask_sizes", "get_max_length"),
    }, "CacheLayerMixin has other methods: change attention/memory.py and attention/passes.py"


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3", "glm4"])
def test_memory_equals_an_ordinary_cache(family: str) -> None:
    """Masks or positions of the local context would not follow from the memory."""
    model = build(family)
    ordinary = DynamicCache()
    with torch.no_grad():
        model(IDS, past_key_values=ordinary)
        keys, values = (torch.stack([getattr(layer, n) for layer in ordinary.layers]) for n in ("keys", "values"))
        memory = Memory(keys, values).as_cache()
        behind = torch.tensor([random_tokens(7, seed=2)])
        logits = model(behind, past_key_values=memory).logits
        again = model(behind, past_key_values=memory).logits
        wanted = model(behind, past_key_values=ordinary).logits
    assert torch.equal(logits, wanted), "past_key_values as a memory: change attention/memory.py"
    assert torch.equal(again, logits), "the memory is written to: change attention/memory.py"


@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
def test_cache_of_our_layers_drops_nothing(family: str) -> None:
    """The plain model would forget what a sliding window no longer sees, and batches could not be rearranged."""
    model = build(family, sliding_window=8)
    cache = Cache(layer_class_to_replicate=RoomyLayer)
    with torch.no_grad():
        model(IDS, past_key_values=cache)
    assert cache.get_seq_length() == 12
    assert all(type(layer) is RoomyLayer for layer in cache.layers), "other layers: change methods/plain.py"
    assert all(layer.keys.shape[2] == 12 for layer in cache.layers), "the cache slides: change methods/plain.py"


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "granite"])
def test_logits_to_keep(family: str) -> None:
    """Logits of every token of the local context would be computed, or those of another token returned."""
    model = build(family)
    with torch.no_grad():
        last = model(IDS, logits_to_keep=1).logits
        assert last.shape[1] == 1, "logits_to_keep=1: change model.py and decoding.py"
        assert_equal_logits(last[:, -1], model(IDS).logits[:, -1])
        chosen = model(IDS, logits_to_keep=torch.tensor([3, 7])).logits
        assert_equal_logits(chosen, model(IDS).logits[:, [3, 7]])


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_of_the_last_layer(family: str) -> None:
    """A step would compute all of the last layer, or the layer make more of its parts' output than a sum."""
    last = build(family).get_decoder().layers[-1]
    assert isinstance(getattr(last, "mlp", None), nn.Module), "layers[-1].mlp: change attention/candidates.py"
    hidden = torch.zeros(1, 3, last.self_attn.o_proj.out_features)
    assert last.mlp(hidden).shape == hidden.shape, "mlp(hidden) returns more: change attention/candidates.py"


# --- passes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_a_pass_ended_early_leaves_the_model_usable(family: str) -> None:
    """An exception out of the middle of a forward pass would leave hooks or collected outputs behind."""
    model = build(family)
    with torch.no_grad():
        before = model(IDS, output_hidden_states=True)
        for last in (0, 1):
            stored: list[int] = []

            def store(layer: int, keys: Tensor, values: Tensor, stored: list[int] = stored) -> tuple[Tensor, Tensor]:
                stored.append(layer)
                return keys, values

            cache = PassCache(3, store, last=last, run_through=False)
            with until_done():
                model.get_decoder()(IDS, past_key_values=cache, use_cache=True, output_hidden_states=True)
            assert stored == list(range(last + 1)), "the pass did not end where it should: change attention/passes.py"
        after = model(IDS, output_hidden_states=True)
    message = "a pass ended by an exception has left something behind: change attention/passes.py"
    assert torch.equal(after.logits, before.logits), message
    assert len(after.hidden_states) == len(before.hidden_states), message


def test_an_error_in_a_pass_reaches_the_caller() -> None:
    """`until_done` would hide a failing pass, and whatever lay in the cache would be used."""
    model = build("llama")

    def fail(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        raise RuntimeError("out of memory")

    cache = PassCache(3, fail, last=1, run_through=False)
    with pytest.raises(RuntimeError, match="out of memory"), until_done():
        model.get_decoder()(IDS, past_key_values=cache, use_cache=True)


def test_gradient_checkpointing_does_not_drop_the_memory() -> None:
    """In training mode transformers drops `past_key_values` of checkpointed layers without a word: logits off by 0.6.

    `FocusModel` puts the model into evaluation mode, in which checkpointing does nothing.
    """
    model = build("llama")
    projections = random_projections(model)
    case = random_case([20, 20, 9], steps=1)
    wanted = expected(Reference(model, projections), case)
    model.activation_checkpointing_enable()
    model.train()
    assert_equal_logits(computed(focus_model(model, projections), case), wanted)
