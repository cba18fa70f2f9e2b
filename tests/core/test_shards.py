"""Checkpoints of the authors as large ones are saved: in several safetensors files with an index."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from focus_core import AdapterError, FocusModel, split_authors_checkpoint
from focus_core.loading import checkpoint
from tests.cases import assert_equal_logits

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


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
    logits = model.generate(golden["input_ids"], max_new_tokens=steps, return_logits=True).logits
    assert logits is not None
    assert_equal_logits(logits, golden["logits"], atol=2e-5)


def test_a_damaged_bin_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"these are no weights")
    with pytest.raises(AdapterError, match=r"pytorch_model\.bin is damaged or cut short"):
        split_authors_checkpoint(tmp_path, base=tmp_path / "b", adapter=tmp_path / "a")


def test_a_bin_file_is_loaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of the format before torch 1.6 are read whole, and were once for every tensor."""
    folder = tmp_path / "model"
    shutil.copytree(GOLDEN / "gqa_partial_chunk", folder)
    torch.save(
        load_file(folder / "model.safetensors"), folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    )
    (folder / "model.safetensors").unlink()
    loaded: list[Path] = []
    load = checkpoint._load_bin
    monkeypatch.setattr(checkpoint, "_load_bin", lambda path: loaded.append(path) or load(path))
    FocusModel.from_pretrained(folder, device="cpu")
    assert len(loaded) == 3  # twice for the names, once for the tensors
