"""Which model an adapter belongs to, and which models may use each other's prefilled chunks."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from focus_core import AdapterError, DocumentError, FocusConfig, FocusEngine
from focus_core.errors import FocusWarning
from focus_core.loading import file_hashes
from focus_core.loading.adapters import ADAPTER_CONFIG, load_adapter
from focus_core.loading.fingerprint import model_key, weights_content
from focus_core.loading.models import load_model
from focus_core.text.tokenizer import load_tokenizer
from tests.loading.conftest import COMMIT, HUB_ID, hub_cache
from tests.tiny import byte_tokenizer

# --- adapters ---------------------------------------------------------------------------------------------------------


def test_an_adapter_of_another_shape_is_refused(adapter: Path, base: PreTrainedModel) -> None:
    base.config.hidden_size += 1
    base.config.vocab_size += 2
    with pytest.raises(AdapterError, match=r"hidden_size: adapter 32, model 33; .*vocab_size: adapter"):
        load_adapter(adapter, base)


def test_an_adapter_of_other_layers_is_refused_and_one_from_before_is_not(adapter: Path, base: PreTrainedModel) -> None:
    """Adapters did not always remember how wide the layers of their model are."""
    base.config.intermediate_size += 1
    with pytest.raises(AdapterError, match=r"another shape \(intermediate_size: adapter \d+, model \d+\)"):
        load_adapter(adapter, base)
    description = json.loads((adapter / ADAPTER_CONFIG).read_text())
    for name in ("head_dim", "intermediate_size"):
        del description["fingerprint"]["shape"][name]
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(description))
    load_adapter(adapter, base)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_one_other_matrix_is_another_base(adapter: Path, base: PreTrainedModel, name: str) -> None:
    """Of the same size, as those of any model that was trained alike."""
    with torch.no_grad():
        base.get_decoder().layers[1].get_submodule(name).weight.neg_()
    with pytest.warns(FocusWarning, match="1 of its 4 parts differ: it was trained further, or quantised otherwise"):
        load_adapter(adapter, base)


def test_another_embedding_is_another_base(adapter: Path, base: PreTrainedModel) -> None:
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(1.1)
    with pytest.warns(FocusWarning, match="1 of its 4 parts differ"):
        load_adapter(adapter, base)


def test_a_model_that_was_trained_further_gets_its_base_models_adapter(adapter: Path, base: PreTrainedModel) -> None:
    """Or one that was quantised to four bits and back: some hundredths of every weight."""
    torch.manual_seed(0)
    with torch.no_grad():
        for weight in base.parameters():
            weight.add_(torch.randn_like(weight) * weight.std(correction=0) * 0.1)
    with pytest.warns(FocusWarning, match="4 of its 4 parts differ"):
        load_adapter(adapter, base)


def test_a_model_that_was_trained_apart_does_not(adapter: Path, base: PreTrainedModel) -> None:
    """Of the same architecture and size: the adapter would be noise to it."""
    torch.manual_seed(7)
    other = type(base)(base.config)
    with pytest.raises(AdapterError, match="same shape whose weights have nothing to do with this one's"):
        load_adapter(adapter, other)


def test_a_part_without_a_sample_is_one_that_differs(adapter: Path, base: PreTrainedModel) -> None:
    """Of a base model that was quantised there are fewer weights to compare."""
    path = adapter / ADAPTER_CONFIG
    description = json.loads(path.read_text())
    description["fingerprint"]["weights"]["layer 0"] = ""
    path.write_text(json.dumps(description))
    with pytest.warns(FocusWarning, match="1 of its 4 parts differ"):
        load_adapter(adapter, base)


def test_the_same_base_in_half_precision_is_the_same_base(adapter: Path, base: PreTrainedModel) -> None:
    load_adapter(adapter, base.to(torch.bfloat16))


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def key_of(name: str | Path, *, dtype: str = "float32", **arguments: Any) -> str:
    model = load_model(name, device="cpu", dtype=dtype, **arguments).model
    return model_key(model, load_tokenizer(str(name), arguments), weights_content(str(name), arguments))


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_copy_a_link_and_touched_files_have_the_same_key(folder: Path, tmp_path: Path) -> None:
    """Prepared documents would be lost when a model is moved, or a backup restored."""
    key = key_of(folder)
    copy, link = Path(shutil.copytree(folder, tmp_path / "copy")), tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    for path in copy.iterdir():
        os.utime(path, (1, 1))
    assert [key_of(copy), key_of(link)] == [key, key]


def _another_weight(folder: Path) -> None:
    """One number of a matrix of which `weights_fingerprint` samples others."""
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1.0
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _another_rope(folder: Path) -> None:
    edit_json(folder / "config.json", rope_parameters={"rope_type": "default", "rope_theta": 500.0})


def _another_vocabulary(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    vocab["a"], vocab["b"] = vocab["b"], vocab["a"]
    path.write_text(json.dumps(content))


def _another_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")


@pytest.mark.parametrize(
    "change",
    [
        _another_weight,
        _another_rope,
        _another_vocabulary,
        _another_template,
        lambda folder: edit_json(folder / "config.json", rms_norm_eps=1e-3),
    ],
    ids=["weight", "rope", "vocabulary", "template", "norm"],
)
def test_other_content_has_another_key(folder: Path, change: Callable[[Path], None]) -> None:
    """Keys and values of one model would be used by another, and give wrong answers without an error.

    SGLang #27504, #29443: garbled answers from pages of other settings, and of the weights before an update.
    """
    key = key_of(folder)
    change(folder)
    assert key_of(folder) != key


@pytest.mark.parametrize(
    "arguments",
    [
        {"dtype": "bfloat16"},
        {"attn_implementation": "eager"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    ],
    ids=lambda arguments: next(iter(arguments)),
)
def test_other_arguments_have_another_key(folder: Path, arguments: dict[str, Any]) -> None:
    """The same files compute something else with them."""
    assert key_of(folder, **arguments) != key_of(folder)


def test_settings_that_change_no_number_leave_the_key(folder: Path) -> None:
    key = key_of(folder)
    edit_json(folder / "config.json", use_cache=False, transformers_version="5.0.0", architectures=None)
    assert key_of(folder) == key


def test_a_variant_of_the_weights_has_another_key(folder: Path) -> None:
    """Both variants are files of the same folder; only what was loaded tells them apart."""
    tensors = {name: tensor * 0.5 for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.half.safetensors", metadata={"format": "pt"})
    assert key_of(folder, variant="half") != key_of(folder)


def test_a_call_of_the_tokenizer_leaves_the_key(folder: Path) -> None:
    """A fast tokenizer remembers padding and truncation of its last call."""
    model, tokenizer = load_model(folder, device="cpu").model, load_tokenizer(str(folder))
    key = model_key(model, tokenizer, {})
    tokenizer(["a", "long text"], padding=True, truncation=True, max_length=3)
    assert model_key(model, tokenizer, {}) == key


def test_bin_shards_have_a_key_by_content(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}

    def save() -> None:
        for file, part in halves.items():
            torch.save({name: tensors[name] for name in part}, folder / file)

    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    save()
    key = key_of(folder)
    save()
    assert key_of(folder) == key
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] += 1.0
    save()
    assert key_of(folder) != key


class SlowTokenizer:
    """The part of a tokenizer without the library `tokenizers` that a key depends on."""

    is_fast = False
    chat_template = None
    special_tokens_map: dict[str, str] = {}  # noqa: RUF012
    vocab_files_names = {"vocab_file": "spiece.model", "extra_file": "extra.json"}  # noqa: RUF012

    def __init__(self, vocab_file: Path) -> None:
        self.vocab_file = str(vocab_file)
        self.extra_file = None

    def get_vocab(self) -> dict[str, int]:
        return {"a": 0}


def test_a_slow_tokenizer_is_known_by_its_files(folder: Path, tmp_path: Path) -> None:
    """Two of them can have the same vocabulary and other scores."""
    model = load_model(folder, device="cpu").model

    def key(content: str, name: str) -> str:
        path = tmp_path / name
        path.write_text(content)
        return model_key(model, SlowTokenizer(path), {})  # type: ignore[arg-type]

    assert key("scores", "here") == key("scores", "there")
    assert key("scores", "here") != key("others", "there")


# --- the hub ----------------------------------------------------------------------------------------------------------


def test_a_model_of_the_hub_has_the_key_of_its_copy(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its large files are not read: the hub's cache names them by their hash."""
    read: list[str] = []
    read_file = file_hashes._read
    monkeypatch.setattr(file_hashes, "_read", lambda path: read.append(path.name) or read_file(path))
    key = key_of(HUB_ID, cache_dir=hub_cache(folder, tmp_path / "cache"))
    assert read == []
    assert key_of(folder) == key
    assert read == ["model.safetensors"]


