"""Trials that have one right answer and can be made at any length."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation.tasks.base import Haystack, Trial
from focus_core.evaluation.tasks.table import TASKS, task_named
from tests.engines import make_engine


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("task", TASKS)
def test_every_answer_stands_once_in_its_document(engine: FocusEngine, task: str, seed: int) -> None:
    """At 4,000 tokens some key styles have fewer keys than lines: drawing must end all the same."""
    sheet = TASKS[task](engine, Haystack(engine), random.Random(seed), 4000)
    for trial in sheet.trials:
        assert trial.answer.strip() in sheet.document
        if task == "passage":
            assert sheet.document.count(trial.question) == 1
            assert trial.question + trial.answer in sheet.document
    assert 0.5 < engine.count_tokens(sheet.document) / 4000 < 2


def test_passages_of_a_text_that_repeats_itself_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match="fewer than five occur only once"):
        task_named("passage")(engine, Haystack(engine, ["The same again. "] * 3), random.Random(0), 1000)


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
    trial = Trial("What is the pass key?", "48213")
    assert trial.is_right(text) is right
    assert replace(trial, chat_template=False).is_right(text) is (text.strip() == "48213")
