"""The embedded model, and one long text in which it has something to find: read once, for all tests that ask it."""

from __future__ import annotations

import random
from functools import cache

import pytest

from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_core.loading.named import EMBEDDED_FOLDER

needs_embedded = pytest.mark.skipif(
    not (EMBEDDED_FOLDER / "base" / "config.json").is_file(),
    reason="the embedded model is not in focus_core/embedded",
)

# What stands in the book, and how deep in it (0 start, 1 end).
HIDDEN = [
    (Fact("access code", "the amber falcon", "48213"), 0.15),
    (Fact("home city", "Clara Fenwick", "Lisbon"), 0.4),
    (Fact("population", "Lake Marden", "90576"), 0.65),
    (Fact("pass key", "", "71402", "passkey"), 0.9),
]
FACTS = [fact for fact, _ in HIDDEN]


@cache
def book() -> str:
    """The facts among made-up sentences: some 10,000 tokens, five times what the model sees at a time.

    Longer texts are the business of `focusllm eval` and of the card.
    """
    rng = random.Random(11)
    return hide(FACTS, filler_sentences(rng, 700), rng, [depth for _, depth in HIDDEN]).text


def question_about(fact: Fact) -> str:
    return fact.question(random.Random(0), form=0)
