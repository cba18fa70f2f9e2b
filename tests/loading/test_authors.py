"""The authors' checkpoints: in one file or in shards, as they are or split into base and adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from focus_core import AdapterError, FocusModel
from focus_core.loading import authors
from focus_core.loading.authors import split_authors_checkpoint
from focus_core.methods.continuation import continue_tokens
from focus_core.text.tokenizer import load_tokenizer
from tests.cases import assert_equal_logits
from tests.tiny import byte_tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


@pytest.mark.parametrize("name", ["gqa_partial_chunk", "mha_prompt_truncated_to_512"])
def test_authors_checkpoint_splits_into_base_and_adapter(tmp_path: Path, name: str) -> None:
    golden = load_file(GOLDEN / name / "golden.safetensors")
    split_authors_checkpoint(GOLDEN / name, base=tmp_path / "base", adapter=tmp_path / "adapter")
    assert "beacon_param" not in json.loads((tmp_path / "base" / "config.json").read_text())
    model = FocusModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    steps = len(golden["logits"]) - 1
    logits = continue_tokens(model, golden["input_ids"], max_new_tokens=steps, return_logits=True).logits
    torch.testing.assert_close(logits, golden["logits"], atol=2e-5, rtol=0)


def test_a_split_checkpoint_keeps_its_dtype_and_tokenizer(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, "dtype": "bfloat16"}))
    byte_tokenizer().save_pretrained(source)
    split_authors_checkpoint(source, base=tmp_path / "base", adapter=tmp_path / "adapter")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    tokenizer = load_tokenizer(str(tmp_path / "base"))
    assert tokenizer("abc")["input_ids"] == byte_tokenizer()("abc")["input_ids"]


def sharded(source: Path, folder: Path) -> Path:
    """A copy in two files that both hold maps and candidate projections, and the index that transformers writes."""
    folder.mkdir()
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        assert any("beacon_" in name for name in part)
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(source / "config.json", folder)
    return folder


@pytest.mark.parametrize("name", ["gqa_partial_chunk", "mha_prompt_truncated_to_512"])
@pytest.mark.parametrize("split", [False, True], ids=["as_it_is", "split"])
def test_shards_of_the_authors_give_the_golden_logits(tmp_path: Path, name: str, split: bool) -> None:
    """Projections of all shards but one would stay copies of the model's own maps, without a word."""
    folder, adapter = sharded(GOLDEN / name, tmp_path / "shards"), None
    if split:
        base, adapter = tmp_path / "base", tmp_path / "adapter"
        split_authors_checkpoint(folder, base=base, adapter=adapter)
        folder = base
    golden = load_file(GOLDEN / name / "golden.safetensors")
    model = FocusModel.from_pretrained(folder, adapter=adapter, device="cpu", dtype="float32")
    steps = len(golden["logits"]) - 1
    logits = continue_tokens(model, golden["input_ids"], max_new_tokens=steps, return_logits=True).logits
    assert logits is not None
    assert_equal_logits(logits, golden["logits"], atol=2e-5)


@pytest.mark.parametrize("as_zip", [True, False])  # torch wrote no zip files before 1.6
def test_authors_checkpoint_in_bin_shards(tmp_path: Path, as_zip: bool) -> None:
    """As the authors' trainer may have written it; the file names are those of transformers."""
    source = GOLDEN / "gqa_partial_chunk"
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in halves.items():
        part_of_model = {key: tensors[key] for key in part}
        torch.save(part_of_model, tmp_path / file, _use_new_zipfile_serialization=as_zip)
    index = {"metadata": {}, "weight_map": {key: file for file, part in halves.items() for key in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shutil.copy(source / "config.json", tmp_path)
    golden = load_file(source / "golden.safetensors")
    model = FocusModel.from_pretrained(tmp_path, device="cpu")
    logits = continue_tokens(model, golden["input_ids"], max_new_tokens=1, return_logits=True).logits
    torch.testing.assert_close(logits, golden["logits"][:2], atol=2e-5, rtol=0)


def test_a_bin_file_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format before torch 1.6 are read whole, and were once for every tensor."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "gqa_partial_chunk", folder)
    torch.save(
        load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (folder / "model.safetensors").unlink()
    loaded: list[Path] = []
    load = authors._load_bin
    monkeypatch.setattr(authors, "_load_bin", lambda path: loaded.append(path) or load(path))
    FocusModel.from_pretrained(folder, device="cpu")
    assert len(loaded) == 3  # twice for the names, once for the tensors


_BEACON_Q = "model.layers.0.self_attn.beacon_q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{_BEACON_Q}.weight": None}, rf"of {_BEACON_Q} there is \[\], and the model has \['weight'\]"),
        ({f"{_BEACON_Q}.bias": torch.zeros(64)}, r"there is \['bias', 'weight'\], and the model has \['weight'\]"),
        ({f"{_BEACON_Q}.bias": torch.zeros(64), f"{_BEACON_Q}.weight": None}, r"there is \['bias'\]"),
        ({f"{_BEACON_Q}.weight": torch.zeros(1, 64)}, rf"{_BEACON_Q} has the shape \[1, 64\], and the model needs"),
    ],
)
def test_authors_checkpoints_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """A tensor that is not there would be the base model's, and one row would stand for all."""
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(AdapterError, match=message):
        FocusModel.from_pretrained(folder, device="cpu")


def test_a_tensor_too_much_of_what_was_not_trained_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "beacon_param": ["k", "v"]}))
    tensors = load_file(folder / "model.safetensors") | {f"{_BEACON_Q}.bias": torch.zeros(64)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(AdapterError, match=rf"of {_BEACON_Q} there is \['bias', 'weight'\]"):
        FocusModel.from_pretrained(folder, device="cpu")


def test_a_truncated_checkpoint_of_the_authors_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"model\.safetensors is damaged or cut short"):
        split_authors_checkpoint(folder, base=tmp_path / "b", adapter=tmp_path / "a")


def test_a_damaged_bin_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"these are no weights")
    with pytest.raises(AdapterError, match=r"pytorch_model\.bin is damaged or cut short"):
        split_authors_checkpoint(tmp_path, base=tmp_path / "b", adapter=tmp_path / "a")


def test_folder_without_beacon_tensors_cannot_be_split(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="beacon"):
        split_authors_checkpoint(model_folder, base=tmp_path / "b", adapter=tmp_path / "a")
