"""One of many `key: value` lines."""

from __future__ import annotations

import random

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import Fact, key_values
from focus_core.evaluation.tasks.base import Haystack, Sheet, Trial


def keys_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """Nothing but `key: value` lines; five keys are asked for."""
    sample = key_values(rng, 8)
    per_line = max(1, engine.count_tokens("\n".join(map(_line, sample))) // len(sample))
    lines = key_values(rng, max(8, tokens // per_line))
    asked = rng.sample(lines, 5)
    return Sheet("\n".join(map(_line, lines)), [Trial(fact.question(rng), fact.value) for fact in asked])


def _line(fact: Fact) -> str:
    return f"{fact.entity}: {fact.value}"
