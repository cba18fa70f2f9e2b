"""Adapters and authors' checkpoints by hub id: which files are asked for, and how the hub's errors are passed on."""

from __future__ import annotations

import shutil
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from focus_core import AdapterError, FocusModel
from focus_core.loading import hub as hub_module
from focus_core.loading import models
from focus_core.loading.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


class Hub:
    """Takes the place of `snapshot_download`; downloads what the patterns allow of a repository and nothing else."""

    def __init__(self, repository: Path, downloads: Path) -> None:
        self.repository, self.downloads = repository, downloads
        self.asked: list[str] = []

    def __call__(self, repo_id: str, *, allow_patterns: list[str], **arguments: object) -> str:
        self.asked.append(repo_id)
        self.arguments = arguments
        self.downloads.mkdir()
        for path in self.repository.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                shutil.copy(path, self.downloads)
        return str(self.downloads)


@pytest.fixture
def hub(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    """Has the tiny model's adapter, with a large file beside it that nobody needs."""
    repository = Path(shutil.copytree(model_folder / "adapter", tmp_path / "repository"))
    (repository / "pytorch_model.bin").write_bytes(b"large")
    found = Hub(repository, tmp_path / "downloads")
    monkeypatch.setattr(hub_module, "snapshot_download", found)
    return found


def test_an_adapter_is_loaded_by_its_hub_id(hub: Hub, model_folder: Path) -> None:
    """A hub id would be taken for a folder, or only one of the two files be downloaded."""
    model = FocusModel.from_pretrained(model_folder, adapter="somebody/an-adapter", device="cpu", token="hf_1")
    wanted = FocusModel.from_pretrained(model_folder, adapter=model_folder / "adapter", device="cpu")
    assert (hub.asked, hub.arguments) == (["somebody/an-adapter"], {"token": "hf_1"})
    assert {path.name for path in hub.downloads.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS}
    assert model.config == wanted.config
    for name, tensor in wanted.projections.state_dict().items():
        assert torch.equal(model.projections.state_dict()[name], tensor), name


def test_a_checkpoint_of_the_authors_is_known_by_its_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its candidate projections would be left unread, and the answers be those of an untrained model."""
    source = GOLDEN / "gqa_partial_chunk"
    hub = Hub(source, tmp_path / "downloads")
    monkeypatch.setattr(hub_module, "snapshot_download", hub)
    load_base = models.load_base
    monkeypatch.setattr(models, "load_base", lambda name, *rest, **options: load_base(str(source), *rest, **options))
    model = FocusModel.from_pretrained("authors/checkpoint", device="cpu")
    wanted = FocusModel.from_pretrained(source, device="cpu")
    assert hub.asked == ["authors/checkpoint"]
    assert model.config == wanted.config
    for name, tensor in wanted.projections.state_dict().items():
        assert torch.equal(model.projections.state_dict()[name], tensor), name


def test_files_of_the_authors_that_the_hub_does_not_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """The base model can be in the cache while the network is gone: a traceback of the hub would end the command."""

    def gone(name: str, **_: object) -> str:
        raise LocalEntryNotFoundError("no network")

    source = GOLDEN / "gqa_partial_chunk"
    load_base = models.load_base
    monkeypatch.setattr(hub_module, "snapshot_download", gone)
    monkeypatch.setattr(models, "load_base", lambda name, *rest, **options: load_base(str(source), *rest, **options))
    with pytest.raises(AdapterError, match=r"config of authors/checkpoint names candidate projections.*no network"):
        FocusModel.from_pretrained("authors/checkpoint", device="cpu")


@pytest.mark.parametrize("name", ["./adapter", "adapter", "/somebody/adapter", "some/body/adapter"])
def test_what_is_no_hub_id_is_not_asked_for(hub: Hub, model_folder: Path, name: str) -> None:
    """A path with a slip of the pen would be looked for on the hub, and the error would speak of the network."""
    with pytest.raises(AdapterError, match="there is no such folder"):
        FocusModel.from_pretrained(model_folder, adapter=name, device="cpu")
    assert hub.asked == []


def test_an_adapter_that_the_hub_does_not_have_is_refused(model_folder: Path) -> None:
    with pytest.raises(AdapterError, match="'nobody/has-this': there is no such folder, and the hub gave none"):
        FocusModel.from_pretrained(model_folder, adapter="nobody/has-this", device="cpu")
