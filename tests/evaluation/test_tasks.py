"""Tasks: made-up documents of any length, and texts with questions from a file."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation.tasks.base import Haystack, Material, Question, Sheet
from focus_core.evaluation.tasks.look_up import is_right
from focus_core.evaluation.tasks.records import read_records
from focus_core.evaluation.tasks.table import LOOK_UPS, TASKS, task_named
from tests.engines import make_engine
from tests.evaluation.cases import STORIES, write_stories


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


# --- look-ups ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", LOOK_UPS)
def test_every_answer_stands_once_in_its_document_and_the_gold_holds_it(engine: FocusEngine, task: str) -> None:
    """At 4,000 tokens some key styles have fewer keys than lines: drawing must end all the same."""
    material = Material(engine, 1000, 0, Haystack(engine), tokens=4000)
    for sheet in islice(TASKS[task].sheets(material), 4):
        (document,) = sheet.documents
        for question in sheet.questions:
            ((answer,), (gold,)) = question.answers, question.gold
            assert answer.strip() in sheet.text(gold)
            if task == "passage":
                assert document.count(question.text) == 1
                assert sheet.text(gold) == question.text + answer
        assert 0.5 < engine.count_tokens(document) / 4000 < 2


def test_the_same_seed_gives_the_same_questions_and_more_hold_them(engine: FocusEngine) -> None:
    def asked(questions: int, seed: int = 0) -> list[Question]:
        material = Material(engine, questions, seed, Haystack(engine), tokens=600)
        return [one for sheet in TASKS["facts"].sheets(material) for one in sheet.questions]

    assert len(asked(7)) == 7
    assert asked(7) == asked(12)[:7]
    assert len({question.name for question in asked(12)}) == 12
    assert asked(7) != asked(7, seed=1)


def test_impossible_look_ups_are_refused(engine: FocusEngine) -> None:
    repeated = Material(engine, 1, 0, Haystack(engine, ["The same again. "] * 3), tokens=1000)
    with pytest.raises(ConfigError, match="fewer than five occur only once"):
        list(task_named("passage").sheets(repeated))
    with pytest.raises(ConfigError, match="tokens=100"):
        list(task_named("passkey").sheets(replace(repeated, tokens=100)))


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("48213", True),
        (" The pass key is 48213.", True),
        ("amber: 48213", True),
        ("The pass key is 148213.", False),
        ("48213 is the pass key.", False),
        ("The pass key is 4821.", False),
        ("", False),
    ],
)
def test_right_is_the_answer_at_the_end_of_a_sentence(text: str, right: bool) -> None:
    question = Question("0", "What is the pass key?", ("48213",))
    task = LOOK_UPS["passkey"]
    assert task.score(question, text)["right"] == right
    assert is_right(text, "48213", sentence=False) is (text.strip() == "48213")
    assert task.score(question, text)["contains"] == ("48213" in text and "148213" not in text)


# --- texts of a file --------------------------------------------------------------------------------------------------


def sheets_of(engine: FocusEngine, path: Path, task: str, questions: int, arrange: str | None = None) -> list[Sheet]:
    records = read_records(write_stories(path / "data.jsonl"))
    return list(TASKS[task].sheets(Material(engine, questions, 0, Haystack(engine), records=records, arrange=arrange)))


@pytest.mark.parametrize(
    ("task", "arrange", "documents"), [("fairytale", None, [1, 1]), ("fairytale", "all", [2]), ("squad", None, [1])]
)
def test_texts_are_arranged_and_the_gold_is_found(
    engine: FocusEngine, tmp_path: Path, task: str, arrange: str | None, documents: list[int]
) -> None:
    sheets = sheets_of(engine, tmp_path, task, 4, arrange)
    assert [len(sheet.documents) for sheet in sheets] == documents
    found = {one.name: (one, [sheet.text(span) for span in one.gold]) for sheet in sheets for one in sheet.questions}
    for story in STORIES:
        for index, asked in enumerate(story["questions"]):
            question, gold = found[f"{story['id']}/{index}"]
            assert (question.text, list(question.answers)) == (asked["question"], asked["answers"])
            assert gold == [story["sections"][section] for section in asked["sections"]]
    whole = "\n\n".join("\n\n".join(story["sections"]) for story in STORIES)
    assert "\n\n".join(document for sheet in sheets for document in sheet.documents) == whole


def test_questions_are_drawn_by_the_seed_and_more_hold_them(engine: FocusEngine, tmp_path: Path) -> None:
    few, more = (
        {one.name for sheet in sheets_of(engine, tmp_path, "fairytale", count) for one in sheet.questions}
        for count in (2, 3)
    )
    assert len(few) == 2
    assert few < more
    with pytest.raises(ConfigError, match="questions=5: the data hold 4"):
        sheets_of(engine, tmp_path, "squad", 5)


def test_the_best_reference_scores(engine: FocusEngine, tmp_path: Path) -> None:
    (question,) = (
        one
        for sheet in sheets_of(engine, tmp_path, "fairytale", 4)
        for one in sheet.questions
        if one.name == "fox/0"  # "in Lisbon" or "Lisbon"
    )
    scored = TASKS["fairytale"].score(question, "The fox lives in Lisbon.")
    assert scored == {"f1": pytest.approx(2 * 2 / (4 + 2)), "rouge_l": pytest.approx(2 * 2 / (5 + 2))} | {
        "exact": 0.0,
        "contains": 1.0,
    }


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sections": []}, r"line 2 is no record .* ValueError \[\] is not a list of texts"),
        ({"questions": [{"question": "Who?", "answers": ["x"], "sections": [2]}]}, "line 2 .* section 2 of 2"),
        ({"questions": [{"question": "Who?", "answers": []}]}, "line 2"),
        ({"id": "fox"}, "the \"id\" 'fox' stands in two lines"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_records(write_stories(tmp_path / "data.jsonl", [STORIES[0], STORIES[1] | change]))


def test_the_line_in_the_docs_is_read(tmp_path: Path) -> None:
    """A reader would copy it and be refused."""
    page = (Path(__file__).parents[2] / "docs/evaluation.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"^```json\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "data.jsonl").write_text(line, encoding="utf-8")
    (record,) = read_records(tmp_path / "data.jsonl")
    assert record.questions[0].answers == ("in Lisbon", "Lisbon")


def test_files_that_are_no_data_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("once upon a time")
    with pytest.raises(ConfigError, match="line 1 is no record"):
        read_records(tmp_path / "text.txt")
    with pytest.raises(ConfigError, match="cannot be read as data"):
        read_records(tmp_path / "nothing.jsonl")
    (tmp_path / "none.jsonl").write_text(json.dumps({"id": 1, "sections": ["a"], "questions": []}))
    with pytest.raises(ConfigError, match="holds no questions"):
        read_records(tmp_path / "none.jsonl")
