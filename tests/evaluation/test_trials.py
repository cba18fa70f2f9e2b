"""A run on disk: it goes on where it stopped, and never under other conditions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from focus_core import ConfigError, FocusWarning
from focus_core.evaluation.report import summarise
from focus_core.evaluation.trials import DIFFERING, Run, conditions_of, differences, joined
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


def test_runs_of_the_same_questions_become_one(tmp_path: Path) -> None:
    """Contenders that need other settings, or that were asked later, are compared with each other."""
    asked = {**CONDITIONS, "seed": 0, "data": {"name": "a.jsonl", "sha256": "12"}}
    focus = Run(asked, [trial("focus", "0", 1.0), trial("focus", "1", 0.0)])
    other = {**asked, "budget": None, "config": {"chunk_size": 128}}
    gold = Run(other, [trial("gold", "0", 0.5)])
    (name, both), *more = joined({"a.jsonl": focus, "b.jsonl": gold}).items()
    assert (name, more) == ("a.jsonl, b.jsonl", [])
    assert both.trials == [*focus.trials, *gold.trials]
    assert both.conditions["seed"] == 0
    assert both.conditions[DIFFERING] == {
        "a.jsonl": {"budget": 512, "config.chunk_size": 64},
        "b.jsonl": {"budget": None, "config.chunk_size": 128},
    }
    (row,) = [row for row in summarise(both) if row.contender == "gold"]
    assert row.comparison is not None
    assert (row.comparison.against, row.comparison.questions, row.comparison.difference) == ("focus", 1, -0.5)


@pytest.mark.parametrize("changed", [{"seed": 1}, {"instruction": "Be short."}, {"data": {"sha256": "13"}}])
def test_runs_of_other_questions_stay_apart(changed: dict[str, object]) -> None:
    one, two = Run({"seed": 0}, [trial("focus", "0", 1.0)]), Run({"seed": 0, **changed}, [trial("gold", "0", 1.0)])
    assert joined({"a": one, "b": two}) == {"a": one, "b": two}
    assert joined({"a": one}) == {"a": one}


def test_runs_with_a_contender_in_common_stay_apart() -> None:
    """Of two chunk sizes, for example."""
    one, two = (Run({"config": {"chunk_size": size}}, [trial("focus", "0", 1.0)]) for size in (1, 2))
    assert joined({"a": one, "b": two}) == {"a": one, "b": two}


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
