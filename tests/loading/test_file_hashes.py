"""Hashes of large files are remembered, and a memory that is lost or damaged only costs reading again."""

from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from focus_core.loading import file_hashes as module
from focus_core.loading.file_hashes import file_hashes


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which hashes are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "focusllm" / "file_hashes.json"


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that have been read."""
    names: list[str] = []
    original = module._read
    monkeypatch.setattr(module, "_read", lambda path: names.append(path.name) or original(path))
    return names


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"weights")
    return path


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def test_a_file_is_read_once(weights: Path, cache: Path, read: list[str]) -> None:
    """Every start of a program would read many gigabytes."""
    assert [file_hashes([weights]) for _ in range(3)] == [{weights: digest(b"weights")}] * 3
    assert read == ["model.safetensors"]
    assert str(weights) in json.loads(cache.read_text())


def test_a_changed_file_is_read_again(weights: Path, cache: Path, read: list[str]) -> None:
    """Also if its size and its time of modification are those from before, as after a restored backup."""
    file_hashes([weights])
    before = weights.stat()
    weights.write_bytes(b"changed")
    os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file_hashes([weights]) == {weights: digest(b"changed")}
    os.utime(weights)
    assert file_hashes([weights]) == {weights: digest(b"changed")}
    assert len(read) == 3


def test_a_link_is_known_by_its_target(weights: Path, cache: Path, read: list[str]) -> None:
    link = weights.with_name("link.safetensors")
    link.symlink_to(weights)
    assert file_hashes([weights]) == {weights: digest(b"weights")}
    assert file_hashes([link]) == {link: digest(b"weights")}
    assert len(read) == 1


def test_a_blob_of_the_hub_is_not_read(tmp_path: Path, cache: Path, read: list[str]) -> None:
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    large, small = blobs / ("a" * 64), blobs / ("b" * 40)  # git names small files by SHA-1 of something else
    for path in (large, small):
        path.write_bytes(b"{}")
    assert file_hashes([large, small]) == {large: "a" * 64, small: digest(b"{}")}
    assert read == [small.name]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"%s": 3}', '{"%s": {"stamp": null, "sha256": 4}}', "\udc80"])
def test_a_damaged_memory_is_no_error(weights: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_bytes(content.replace("%s", str(weights)).encode(errors="surrogateescape"))
    assert file_hashes([weights]) == {weights: digest(b"weights")}
    assert str(weights) in json.loads(cache.read_text())


def test_a_folder_that_cannot_be_written_is_no_error(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: list[str]
) -> None:
    """In containers the home folder is often read-only or missing."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert [file_hashes([weights]) for _ in range(2)] == [{weights: digest(b"weights")}] * 2
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    assert file_hashes([weights]) == {weights: digest(b"weights")}
    assert len(read) == 3


def test_files_that_are_gone_are_forgotten(weights: Path, cache: Path) -> None:
    """The memory would grow with every model that was ever tried."""
    other = weights.with_name("other.safetensors")
    other.write_bytes(b"other")
    file_hashes([other])
    other.unlink()
    file_hashes([weights])
    assert list(json.loads(cache.read_text())) == [str(weights)]


def test_many_at_once_leave_a_whole_memory(tmp_path: Path, cache: Path) -> None:
    paths = [tmp_path / f"{number}.safetensors" for number in range(40)]
    for path in paths:
        path.write_bytes(path.name.encode())
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda path: file_hashes([path]), paths))
    assert found == [{path: digest(path.name.encode())} for path in paths]
    assert json.loads(cache.read_text())
    assert [path.name for path in cache.parent.iterdir()] == [cache.name]


def test_a_file_that_changes_while_it_is_read_is_not_remembered(
    weights: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hash of a half-written file would stand for the whole one."""
    original = module._read

    def written_meanwhile(path: Path) -> str:
        found = original(path)
        path.write_bytes(b"longer weights")
        return found

    monkeypatch.setattr(module, "_read", written_meanwhile)
    file_hashes([weights])
    monkeypatch.setattr(module, "_read", original)
    assert file_hashes([weights]) == {weights: digest(b"longer weights")}
