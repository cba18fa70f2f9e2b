"""GGUF files: the model, tokenizer and settings in one are those that it was written from."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from focus_core import FocusConfig, FocusEngine, FocusWarning, UnsupportedModelError
from focus_core.loading import gguf as module
from focus_core.loading.fingerprint import model_key, weights_content
from focus_core.loading.gguf import gguf_config, gguf_path, load_gguf_tokenizer
from focus_core.loading.models import load_model
from focus_core.loading.peek import settings_on_disk
from tests.loading.conftest import HUB_ID, hub_cache
from tests.loading.gguf_files import write_gguf
from tests.tiny import byte_tokenizer

TOKENS = torch.tensor([[1, 40, 50, 60, 70, 41, 42, 43, 44, 45, 46, 47]])


@pytest.fixture
def file(base: PreTrainedModel, tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "tiny.gguf", base, byte_tokenizer())


def loaded(path: str | Path, **arguments: Any) -> PreTrainedModel:
    return load_model(path, device="cpu", **arguments).model


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


# --- names ------------------------------------------------------------------------------------------------------------


def test_every_name_of_a_file_leads_to_it(file: Path, base: PreTrainedModel) -> None:
    for name, arguments in ((file, {}), (file.parent, {}), (file.parent, {"gguf_file": file.name})):
        model = loaded(name, **arguments)
        assert torch.equal(logits(model), logits(base)), name
        assert model.dtype == torch.float32


def test_a_folder_with_several_files_names_them(file: Path) -> None:
    """The first one would be taken, perhaps one of two bits."""
    shutil.copy(file, file.with_name("other.gguf"))
    with pytest.raises(UnsupportedModelError, match=r"holds 2 GGUF files \(other\.gguf, tiny\.gguf\).*Name one"):
        loaded(file.parent)
    assert loaded(file.parent, gguf_file="tiny.gguf").config.hidden_size == 32


def test_a_saved_model_is_not_replaced_by_a_file_beside_it(model_folder: Path, file: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    shutil.copy(file, folder)
    assert gguf_path(str(folder), {}) is None
    assert gguf_path(str(folder), {"gguf_file": "tiny.gguf"}) == folder / "tiny.gguf"


def test_a_file_of_the_hub_is_named_by_gguf_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, gguf_file: str, **access: Any) -> str:
        asked.append((name, gguf_file, access))
        return str(file)

    monkeypatch.setattr(module, "hf_hub_download", download)
    assert loaded(HUB_ID, gguf_file="tiny.gguf", revision="main").config.hidden_size == 32
    assert set(map(str, asked)) == {str((HUB_ID, "tiny.gguf", {"revision": "main"}))}


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("nowhere/x.gguf", {}, r"There is no file nowhere/x\.gguf\. Give the path of a GGUF file, or a hub id with"),
        ("somebody/tiny", {"gguf_file": "x.gguf"}, r"The hub gave no x\.gguf of 'somebody/tiny'"),
    ],
)
def test_a_missing_file_is_named(name: str, arguments: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=message):
        loaded(name, **arguments)


def test_a_part_of_a_model_is_refused(file: Path) -> None:
    """transformers reads one part and fills the rest with random numbers."""
    part = file.rename(file.with_name("tiny-00001-of-00003.gguf"))
    with pytest.raises(UnsupportedModelError, match=r"one of 3 parts.*llama-gguf-split --merge"):
        loaded(part)


def test_a_damaged_file_is_named(file: Path, tmp_path: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(b"no model" + content[8:])
    with pytest.raises(UnsupportedModelError, match=r"tiny\.gguf is not a GGUF file, or a damaged one"):
        loaded(file)
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(UnsupportedModelError, match=r"No causal language model could be loaded from .*tiny\.gguf"):
        loaded(file)


def test_without_the_package_the_command_is_named(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(UnsupportedModelError, match=r"pip install 'focusllm\[gguf\]'"):
        loaded(file)


# --- the model --------------------------------------------------------------------------------------------------------


def test_a_missing_tensor_is_named(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, None, tensors={"blk.1.attn_q.weight": None}, keys=_SPECIAL)
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 of .* \(model.layers.1.self_attn.q_proj.weight\)"):
        loaded(path)


def test_a_tensor_without_a_part_for_it_is_named(base: PreTrainedModel, tmp_path: Path) -> None:
    """transformers passes it over, and the model computes something else."""
    path = write_gguf(
        tmp_path / "x.gguf", base, None, tensors={"blk.0.attn_sub_norm.weight": np.ones(32, np.float32)}, keys=_SPECIAL
    )
    with pytest.raises(UnsupportedModelError, match=r"1 tensors that LlamaForCausalLM has no part for \(blk\.0\.attn_"):
        loaded(path)


_SPECIAL = {"tokenizer.ggml.eos_token_id": 2, "llama.vocab_size": 259}


def _with_biases(model: PreTrainedModel) -> PreTrainedModel:
    settings = model.config.to_dict() | {"attention_bias": True}
    changed = AutoModelForCausalLM.from_config(type(model.config)(**settings))
    changed.load_state_dict(model.state_dict(), strict=False)
    for name, parameter in changed.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return changed.eval()


def test_biases_are_read(base: PreTrainedModel, tmp_path: Path) -> None:
    """transformers' table for Llama has none, and leaves them out."""
    biased = _with_biases(base)
    path = write_gguf(tmp_path / "x.gguf", biased, byte_tokenizer())
    assert torch.allclose(logits(loaded(path)), logits(biased), atol=1e-5)
    assert not torch.allclose(logits(biased), logits(base), atol=1e-2)


