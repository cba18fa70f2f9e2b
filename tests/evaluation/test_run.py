"""Evaluation runs: seeded, with intervals, and with the plain model as a control."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from focus_core import ConfigError, FocusEngine
from focus_core.evaluation.run import evaluate, wilson
from tests.engines import make_engine


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


def test_the_interval_of_a_share() -> None:
    assert wilson(78, 100) == pytest.approx((0.6892, 0.8503), abs=1e-3)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(100, 100)[1] <= 1.0
    assert wilson(100, 100)[0] == pytest.approx(0.963, abs=1e-3)


def test_the_same_seed_gives_the_same_trials_and_the_control_fits_the_window(engine: FocusEngine) -> None:
    results = [evaluate(engine, "passkey", 1000, trials=2, seed=5, cut=cut) for cut in (False, False, True)]
    assert replace(results[0], seconds=0.0) == replace(results[1], seconds=0.0)
    assert [result.contender for result in results] == ["focus", "focus", "cut"]
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
