"""One pass key at a random depth."""

from __future__ import annotations

import random

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import hide, pass_key
from focus_core.evaluation.tasks.base import Haystack, Question, Sheet, Span


def pass_key_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """One pass key at a random depth."""
    fact = pass_key(rng)
    document = hide([fact], haystack.sentences(rng, tokens - 30), rng)
    gold = (Span(0, *document.spans[0]),)
    return Sheet((document.text,), (Question("0", "What is the pass key?", (fact.value,), gold),))
