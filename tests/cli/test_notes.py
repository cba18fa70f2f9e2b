"""Warnings of ours on the command line: one line each on standard error, whatever the command."""

from __future__ import annotations

import json
import shutil
import warnings
from pathlib import Path

import pytest

from focus_core import FocusEngine
from tests.cli.conftest import Focusllm
from tests.tiny import CHUNK, WINDOW


@pytest.fixture
def untrained(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the model, so that no engine of another test has given the warning for it."""
    return Path(shutil.copytree(model_folder, tmp_path / "model", ignore=shutil.ignore_patterns("adapter")))


@pytest.mark.parametrize("as_json", [False, True])
def test_ask_notes_once_that_there_is_no_adapter(
    focusllm: Focusllm, untrained: Path, tmp_path: Path, as_json: bool
) -> None:
    """Only some chunks are read again, and the method would be blamed."""
    (tmp_path / "long.txt").write_text("x" * (WINDOW + 1))
    options = ("--model", untrained, "--max-new-tokens", "2", "-d", tmp_path / "long.txt", *["--json"][:as_json])
    result = focusllm("ask", *options, "Which key?")
    assert result.exit_code == 0, result.output
    assert_one_note(result.stderr, untrained)
    assert not as_json or json.loads(result.stdout)["method"] == "select"


def test_eval_notes_once_that_there_is_no_adapter(focusllm: Focusllm, untrained: Path) -> None:
    sizes = ("--task", "passkey", "--tokens", str(WINDOW), "--questions", "2", "--chunk-size", "512")
    result = focusllm("eval", "--model", untrained, *sizes)
    assert result.exit_code == 0, result.output
    assert_one_note(result.stderr, untrained)
    assert len(result.stdout.splitlines()) == 3  # task, head, contender


def assert_one_note(shown: str, model: Path) -> None:
    (line,) = shown.splitlines()
    assert line.startswith(f"Note: {model}: no adapter is loaded")
    assert "`focusllm train`" in line


@pytest.mark.parametrize("arguments", [("ask", "Which key?"), ("info", "--tokens", str(CHUNK * 100))])
def test_no_note_where_no_chunk_is_read(focusllm: Focusllm, untrained: Path, arguments: tuple[str, ...]) -> None:
    command, *rest = arguments
    result = focusllm(command, "--model", untrained, *rest)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


def test_warnings_of_others_and_of_later_code_stay_as_they_are(
    focusllm: Focusllm, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def warned(*arguments: object, **options: object) -> None:
        warnings.warn("something old", DeprecationWarning, stacklevel=1)
        raise KeyboardInterrupt

    before = warnings.showwarning
    monkeypatch.setattr(FocusEngine, "from_pretrained", warned)
    assert "Note:" not in focusllm("info").stderr
    assert warnings.showwarning is before
    assert [str(one.message) for one in recwarn] == ["something old"]
