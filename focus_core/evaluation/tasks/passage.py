"""A passage continued verbatim from its first words."""

from __future__ import annotations

import random

from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation.tasks.base import Haystack, Question, Sheet, Span

_PROMPT = 16  # tokens of a passage that are given
_ANSWER = 8  # tokens that must follow exactly
_DRAWS = 200


def passage_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """Five passages to be continued verbatim from their first words.

    Raises:
        ConfigError: the text repeats itself so much that there are no five
    """
    text = "".join(_spaced(sentence) for sentence in haystack.sentences(rng, tokens))
    words = text.split(" ")
    questions: list[Question] = []
    for _ in range(_DRAWS):
        if len(questions) == 5:
            return Sheet((text,), tuple(questions))
        start = rng.randrange(max(1, len(words) - 80))
        ids = engine.tokenize(" ".join(words[start : start + 60]))
        given = engine.tokenizer.decode(ids[:_PROMPT])
        answer = engine.tokenizer.decode(ids[_PROMPT : _PROMPT + _ANSWER])
        if text.count(given) == 1:  # otherwise there is more than one right answer
            place = text.index(given)
            gold = (Span(0, place, place + len(given) + len(answer)),)
            number = str(len(questions))
            questions.append(Question(number, given, (answer,), gold, chat_template=False, new_tokens=_ANSWER))
    raise ConfigError(
        f"Of {_DRAWS} passages drawn from about {tokens} tokens of text, fewer than five occur only once. "
        "Give a longer text with --text, or fewer tokens."
    )


def _spaced(sentence: str) -> str:
    return sentence if sentence[-1:].isspace() else sentence + " "
