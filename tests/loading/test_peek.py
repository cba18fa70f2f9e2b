"""The settings read from files are those of the engine that would be loaded from them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from focus_core import FocusConfig, FocusEngine, FocusModel
from focus_core.loading import peek
from focus_core.loading.adapters import ADAPTER_CONFIG
from focus_core.loading.named import EMBEDDED, EMBEDDED_ADAPTER, EMBEDDED_BASE
from focus_core.loading.peek import settings_on_disk
from tests.loading.conftest import COMMIT, HUB_ID, hub_cache

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CHOSEN = FocusConfig(local_window=48)


def test_a_model_and_its_adapter(model_folder: Path) -> None:
    adapter = model_folder / "adapter"
    for given in (None, adapter):
        engine = FocusEngine.from_pretrained(model_folder, adapter=given, config=CHOSEN, device="cpu")
        assert settings_on_disk(model_folder, given, CHOSEN) == engine.config


def test_a_checkpoint_of_the_authors() -> None:
    """A wrapper would promise the length of a model with chunks of another size."""
    source = GOLDEN / "gqa_partial_chunk"
    model = FocusModel.from_pretrained(source, device="cpu")
    assert settings_on_disk(source, None, FocusConfig()) == model.config


@pytest.mark.skipif(not (EMBEDDED_BASE / "config.json").is_file(), reason="the embedded model is not in the package")
@pytest.mark.parametrize("name", [None, EMBEDDED])
def test_the_embedded_model(name: str | None) -> None:
    model = FocusModel.from_pretrained(EMBEDDED_BASE, adapter=EMBEDDED_ADAPTER, device="cpu")
    assert settings_on_disk(name, None, FocusConfig()) == model.config


def test_a_model_and_an_adapter_in_the_cache_of_the_hub(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    shutil.copy(folder / "adapter" / ADAPTER_CONFIG, folder)
    cache, look = hub_cache(folder, tmp_path / "cache"), peek.local_folder
    monkeypatch.setattr(peek, "local_folder", lambda *names, **options: look(*names, **options, cache_dir=cache))
    wanted = settings_on_disk(model_folder, model_folder / "adapter", CHOSEN)
    assert wanted is not None
    assert settings_on_disk(HUB_ID, HUB_ID, CHOSEN) == wanted
    assert settings_on_disk(HUB_ID, HUB_ID, CHOSEN, revision=COMMIT) == wanted
    assert settings_on_disk(HUB_ID, HUB_ID, CHOSEN, revision="another") is None


@pytest.mark.parametrize("name", ["nowhere", "nobody/has-this-model", "x" * 300, "no\0path", "a/b/c"])
def test_missing_files_are_not_guessed(name: str, model_folder: Path) -> None:
    """Half of the settings would be a guess."""
    assert settings_on_disk(name, None, CHOSEN) is None
    assert settings_on_disk(model_folder, name, CHOSEN) is None


def test_damaged_files_are_not_known(model_folder: Path, tmp_path: Path) -> None:
    """A property of a wrapper must not raise: loading will, and says why."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    path = folder / "adapter" / ADAPTER_CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | {"config": {"chunk_sise": 3}}))
    assert settings_on_disk(folder, folder / "adapter", CHOSEN) is None
    (folder / "config.json").write_text("{")
    assert settings_on_disk(folder, None, CHOSEN) is None
