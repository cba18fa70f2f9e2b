"""`focusllm plan`: what the engine's plan says, as a table and as JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from focus_core import FocusEngine
from tests.cli.conftest import Focusllm


@pytest.fixture
def plan(focusllm: Focusllm, model_folder: Path) -> Focusllm:
    def run(*arguments: str | Path, stdin: bytes = b"") -> Any:
        return focusllm("plan", "--model", model_folder, "--adapter", model_folder / "adapter", *arguments, stdin=stdin)

    return run


@pytest.fixture
def book(tmp_path: Path) -> Path:
    path = tmp_path / "book.txt"
    path.write_text("The pass key is 71402. " * 40)
    return path


@pytest.fixture(autouse=True)
def _nothing_read(model_folder: Path) -> None:
    """Other tests may have used the same model."""
    engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", progress=False)
    engine.shared.store.clear()


def test_a_table(plan: Focusllm, book: Path) -> None:
    result = plan("-d", book, "Which key?")
    assert result.exit_code == 0, result.output
    assert "1 document, 920 tokens: 15 chunks, method focus." in result.stdout
    assert "First token: after" in result.stdout
    assert result.stdout.endswith("It fits.\n")


def test_without_an_adapter_select_is_planned_with_the_reason(
    focusllm: Focusllm, model_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "long.txt"
    path.write_text("So it went on. " * 400)
    result = focusllm("plan", "--model", model_folder, "-d", path)
    assert result.exit_code == 0, result.output
    assert "method select.\nMethod: a row of " in result.stdout
    assert "and there is no adapter.\n" in result.stdout


def test_json_is_what_then_happens(plan: Focusllm, ask: Focusllm, book: Path, tmp_path: Path) -> None:
    store = ("--store", tmp_path / "store")
    cold = json.loads(plan("-d", book, "Which key?", *store, "--json").stdout)
    assert (cold["to_read"]["tokens"], cold["on_disk"]["tokens"]) == (920, 0)
    asked = json.loads(ask("-d", book, "Which key?", *store, "--json").stdout)
    assert asked["usage"]["cache_creation"] == cold["to_read"]["tokens"]
    assert asked["usage"]["chunks"] == cold["chunks"]
    written = sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors"))
    assert written <= cold["folder"]["write_bytes"] <= written + 2**11 * cold["chunks"]
    assert cold["needed_bytes"] == cold["cache_bytes"] + cold["prompt_bytes"]
    assert cold["peak_bytes"] == cold["needed_bytes"] + cold["pass_bytes"]
    assert cold["fits"]
    _restart(asked["model"]["id"])
    again = json.loads(plan("-d", book, *store, "--json").stdout)
    assert (again["to_read"]["tokens"], again["on_disk"]["tokens"]) == (0, 920)
    assert again["first_token"]["prepared"] <= again["first_token"]["now"]


def _restart(model: str) -> None:
    FocusEngine.from_pretrained(model, adapter=f"{model}/adapter", progress=False).shared.store.clear()


def test_what_does_not_fit_says_what_to_change(plan: Focusllm, book: Path) -> None:
    result = plan("-d", book, "--max-new-tokens", "5000")
    assert result.exit_code == 0
    assert "It does not fit." in result.stdout
    assert "Lower max_new_tokens to" in result.stdout
    assert "First token" not in result.stdout


def test_standard_input_and_a_system_prompt(plan: Focusllm) -> None:
    plain, with_system = (
        json.loads(plan("-d", "-", "Which?", *options, "--json", stdin=b"x" * 200).stdout)
        for options in ((), ("--system", "Be short."))
    )
    assert (plain["tokens"], plain["documents"]) == (200, 1)
    assert with_system["question_tokens"] == plain["question_tokens"] + len("system: Be short.\n")


@pytest.mark.parametrize("arguments", [(), ("Which?",), ("-d", "-", "Which?", "What?")])
def test_wrong_usage(plan: Focusllm, arguments: tuple[str, ...]) -> None:
    assert plan(*arguments, stdin=b"text").exit_code == 2