@pytest.mark.parametrize(
    ("rope", "keys"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scale_linear": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 64,
            },
        ),
    ],
    ids=["linear", "old linear", "yarn"],
)
def test_rope_scaling_is_read(
    base: PreTrainedModel, tmp_path: Path, rope: dict[str, Any], keys: dict[str, Any]
) -> None:
    """transformers passes these keys over, and positions would be those of another model."""
    scaled = _with_rope(base, rope)
    path = write_gguf(
        tmp_path / "x.gguf", base, byte_tokenizer(), keys={f"llama.{key}": value for key, value in keys.items()}
    )
    assert torch.allclose(logits(loaded(path)), logits(scaled), atol=1e-5)
    assert not torch.allclose(logits(scaled), logits(base), atol=1e-3)


def test_factors_of_llama_3_are_read(base: PreTrainedModel, tmp_path: Path) -> None:
    """They are a tensor in the file, which transformers passes over."""
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaled = _with_rope(base, rope | {"original_max_position_embeddings": 64})
    frequencies = [model.get_decoder().rotary_emb.inv_freq for model in (base, scaled)]
    factors = (frequencies[0] / frequencies[1]).numpy().astype(np.float32)
    path = write_gguf(tmp_path / "x.gguf", base, byte_tokenizer(), tensors={"rope_freqs.weight": factors})
    assert torch.allclose(logits(loaded(path)), logits(scaled), atol=1e-5)
    assert not torch.allclose(logits(scaled), logits(base), atol=1e-3)


def _with_rope(model: PreTrainedModel, rope: dict[str, Any]) -> PreTrainedModel:
    settings = model.config.to_dict()
    settings["rope_parameters"] = {"rope_theta": settings["rope_parameters"]["rope_theta"], **rope}
    changed = AutoModelForCausalLM.from_config(type(model.config)(**settings))
    changed.load_state_dict(model.state_dict())
    return changed.eval()


def test_a_rope_that_a_file_cannot_hold_is_refused(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, None, keys={**_SPECIAL, "llama.rope.scaling.type": "longrope"})
    with pytest.raises(UnsupportedModelError, match="scales its RoPE in the way 'longrope'"):
        loaded(path)


