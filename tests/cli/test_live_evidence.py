"""`focusllm ask --live-evidence`: which chunks the answer drew on, beside an answer that stays as it is."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from focus_core import Document, FocusEngine
from focus_core.cli.ask import drawn_as_text
from focus_core.engine.live import ChunkShare
from tests.cli.conftest import Focusllm

QUESTION = "What is the key?"
TEXT = "The key is 48213. " * 20
A, B, BOTH = (
    ChunkShare(0, (0,), "a.txt", 0, 1200, 0.25),
    ChunkShare(3, (1,), None, 1000, 2000, 0.5),
    ChunkShare(4, (2, 3), None, None, None, 0.125),
)


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "a.txt"
    path.write_text(TEXT)
    return path


def wanted(model_folder: Path, document: Path) -> list[tuple[str, ChunkShare]]:
    """From the engine: of each piece its text, and the chunk that its tokens draw on most."""
    engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", progress=False)
    events = engine.stream(QUESTION, Document(TEXT, name=str(document)), max_new_tokens=8, live_evidence=True)
    found = [(event.text, event.evidence.best) for event in events if event.evidence]
    assert len({best.chunk for _, best in found}) > 1
    return found


def test_it_is_told_after_the_answer_and_beside_it(ask: Focusllm, document: Path, model_folder: Path) -> None:
    """A program that reads the answer through a pipe wants the answer only."""
    plain, result = ask("-d", document, QUESTION), ask("-d", document, "--live-evidence", QUESTION)
    assert result.exit_code == 0, result.output
    assert result.stdout == plain.stdout
    assert result.stderr == drawn_as_text(wanted(model_folder, document), "focus") + "\n"
    assert f"{document}, characters " in result.stderr
    assert result.output.startswith(plain.stdout)
    assert "\x1b" not in result.stderr


def test_json_has_an_entry_for_each_piece(ask: Focusllm, document: Path, model_folder: Path) -> None:
    result = ask("-d", document, "--live-evidence", "--json", QUESTION)
    found: list[dict[str, Any]] = json.loads(result.stdout)["live_evidence"]
    assert result.stderr == ""
    assert found == [
        {"text": text, **asdict(best), "documents": list(best.documents), "share": pytest.approx(best.share, abs=1e-4)}
        for text, best in wanted(model_folder, document)
    ]


@pytest.mark.parametrize("method", ["plain", "select"])
def test_a_method_without_shares_says_so(ask: Focusllm, document: Path, method: str) -> None:
    options = ("-d", document, "--method", method, "--live-evidence")
    result = ask(*options, QUESTION)
    assert result.stdout == ask("-d", document, "--method", method, QUESTION).stdout
    assert f"Method {method} does not tell" in result.stderr
    assert json.loads(ask(*options, "--json", QUESTION).stdout)["live_evidence"] == []


def test_sources_come_after_it(ask: Focusllm, document: Path) -> None:
    result = ask("-d", document, "--live-evidence", "--sources", QUESTION)
    assert result.stdout == ask("-d", document, "--sources", QUESTION).stdout
    assert "the answer drew most on" in result.stderr


# --- lines ------------------------------------------------------------------------------------------------------------


def test_a_chunk_is_named_once_with_its_pieces_the_highest_share_first() -> None:
    later = ChunkShare(0, (0,), "a.txt", 0, 1200, 0.375)
    drawn = [("The", A), (" key", A), (" is", B), (" 4\n8", later), (".", BOTH)]
    assert drawn_as_text(drawn, "focus").splitlines() == [
        "",
        "While it was made, the answer drew most on:",
        "document 2, characters 1,000–2,000 (share 0.50): is",
        "a.txt, characters 0–1,200 (share 0.38): The key … 4 8",
        "documents 3, 4 (share 0.12): .",
    ]


def test_a_long_list_and_a_long_line_are_cut() -> None:
    drawn = [("word " * 30, ChunkShare(chunk, (0,), "a.txt", 0, 9, 0.5)) for chunk in range(10)]
    *_, line, last = drawn_as_text(drawn, "focus").splitlines()
    assert line == f"a.txt, characters 0–9 (share 0.50): {('word ' * 30)[:59]}…"
    assert last == "… and 2 more chunks"
    assert "more chunks" not in drawn_as_text(drawn[:8], "focus")
