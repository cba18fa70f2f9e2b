"""Names that are no model, and settings that no model can be loaded with."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel

from focus_core import AdapterError, ConfigError, FocusModel, UnsupportedModelError
from focus_core.loading.adapters import load_adapter


def test_missing_adapter_and_missing_model_are_refused(tmp_path: Path, base: PreTrainedModel) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        load_adapter(tmp_path / "nowhere", base)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        FocusModel.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"There is no folder .*nowhere"):
        FocusModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModelError, match="No causal language model"):
        FocusModel.from_pretrained("nobody/has-this-model")


@pytest.mark.parametrize("name", ["x" * 300, "no\0path"])
def test_what_is_no_path_is_no_model_and_no_adapter(name: str, model_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="No causal language model"):
        FocusModel.from_pretrained(name, device="cpu")
    with pytest.raises(AdapterError, match="there is no such folder"):
        FocusModel.from_pretrained(model_folder, adapter=name, device="cpu")


def test_a_model_over_several_devices_is_refused_by_name(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="device_map='auto': the model must be on one device"):
        FocusModel.from_pretrained(model_folder, device_map="auto")
