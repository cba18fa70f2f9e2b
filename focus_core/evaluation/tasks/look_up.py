"""Look-ups in documents that are made up from a seed, at any length."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation import scores
from focus_core.evaluation.tasks.base import Haystack, Material, Question, Sheet

LEAST_TOKENS = 256

# Of an engine, the haystack, a random generator, and about how many tokens the document has.
MakeSheet = Callable[[FocusEngine, Haystack, random.Random, int], Sheet]


@dataclass(frozen=True)
class LookUpTask:
    """One right answer to each question, which is found or not.

    Attributes:
        make: one sheet; the names of its questions need to differ only among themselves
    """

    name: str
    make: MakeSheet
    instruction: str = ""
    scores: tuple[str, ...] = ("right", "contains")
    needs_data: ClassVar[bool] = False

    def sheets(self, material: Material) -> Iterator[Sheet]:
        """Sheets of about `material.tokens` tokens; more questions hold the same ones and others."""
        tokens = material.tokens or 0
        if tokens < LEAST_TOKENS:
            raise ConfigError(f"tokens={tokens}: a look-up needs at least {LEAST_TOKENS} tokens of text.")
        number = asked = 0
        while asked < material.questions:
            rng = random.Random(f"{material.seed} {self.name} {tokens} {number}")
            sheet = self.make(material.engine, material.haystack, rng, tokens)
            chosen = sheet.questions[: material.questions - asked]
            yield Sheet(sheet.documents, tuple(replace(one, name=f"{number}/{one.name}") for one in chosen))
            asked, number = asked + len(chosen), number + 1

    def score(self, question: Question, text: str) -> dict[str, float]:
        (answer,) = question.answers
        return {
            "right": float(is_right(text, answer, sentence=question.chat_template)),
            "contains": scores.contains(text, answer),
        }


def is_right(text: str, answer: str, *, sentence: bool = True) -> bool:
    """The answer and nothing else, or (with `sentence`) a sentence that ends with it.

    White space around it and a full stop after it do not count.
    """
    said, wanted = (words.strip().removesuffix(".") for words in (text, answer))
    return said == wanted or (sentence and said.endswith(f" {wanted}"))