def test_the_size_of_heads_is_read(tmp_path: Path) -> None:
    """transformers' table for Qwen3 has none, and takes that of one of its models."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = Qwen3Config(vocab_size=259, num_hidden_layers=2, head_dim=16, max_position_embeddings=4096, **sizes)
    model = Qwen3ForCausalLM(config).eval()
    path = write_gguf(
        tmp_path / "x.gguf",
        model,
        byte_tokenizer(),
        architecture="qwen3",
        keys={"qwen3.attention.key_length": 16, "qwen3.attention.value_length": 16},
    )
    assert torch.allclose(logits(loaded(path)), logits(model), atol=1e-5)


def test_what_is_not_read_is_said(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, None, keys={**_SPECIAL, "llama.attention.scale": 0.5})
    with pytest.warns(FocusWarning, match=r"transformers does not read llama\.attention\.scale=0\.5"):
        loaded(path)


def test_an_architecture_that_cannot_be_read_is_named(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, None, architecture="granite")
    with pytest.raises(UnsupportedModelError, match="has the architecture 'granite'"):
        loaded(path)


def test_every_token_that_ends_a_turn_ends_an_answer(base: PreTrainedModel, tmp_path: Path) -> None:
    """Llama 3 ends a text with one token and a turn with another; an answer would go on as the next speaker."""
    keys = {"tokenizer.ggml.eot_token_id": 9, "tokenizer.ggml.eom_token_id": 2}
    path = write_gguf(tmp_path / "x.gguf", base, byte_tokenizer(), keys=keys)
    assert loaded(path).generation_config.eos_token_id == [2, 9]


def test_reading_leaves_the_libraries_as_they_were(file: Path) -> None:
    import gguf
    from transformers import modeling_gguf_pytorch_utils

    before = (gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm)
    loaded(file)
    assert (gguf.GGUFReader, gguf.get_tensor_name_map, modeling_gguf_pytorch_utils.tqdm) == before


def test_a_loaded_model_can_be_saved(file: Path, tmp_path: Path, base: PreTrainedModel) -> None:
    """transformers keeps it marked as quantised, and refuses."""
    loaded(file).save_pretrained(tmp_path / "saved")
    assert torch.equal(logits(loaded(tmp_path / "saved")), logits(base))


# --- the tokenizer ----------------------------------------------------------------------------------------------------


def tokens_of(tokenizer: PreTrainedTokenizerFast, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_the_tokenizer_is_that_of_the_file(file: Path) -> None:
    tokenizer, ours = load_gguf_tokenizer(file), byte_tokenizer()
    messages = [{"role": "user", "content": "Who?"}]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == "user: Who?\n"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<bos>", "<eos>", "<pad>")
    assert tokenizer("a b")["input_ids"] == ours("a b")["input_ids"]
    assert tokenizer("<eos>", add_special_tokens=False)["input_ids"] == [2]


def test_digits_are_split_as_the_file_says(base: PreTrainedModel, tmp_path: Path) -> None:
    """transformers knows no such rule: white space in front of a number would become other tokens."""
    tokenizer, text = byte_tokenizer(), "a  12"
    tokenizer.add_tokens(["ĠĠ", "12"])
    plain = load_gguf_tokenizer(write_gguf(tmp_path / "plain.gguf", base, tokenizer, pre="gpt-2"))
    apart = load_gguf_tokenizer(write_gguf(tmp_path / "apart.gguf", base, tokenizer, pre="smollm"))
    assert tokens_of(plain, text) == ["a", "Ġ", "Ġ", "12"]
    assert tokens_of(apart, text) == ["a", "ĠĠ", "1", "2"]


def test_an_unknown_way_to_split_is_said(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, byte_tokenizer(), pre="unheard-of")
    with pytest.warns(FocusWarning, match="splits text in the way 'unheard-of', which transformers does not know"):
        load_gguf_tokenizer(path)


def test_a_file_without_a_tokenizer_is_named(base: PreTrainedModel, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", base, None)
    with pytest.raises(UnsupportedModelError, match=r"x\.gguf has no tokenizer"):
        load_gguf_tokenizer(path)


# --- around it --------------------------------------------------------------------------------------------------------


def key_of(path: Path, dtype: str = "float32") -> str:
    return model_key(loaded(path, dtype=dtype), load_gguf_tokenizer(path), weights_content(str(path), {}))


def test_a_moved_file_is_the_same_model_and_a_changed_one_is_not(file: Path, base: PreTrainedModel) -> None:
    key = key_of(file)
    moved = Path(shutil.copy(file, file.with_name("renamed.gguf")))
    assert key_of(moved) == key
    assert key_of(file, "bfloat16") != key
    changed = base.get_decoder().layers[1].mlp.up_proj.weight
    with torch.no_grad():
        changed[3, 5] += 1.0
    assert key_of(write_gguf(moved, base, byte_tokenizer())) != key


def test_an_engine_answers_from_a_file_as_from_the_folder(model_folder: Path, file: Path) -> None:
    settings: dict[str, Any] = {"device": "cpu", "chunk_size": 64, "plain_up_to": 0}
    adapter = model_folder / "adapter"
    first, second = (FocusEngine.from_pretrained(name, adapter=adapter, **settings) for name in (model_folder, file))
    question, text = "Which?", "alpha beta " * 30
    assert first.generate(question, [text], max_new_tokens=8).text == (
        second.generate(question, [text], max_new_tokens=8).text
    )
    assert FocusEngine.from_pretrained(file, adapter=adapter, **settings).shared is second.shared


def test_an_engine_from_a_file_of_the_hub_is_that_of_the_file(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokenizer and its key, too: what was read of documents is found again under both names."""
    shutil.copy(file, file.with_name("other.gguf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub_cache(tmp_path, tmp_path / "cache")))
    config = FocusConfig(chunk_size=64)
    own, hub = (
        FocusEngine.from_pretrained(name, device="cpu", config=config, store=tmp_path / "store", **which)
        for name, which in ((file, {}), (HUB_ID, {"gguf_file": "tiny.gguf"}))
    )
    assert hub.shared.loaded.model_id == f"{HUB_ID}/tiny.gguf"
    assert hub.shared.key == own.shared.key
    text = ["alpha beta " * 400]
    first, second = (engine.generate("Which?", text, method="select", max_new_tokens=8) for engine in (own, hub))
    assert first.text == second.text
    assert first.usage.cache_creation > second.usage.cache_creation == 0
    assert settings_on_disk(HUB_ID, None, config, gguf_file="tiny.gguf") == hub.config
    assert settings_on_disk(HUB_ID, None, config, gguf_file="third.gguf") is None


@pytest.mark.parametrize("precision", ["Q8_0", "Q4_0"])
def test_an_adapter_goes_with_another_precision_of_its_base(
    model_folder: Path, base: PreTrainedModel, tmp_path: Path, precision: str
) -> None:
    kind = gguf.GGMLQuantizationType[precision]
    file = write_gguf(tmp_path / f"{precision}.gguf", base, byte_tokenizer(), quantized=kind)
    with pytest.warns(FocusWarning, match="quantised otherwise"):
        model = load_model(file, adapter=model_folder / "adapter", device="cpu").model
    assert not torch.equal(logits(model), logits(base))


def test_settings_are_known_before_loading(file: Path) -> None:
    config = FocusConfig(chunk_size=64)
    engine = FocusEngine.from_pretrained(file, device="cpu", config=config)
    assert settings_on_disk(file, None, config) == engine.config
    assert settings_on_disk(file.parent, None, config) == engine.config
    assert settings_on_disk(file.parent, None, config, gguf_file=file.name) == engine.config
    assert settings_on_disk(file.with_name("other.gguf"), None, config) is None
    assert gguf_config(file).max_position_embeddings == 4096
