"""`focusllm eval`: results as lines, and what is checked before hours of work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_core import FocusEngine
from tests.cli.conftest import Focusllm


def test_results_are_printed_and_written(focusllm: Focusllm, model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "results.jsonl"
    sizes = ("--task", "passkey", "--tokens", 600, "--trials", 2, "--control")
    result = focusllm(
        "eval", "--model", model_folder, "--adapter", model_folder / "adapter", *map(str, sizes), "--out", out
    )
    assert result.exit_code == 0, result.output
    found = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(one["task"], one["contender"], one["trials"]) for one in found] == [
        ("passkey", "focus", 2),
        ("passkey", "cut", 2),
    ]
    assert len(result.stdout.splitlines()) == 3


def test_a_place_that_cannot_be_written_is_named_before_the_model_is_loaded(
    focusllm: Focusllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(FocusEngine, "from_pretrained")
    result = focusllm("eval", "--out", tmp_path / "nowhere" / "results.jsonl")
    assert "results.jsonl cannot be written" in result.output + str(result.exception)
