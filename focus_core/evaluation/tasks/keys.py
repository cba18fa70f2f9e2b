"""One of many `key: value` lines."""

from __future__ import annotations

import random

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import Fact, key_values
from focus_core.evaluation.tasks.base import Haystack, Question, Sheet, Span


def keys_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """Nothing but `key: value` lines; five keys are asked for."""
    sample = key_values(rng, 8)
    per_line = max(1, engine.count_tokens("\n".join(map(_line, sample))) // len(sample))
    facts = key_values(rng, max(8, tokens // per_line))
    spans: dict[Fact, Span] = {}
    start = 0
    for fact in facts:
        spans[fact] = Span(0, start, start + len(_line(fact)))
        start = spans[fact].stop + 1
    questions = [
        Question(str(number), fact.question(rng), (fact.value,), (spans[fact],))
        for number, fact in enumerate(rng.sample(facts, 5))
    ]
    return Sheet(("\n".join(map(_line, facts)),), tuple(questions))


def _line(fact: Fact) -> str:
    return f"{fact.entity}: {fact.value}"
