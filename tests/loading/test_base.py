"""Base models by way of transformers: its errors become ours, and its reports are silenced."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from focus_core import FocusModel, UnsupportedModelError


def test_what_transformers_cannot_load_is_named(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="FlashAttention2"):
        FocusModel.from_pretrained(model_folder, device="cpu", attn_implementation="flash_attention_2")
    folder = Path(shutil.copytree(model_folder, tmp_path / "other"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": settings["hidden_size"] * 2}))
    with pytest.raises(UnsupportedModelError, match="No causal language model could be loaded"):
        FocusModel.from_pretrained(folder, device="cpu")


def test_a_model_without_all_of_its_tensors_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """transformers would make random numbers of them, with a warning."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 of .* \(model.layers.1.self_attn.q_proj.weight\)"):
        FocusModel.from_pretrained(folder, device="cpu")


def test_loading_leaves_transformers_as_talkative_as_it_was(model_folder: Path) -> None:
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        FocusModel.from_pretrained(model_folder, device="cpu")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        (logging.enable_progress_bar if bar else logging.disable_progress_bar)()
