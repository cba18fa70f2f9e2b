"""A run on disk: it goes on where it stopped, and never under other conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_core import ConfigError, FocusWarning
from focus_core.evaluation.trials import Run, conditions_of, differences
from tests.engines import make_engine
from tests.evaluation.cases import trial

CONDITIONS = {"model": "tiny", "budget": 512, "config": {"chunk_size": 64}}


def test_a_run_is_found_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    run = Run.start(CONDITIONS, path)
    for one in (trial("auto", "0", 1.0), trial("plain", "0", None)):
        run.add(one)
    again = Run.start(CONDITIONS, path)
    assert again.trials == run.trials
    assert trial("auto", "0", 0.0).key in again
    assert trial("auto", "1", 0.0).key not in again
    again.add(trial("auto", "1", 1.0))
    assert len(Run.read(path).trials) == 3


def test_other_conditions_are_refused_with_the_difference(tmp_path: Path) -> None:
    """Answers of two settings in one table would compare nothing."""
    Run.start(CONDITIONS, tmp_path / "run.jsonl")
    with pytest.raises(ConfigError, match=r"budget: 512 there, 1024 now\. Name another file"):
        Run.start({**CONDITIONS, "budget": 1024}, tmp_path / "run.jsonl")
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == {"a": (1, None), "c": (None, 3)}


def test_half_a_line_is_dropped_and_made_again(tmp_path: Path) -> None:
    """A killed process leaves one."""
    path = tmp_path / "run.jsonl"
    Run.start(CONDITIONS, path).add(trial("auto", "0", 1.0))
    with path.open("a") as file:
        file.write('{"task": "passk')
    with pytest.warns(FocusWarning, match="ends in the middle of a trial"):
        run = Run.start(CONDITIONS, path)
    run.add(trial("auto", "1", 1.0))
    assert [one.question for one in Run.read(path).trials] == ["0", "1"]


@pytest.mark.parametrize(
    "content", ["hello\n", '{"task": "passkey", "right": 3}\n', '{"conditions": {}}\n{"x": 1}\n', "{"]
)
def test_another_file_is_never_written_into(tmp_path: Path, content: str) -> None:
    path = tmp_path / "notes.txt"
    path.write_text(content)
    with pytest.raises(ConfigError, match="holds no run of `focusllm eval`"):
        Run.start(CONDITIONS, path)
    assert path.read_text() == content


def test_the_conditions_say_what_an_answer_depends_on() -> None:
    found = conditions_of(make_engine())
    assert found["dtype"] == "float32"
    assert found["config"]["chunk_size"] == 64
    assert json.loads(json.dumps(found)) == found