def test_a_snapshot_without_weights_is_known_by_its_commit(folder: Path, tmp_path: Path) -> None:
    """Weights that the hub's bot has converted come from a pull request."""
    (folder / "model.safetensors").unlink()
    assert weights_content(HUB_ID, {"cache_dir": hub_cache(folder, tmp_path / "cache")}) == {HUB_ID: COMMIT}


def test_without_files_there_is_no_content(folder: Path) -> None:
    assert weights_content("somebody/else", {}) == {}
    (folder / "model.safetensors").unlink()
    assert weights_content(str(folder), {}) == {}


# --- engines ----------------------------------------------------------------------------------------------------------

TEXT = "alpha " * 30


def test_documents_prepared_with_a_copy_of_the_model_are_accepted(folder: Path, tmp_path: Path) -> None:
    """They would have to be read again after a model folder has been moved."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    first, second = (
        FocusEngine.from_pretrained(name, device="cpu", plain_up_to=0, chunk_size=64) for name in (folder, copy)
    )
    answer = second.generate("Which?", first.prepare(TEXT), max_new_tokens=4)
    assert answer.text == first.generate("Which?", [TEXT], max_new_tokens=4).text


def test_documents_of_another_model_under_the_same_name_are_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens of one model's tokenizer would go to another model."""
    monkeypatch.chdir(folder.parent)
    prepared = FocusEngine.from_pretrained("model", device="cpu", plain_up_to=0).prepare([TEXT])
    other = Path(shutil.copytree(folder, tmp_path / "else" / "model"))
    _another_weight(other)
    monkeypatch.chdir(other.parent)
    with pytest.raises(DocumentError, match="Prepare them again"):
        FocusEngine.from_pretrained("model", device="cpu").generate("Which?", prepared)


def test_models_made_in_python_share_with_no_other(model_folder: Path) -> None:
    """Their weights may be changed at any time, so that no key could be trusted."""
    config = FocusConfig(plain_up_to=0)
    first, second = (
        FocusEngine.from_model(AutoModelForCausalLM.from_pretrained(model_folder), byte_tokenizer(), config=config)
        for _ in range(2)
    )
    with pytest.raises(DocumentError, match="Prepare them again"):
        second.generate("Which?", first.prepare(TEXT))
