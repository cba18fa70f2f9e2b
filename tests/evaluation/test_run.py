"""Runs: the same questions for all, one after the other, gone on with, and refused before any work."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation.plan import Plan
from focus_core.evaluation.report import summarise, table
from focus_core.evaluation.run import evaluate
from focus_core.evaluation.trials import Run, Trial
from tests.engines import make_engine
from tests.evaluation.cases import STORIES, write_stories

PASS_KEYS = Plan(("passkey",), ("auto", "plain", "gold", "none"), questions=2, lengths=(600,))


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


@pytest.fixture(scope="module")
def run(engine: FocusEngine) -> Run:
    return evaluate(engine, PASS_KEYS)


def without_times(trials: list[Trial]) -> list[Trial]:
    return [
        replace(
            one, seconds=None, first_token_seconds=None, usage=None, asked_before=0
        )  # the store may know the chunks
        for one in trials
    ]


def test_contenders_take_turns_with_every_question(run: Run) -> None:
    assert [(trial.question, trial.contender) for trial in run.trials] == [
        (question, contender) for question in ("0/0", "1/0") for contender in PASS_KEYS.contenders
    ]


def test_a_trial_says_what_was_done(run: Run) -> None:
    auto, plain, gold, none = run.trials[:4]
    assert (auto.method, gold.method, none.method) == ("focus", "plain", "plain")
    assert (auto.gold_read, gold.gold_read, none.gold_read) == (1.0, 1.0, 0.0)
    assert plain.answer is plain.scores is plain.seconds is None
    assert "usable window has 512" in str(plain.impossible)
    assert auto.usage is not None
    assert auto.usage["chunks"] > 5
    assert (auto.tokens_read, none.tokens_read) == (auto.usage["document_tokens"], 0)
    assert auto.usage["output_tokens"] <= 32
    assert 0 < (auto.first_token_seconds or 0) <= (auto.seconds or 0)
    assert auto.scores is not None
    assert set(auto.scores) == {"right", "contains"}


def test_answers_are_those_of_generate(engine: FocusEngine, tmp_path: Path) -> None:
    data = write_stories(tmp_path / "data.jsonl")
    plan = Plan(("squad",), ("focus", "none"), questions=4, data=data, max_new_tokens=6, instruction="Be short.")
    found = evaluate(engine, plan)
    text = "\n\n".join("\n\n".join(record.sections) for record in plan.records)
    for trial in found.trials:
        assert trial.prompt.endswith("? Be short.")
        documents = [text] if trial.contender == "focus" else None
        method = "focus" if documents else "plain"
        expected = engine.generate(trial.prompt, documents, method=method, max_new_tokens=6)
        assert (trial.answer, trial.method) == (expected.text, expected.method)
    assert [trial.asked_before for trial in found.trials] == [0, 0, 1, 1, 2, 2, 3, 3]
    warm = [trial.usage for trial in found.trials if trial.contender == "focus"][1:]
    assert all(usage is not None and usage["cache_creation"] == 0 for usage in warm)  # chunks are read once


def test_a_text_that_is_continued_gets_no_instruction(engine: FocusEngine) -> None:
    plan = Plan(("passage",), ("auto",), questions=1, lengths=(600,), instruction="Be short.")
    (trial,) = evaluate(engine, plan).trials
    assert not trial.prompt.endswith("Be short.")


def test_an_interrupted_run_goes_on(engine: FocusEngine, tmp_path: Path, run: Run) -> None:
    """Ctrl-C keeps what is done; the rest is the same as without it."""
    path = tmp_path / "run.jsonl"

    def interrupt(done: int, total: int) -> None:
        assert total == 8
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(engine, PASS_KEYS, path, report=interrupt)
    assert len(Run.read(path).trials) == 5
    made: list[int] = []
    again = evaluate(engine, PASS_KEYS, path, report=lambda done, total: made.append(done))
    assert without_times(again.trials) == without_times(run.trials)
    assert made == list(range(1, 9))


def test_more_contenders_and_questions_are_added_and_nothing_is_asked_twice(
    engine: FocusEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    evaluate(engine, replace(PASS_KEYS, contenders=("none",), questions=1), path)
    asked: list[Any] = []
    stream_batch = FocusEngine.stream_batch

    def counted(self: FocusEngine, questions: Any, documents: Any = None, **options: Any) -> Iterator[Any]:
        asked.extend(questions)
        return stream_batch(self, questions, documents, **options)

    monkeypatch.setattr(FocusEngine, "stream_batch", counted)
    found = evaluate(engine, replace(PASS_KEYS, contenders=("none", "gold")), path)
    assert [(trial.question, trial.contender) for trial in found.trials] == [
        *(("0/0", "none"), ("0/0", "gold"), ("1/0", "none"), ("1/0", "gold")),
    ]
    assert len(asked) == 3


@pytest.mark.parametrize("at_once", [2, 3])
def test_questions_asked_together_get_the_answers_of_questions_asked_alone(
    engine: FocusEngine, tmp_path: Path, at_once: int
) -> None:
    data = write_stories(tmp_path / "data.jsonl")
    plan = Plan(("squad",), ("focus", "bm25", "gold", "none"), questions=4, data=data, max_new_tokens=6)
    alone = {trial.key: trial for trial in without_times(evaluate(engine, plan).trials)}
    together = evaluate(engine, replace(plan, at_once=at_once)).trials
    assert {trial.key: trial for trial in without_times(together)} == alone
    assert [trial.contender for trial in together[:at_once]] == ["focus"] * at_once
    assert all(0 < (trial.first_token_seconds or 0) <= (trial.seconds or 0) for trial in together)


def test_of_questions_asked_together_one_that_does_not_fit_is_left_out(engine: FocusEngine, tmp_path: Path) -> None:
    long = {"question": "Who? " * 400, "answers": ["the fox"], "sections": [0]}
    short = {"question": "Where is it?", "answers": ["Lisbon"], "sections": [0]}
    stories = [{"id": "fox", "sections": ["The fox lives in Lisbon."], "questions": [long, short]}]
    data = write_stories(tmp_path / "data.jsonl", stories)
    plan = Plan(("squad",), ("none",), questions=2, data=data, max_new_tokens=6, at_once=2)
    impossible = {trial.prompt[:5]: trial.impossible for trial in evaluate(engine, plan).trials}
    assert impossible["Where"] is None
    assert "window" in str(impossible["Who? "])


def test_the_control_is_the_plain_model_whatever_the_settings(engine: FocusEngine) -> None:
    """With `plain_up_to` of an adapter or a checkpoint it would read chunks, and still be called a control."""
    assert engine.config.plain_up_to == 0
    auto, end = evaluate(engine, Plan(("passkey",), ("auto", "end"), questions=1, lengths=(300,))).trials
    assert auto.usage is not None
    assert end.usage is not None
    assert auto.usage["chunks"] > 1
    assert (end.usage["chunks"], end.method) == (0, "plain")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"questions": 0}, "questions=0"),
        ({"budget": 0}, "budget=0"),
        ({"tasks": ("riddles",)}, "no task 'riddles'"),
        ({"contenders": ("auto", "")}, "no contender ''"),
        ({"contenders": ("minilm",)}, "--embedder"),
        ({"contenders": ("auto", "other")}, "other needs several texts"),
        ({"tasks": ("squad",)}, "--data FILE"),
        ({"data": Path("data.jsonl")}, "no task reads one"),
        ({"tasks": ("squad",), "data": Path("nothing.jsonl")}, "cannot be read"),
        ({"arrange": "sorted"}, "arrange='sorted'"),
    ],
)
def test_an_impossible_plan_is_refused_without_a_model(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PASS_KEYS, **change)


def test_another_text_needs_texts_that_are_documents_of_their_own(tmp_path: Path) -> None:
    data = write_stories(tmp_path / "stories.jsonl")
    plan = Plan(("fairytale",), ("auto", "other"), questions=1, data=data)
    with pytest.raises(ConfigError, match="other needs several texts"):
        replace(plan, arrange="joined")
    write_stories(data, STORIES[:1])
    with pytest.raises(ConfigError, match="other needs several texts"):
        replace(plan)


def test_the_loss_of_the_reference(engine: FocusEngine, tmp_path: Path) -> None:
    """It is the engine's, and changes no answer; a run without it can go on with it."""
    data = write_stories(tmp_path / "stories.jsonl")
    plan = Plan(("fairytale",), ("focus", "gold", "none"), questions=4, data=data, max_new_tokens=6)
    path = tmp_path / "run.jsonl"
    without = evaluate(engine, plan).trials
    evaluate(engine, replace(plan, questions=2, loss=True), path)
    run = evaluate(engine, replace(plan, loss=True), path)
    assert {trial.key: replace(trial, loss=None) for trial in without_times(run.trials)} == {
        trial.key: trial for trial in without_times(without)
    }
    assert all(trial.loss is not None and trial.loss > 0 for trial in run.trials)
    assert len({trial.loss for trial in run.trials}) == len(run.trials)
    none = next(trial for trial in run.trials if trial.contender == "none")
    answer = engine.generate(none.prompt, max_new_tokens=6, method="plain")
    said = " " * answer.text.startswith(" ") + none.references[0]
    assert none.loss == pytest.approx(-fmean(engine.log_probs(answer, said)), abs=1e-3)
    rows = summarise(run)
    assert {row.contender: round(row.loss or 0, 4) for row in rows} == {
        name: round(fmean(t.loss or 0 for t in run.trials if t.contender == name), 4) for name in plan.contenders
    }
    assert "loss" in [column.header for column in table(rows).columns]
    assert "loss" not in [column.header for column in table(summarise(Run({}, without))).columns]
