"""`focusllm prepare`, `ask --store` and `store`: read yesterday, there today, and listed by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.conftest import Focusllm
from tests.engines import A, B

TWO_DOCUMENTS = len(A) + len(B)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = tmp_path / "a.txt", tmp_path / "b.txt"
    for path, text in zip(paths, (A, B), strict=True):
        path.write_text(text)
    return paths


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def prepare(focusllm: Focusllm, model_folder: Path, files: tuple[Path, Path], store: Path) -> Any:
    """Both documents into the store."""

    def run(*arguments: str | Path) -> Any:
        fixed = ("prepare", "--model", model_folder, "--adapter", model_folder / "adapter", "--store", store)
        return focusllm(*fixed, "-d", files[0], "-d", files[1], *arguments)

    return run


@pytest.fixture
def listed(focusllm: Focusllm, store: Path) -> Any:
    def run() -> Any:
        return json.loads(focusllm("store", "ls", "--store", store, "--json").stdout)

    return run


def test_what_was_prepared_is_not_read_again(
    prepare: Any, ask: Focusllm, files: tuple[Path, Path], store: Path
) -> None:
    first, again = prepare(), prepare()
    assert first.exit_code == again.exit_code == 0, first.output + again.output
    assert f"2 documents, {TWO_DOCUMENTS:,} tokens" in first.stdout
    assert f"{TWO_DOCUMENTS:,} tokens read" in first.stdout
    assert " 0 tokens read" in again.stdout
    asked = ask("-d", files[1], "-d", files[0], "--store", store, "--json", "Which?")
    usage = json.loads(asked.stdout)["usage"]
    assert (usage["cache_read"], usage["cache_creation"]) == (TWO_DOCUMENTS, 0)


def test_the_environment_names_the_store(
    focusllm: Focusllm, prepare: Any, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare()
    monkeypatch.setenv("FOCUSLLM_STORE", str(store))
    assert "a.txt" in focusllm("store", "ls").stdout


def test_documents_are_listed_by_name(
    prepare: Any, focusllm: Focusllm, listed: Any, files: tuple[Path, Path], store: Path
) -> None:
    prepare()
    documents = {one["name"]: one for one in listed()["documents"]}
    assert set(documents) == set(map(str, files))
    for path, text in zip(files, (A, B), strict=True):
        one = documents[str(path)]
        assert one["tokens"] == len(text)
        assert one["there"] == len(set(one["chunks"]))
    shown = focusllm("store", "ls", "--store", store).stdout
    assert f"{files[0]}  {len(A)} tokens  " in shown


def test_a_removed_document_leaves_what_others_share(
    prepare: Any, focusllm: Focusllm, listed: Any, files: tuple[Path, Path], store: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy.txt"
    copy.write_text(A)
    prepare("-d", copy)
    assert len(listed()["documents"]) == 3
    removed = focusllm("store", "rm", files[0], files[1], "--store", store)
    assert removed.stdout.startswith("2 documents removed")
    (left,) = listed()["documents"]
    assert left["name"] == str(copy)
    assert left["there"] == len(set(left["chunks"]))
    assert len(list(store.rglob("*.safetensors"))) == left["there"]


def test_an_unknown_document(prepare: Any, focusllm: Focusllm, store: Path) -> None:
    prepare()
    result = focusllm("store", "rm", "nobody.txt", "--store", store)
    assert result.exit_code == 1
    assert "'nobody.txt': the store has no document of this name" in result.stderr


def test_verify_names_what_is_wrong_and_removes_it_if_asked(prepare: Any, focusllm: Focusllm, store: Path) -> None:
    prepare()
    sound = focusllm("store", "verify", "--store", store)
    assert (sound.exit_code, sound.stdout.split(", ")[1]) == (0, "0 of them wrong.\n")
    path = next(store.rglob("*.safetensors"))
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    wrong = focusllm("store", "verify", "--store", store)
    assert wrong.exit_code == 1
    assert f"{path}: the checksum of its" in wrong.stdout
    assert focusllm("store", "verify", "--store", store, "--remove").exit_code == 0
    assert not path.exists()


def test_verify_finds_a_chunk_under_the_name_of_another(prepare: Any, focusllm: Focusllm, store: Path) -> None:
    prepare()
    first, second, *_ = sorted(store.rglob("*.safetensors"))
    first.write_bytes(second.read_bytes())
    assert "its name is not the key of its tokens" in focusllm("store", "verify", "--store", store).stdout


def test_prune_by_size_and_by_use(prepare: Any, focusllm: Focusllm, listed: Any, store: Path) -> None:
    prepare()
    before = listed()["nbytes"]
    assert focusllm("store", "prune", "--store", store, "--unused", "1").stdout == "0.0 MiB freed.\n"
    focusllm("store", "prune", "--store", store, "--limit", str(before // 2))
    assert 0 < listed()["nbytes"] <= before // 2
    (store / "mine.txt").write_text("mine")
    focusllm("store", "prune", "--store", store, "--unused", "0")
    left = {path.name for path in store.rglob("*") if path.is_file()}
    assert left - {".journal"} == {"mine.txt"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("store", "ls"), "No store is named"),
        (("store", "ls", "--store", "/nowhere/at/all"), "there is no such folder"),
        (("store", "prune", "--store", "."), "say how far"),
        (("store", "prune", "--store", ".", "--limit", "much"), "'much' is not a number of bytes"),
        (("prepare", "--store", "x"), "name at least one file"),
        (("prepare", "-d", "README.md"), "No store is named"),
    ],
)
def test_wrong_usage(
    focusllm: Focusllm, arguments: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FOCUSLLM_STORE", raising=False)
    result = focusllm(*arguments)
    assert result.exit_code in (1, 2)
    assert said in result.stderr
