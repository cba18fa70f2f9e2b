"""One stated fact, alone or among look-alikes, asked for in trained or in other words."""

from __future__ import annotations

import random
from collections.abc import Callable

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import Fact, distractors, hide, make_fact
from focus_core.evaluation.tasks.base import Haystack, Question, Sheet, Span


def one_fact_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """A single stated fact at a random depth."""
    fact = make_fact(rng)
    document = hide([fact], haystack.sentences(rng, tokens - 20), rng)
    gold = (Span(0, *document.spans[0]),)
    return Sheet((document.text,), (Question("0", fact.question(rng), (fact.value,), gold),))


def facts_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """One fact and twenty of the same kind that share its attribute, its owner or a word of its owner's name.

    Five of the 21, the first among them, are asked for.
    """
    return _facts_sheet(haystack, rng, tokens, lambda fact: fact.question(rng))


def reworded_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """The same, asked for in words that the embedded model was not trained with."""
    return _facts_sheet(haystack, rng, tokens, lambda fact: fact.reworded_question(rng))


def _facts_sheet(haystack: Haystack, rng: random.Random, tokens: int, asked: Callable[[Fact], str]) -> Sheet:
    fact = make_fact(rng)
    facts = [fact, *distractors(rng, fact, 20)]
    document = hide(facts, haystack.sentences(rng, tokens - 18 * len(facts)), rng)
    spans = dict(zip(facts, document.spans, strict=True))
    chosen = [fact, *rng.sample(facts[1:], 4)]
    questions = [
        Question(str(number), asked(one), (one.value,), (Span(0, *spans[one]),)) for number, one in enumerate(chosen)
    ]
    return Sheet((document.text,), tuple(questions))
