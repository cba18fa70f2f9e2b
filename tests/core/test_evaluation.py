"""Evaluation: trials that have one right answer, that can be made at any length, and an honest control."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation import facts
from focus_core.evaluation.run import evaluate, wilson
from focus_core.evaluation.tasks import TASKS, Haystack, Trial, task_named
from tests.core.test_engine import make_engine


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


@pytest.mark.parametrize("count", [8, 400, 5000])
@pytest.mark.parametrize("seed", range(8))
def test_keys_are_distinct_at_any_length(seed: int, count: int) -> None:
    lines = facts.key_values(random.Random(seed), count)
    assert len({fact.entity for fact in lines}) == len(lines) == count


def test_more_keys_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="2000000 keys"):
        facts.key_values(random.Random(0), 2_000_000)


def test_passages_of_a_text_that_repeats_itself_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match="fewer than five occur only once"):
        task_named("passage")(engine, Haystack(engine, ["The same again. "] * 3), random.Random(0), 1000)


def test_look_alikes_share_something_and_are_never_the_fact_itself() -> None:
    fact = facts.make_fact(random.Random(3))
    others = facts.distractors(random.Random(4), fact, 20)
    assert len({(other.attribute, other.entity) for other in [fact, *others]}) == 21


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


def test_the_interval_of_a_share() -> None:
    assert wilson(78, 100) == pytest.approx((0.6892, 0.8503), abs=1e-3)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(100, 100)[1] <= 1.0
    assert wilson(100, 100)[0] == pytest.approx(0.963, abs=1e-3)


def test_the_same_seed_gives_the_same_trials_and_the_control_fits_the_window(engine: FocusEngine) -> None:
    results = [evaluate(engine, "passkey", 1000, trials=2, seed=5, cut=cut) for cut in (False, False, True)]
    assert replace(results[0], seconds=0.0) == replace(results[1], seconds=0.0)
    assert [result.reader for result in results] == ["focus", "focus", "cut"]
    assert results[2].tokens == results[0].tokens  # of the document; the control sees its end


def test_the_control_is_the_plain_model_whatever_the_settings(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `plain_up_to` of an adapter or a checkpoint it would read chunks, and still be called a control."""
    chunks: list[int] = []
    generate = FocusEngine.generate

    def counted(self: FocusEngine, *arguments: Any, **options: Any) -> Any:
        answers = generate(self, *arguments, **options)
        chunks.extend(answer.usage.chunks for answer in answers)
        return answers

    monkeypatch.setattr(FocusEngine, "generate", counted)
    settings = replace(engine.config.as_settings(), plain_up_to=0, window=engine.config.window)
    small = FocusEngine(engine.shared, config=settings)
    evaluate(small, "passkey", 1000, trials=1, cut=False)
    assert chunks.pop() > 1
    evaluate(small, "passkey", 1000, trials=1, cut=True)
    assert chunks.pop() == 0
    monkeypatch.setattr(small.tokenizer, "chat_template", "You are very helpful. " * 5 + small.tokenizer.chat_template)
    evaluate(small, "passkey", 1000, trials=1, cut=True)  # a long template leaves less room
    assert chunks.pop() == 0


def test_no_trials_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match="trials=0"):
        evaluate(engine, "passkey", 1000, trials=0)
