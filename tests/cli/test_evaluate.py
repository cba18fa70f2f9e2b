"""`focusllm eval`: tables, reports, pictures, and what is checked before hours of work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from focus_core import FocusEngine, device
from focus_core.evaluation import run as runs
from focus_core.evaluation.tasks.base import Haystack
from focus_core.evaluation.trials import Run
from tests.cli.conftest import Focusllm
from tests.evaluation.cases import write_stories


@pytest.fixture
def evaluated(focusllm: Focusllm, model_folder: Path, tmp_path: Path) -> Focusllm:
    """`focusllm eval` with the tiny model and its adapter, on two questions about small stories."""
    data = write_stories(tmp_path / "stories.jsonl")
    fixed = ("eval", "--model", model_folder, "--adapter", model_folder / "adapter", "--max-new-tokens", "4")

    def call(*arguments: str | Path, stdin: bytes = b"") -> Any:
        return focusllm(*fixed, "--task", "fairytale", "--data", data, "--questions", "2", *arguments, stdin=stdin)

    return call


def test_look_ups_are_asked_at_every_length(focusllm: Focusllm, model_folder: Path) -> None:
    sizes = ("--task", "passkey", "--tokens", "600", "--tokens", "300", "--questions", "2", "--contenders", "auto,end")
    result = focusllm("eval", "--model", model_folder, "--adapter", model_folder / "adapter", *sizes)
    assert result.exit_code == 0, result.output
    found = [line.split()[:3] for line in result.stdout.splitlines()[2:]]
    assert found == [["auto", "600", "2"], ["end", "600", "2"], ["auto", "300", "2"], ["end", "300", "2"]]


def test_a_run_is_shown_written_and_gone_on_with(evaluated: Focusllm, tmp_path: Path) -> None:
    files = ("--out", tmp_path / "run.jsonl", "--report", tmp_path / "run.json", "--setting", "boundaries=tokens")
    result = evaluated("--contenders", "focus,none", *files)
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()] == ["fairytale", "contender", "focus", "none"]
    assert len(Run.read(tmp_path / "run.jsonl").trials) == 4
    (report,) = json.loads((tmp_path / "run.json").read_text()).values()
    assert [row["contender"] for row in report["summary"]] == ["focus", "none"]
    assert report["conditions"]["data"]["name"] == "stories.jsonl"
    assert report["conditions"]["config"]["boundaries"] == "tokens"
    result = evaluated("--contenders", "focus,none,gold", *files)
    assert [line.split()[0] for line in result.stdout.splitlines()][2:] == ["focus", "none", "gold"]
    result = evaluated("--contenders", "focus", "--budget", "9", *files)
    assert result.exit_code == 1
    assert "budget: None there, 9 now" in result.stderr


def test_runs_are_compared_without_a_model(
    evaluated: Focusllm, focusllm: Focusllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    for size in ("16", "32"):
        evaluated("--contenders", "focus,none", "--chunk-size", size, "--out", tmp_path / f"{size}.jsonl")
    monkeypatch.delattr(FocusEngine, "from_pretrained")
    both = ("--compare", tmp_path / "16.jsonl", "--compare", tmp_path / "32.jsonl")
    result = focusllm("eval", *both, "--picture", tmp_path / "chunks.svg", "--against", "none", "--score", "rouge_l")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("vs none") == 2
    assert "16.jsonl" in result.stdout
    assert "rouge_l (%)" in (tmp_path / "chunks.svg").read_text()


def test_runs_of_different_contenders_are_one_table_and_one_picture(
    evaluated: Focusllm, focusllm: Focusllm, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    for contender, size in (("focus", "16"), ("none", "32")):
        evaluated("--contenders", contender, "--chunk-size", size, "--out", tmp_path / f"{contender}.jsonl")
    both = ("--compare", tmp_path / "focus.jsonl", "--compare", tmp_path / "none.jsonl")
    result = focusllm("eval", *both, "--picture", tmp_path / "both.svg")
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.stdout.splitlines()][1:] == ["contender", "focus", "none"]
    assert "vs focus" in result.stdout
    assert "none.jsonl: config.chunk_size 32" in result.stderr
    assert "chunks of the documents" not in (tmp_path / "both.svg").read_text()


def test_ctrl_c_keeps_and_shows_what_is_done(
    evaluated: Focusllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = runs._answered
    made: list[int] = []

    def interrupted(*arguments: Any) -> Any:
        if len(made) == 1:
            raise KeyboardInterrupt
        made.append(1)
        return answer(*arguments)

    monkeypatch.setattr(runs, "_answered", interrupted)
    result = evaluated("--contenders", "none", "--out", tmp_path / "run.jsonl")
    assert result.exit_code == 130
    assert "the 1 answers so far are in" in result.stderr
    assert "none" in result.stdout
    assert len(Run.read(tmp_path / "run.jsonl").trials) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "nowhere/results.jsonl"), "results.jsonl cannot be written"),
        (("--picture", "nowhere/picture.png"), "picture.png cannot be written"),
        (("--contenders", "auto,mini"), "no contender 'mini'"),
        (("--task", "squad"), "--data FILE"),
        (("--setting", "chunk_size=3"), "choose from local_window"),
        (("--setting", "boundaries=words"), "boundaries='words'"),
        (("--score", "f1"), "task passkey has right, contains"),
        (("--task", "keys", "--picture", "picture.xyz"), "picture.xyz is no name of a picture"),
        (("--picture", "picture.png"), "there are 6: passkey"),
    ],
)
def test_a_mistake_is_named_before_the_model_is_loaded(
    focusllm: Focusllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.delattr(FocusEngine, "from_pretrained")
    monkeypatch.chdir(tmp_path)
    result = focusllm("eval", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr


@pytest.mark.parametrize(
    ("tokens", "contenders", "reason"),
    [
        ("600000", "auto,focus", "chunks fit"),
        ("600000", "plain", "The prompt has 600"),
        ("100000000", "auto", "tokens=100,000,000: documents of no more than 10,000,000 tokens are made up"),
        ("9" * 30, "auto,end", "are made up"),
    ],
)
def test_a_length_at_which_nobody_can_answer_is_refused_before_any_text_is_made(
    focusllm: Focusllm,
    model_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    tokens: str,
    contenders: str,
    reason: str,
) -> None:
    """Making up a hundred million tokens takes minutes, and the shorter lengths would have been measured in vain."""
    monkeypatch.delattr(Haystack, "sentences")
    names = ("--model", model_folder, "--adapter", model_folder / "adapter", "--contenders", contenders)
    result = focusllm("eval", *names, "--tokens", "600", "--tokens", tokens)
    assert result.exit_code == 1
    assert reason in result.output


def test_a_length_that_the_memory_does_not_hold_is_refused(
    focusllm: Focusllm, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Haystack, "sentences")
    monkeypatch.setattr(device, "free_memory", lambda _: 200_000)
    names = ("--model", model_folder, "--adapter", model_folder / "adapter", "--contenders", "focus")
    result = focusllm("eval", *names, "--tokens", "20000")
    assert result.exit_code == 1
    assert "keys and values of 20,000 tokens take" in result.output
