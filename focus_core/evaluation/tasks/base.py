"""What a task makes: documents, and questions with known answers about them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import filler_sentences, split_sentences
from focus_core.evaluation.tasks.records import Record


@dataclass(frozen=True)
class Span:
    """The characters `start` to `stop - 1` of one of a sheet's documents.

    Attributes:
        document: index of the document
    """

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Question:
    """One question and its right answers.

    Attributes:
        name: unique in its task, and the same in every run with the same data and seed
        answers: references; an answer is scored against the best of them
        gold: where the answer stands; empty where that is not known
        chat_template: False where the model is to continue `text` as it stands
        new_tokens: how many tokens the answer may take
    """

    name: str
    text: str
    answers: tuple[str, ...]
    gold: tuple[Span, ...] = ()
    chat_template: bool = True
    new_tokens: int = 32


@dataclass(frozen=True, eq=False)
class Sheet:
    """Documents, and the questions about them."""

    documents: tuple[str, ...]
    questions: tuple[Question, ...]

    def text(self, span: Span) -> str:
        """The characters of a span."""
        return self.documents[span.document][span.start : span.stop]


class Haystack:
    """Sentences to hide facts between, cut from texts or made up; repeated where they do not suffice."""

    def __init__(self, engine: FocusEngine, texts: Sequence[str] = ()) -> None:
        """Args:
        texts: where sentences come from; without any they are generated, a new set for every document
        """
        self._engine = engine
        self._sentences = [sentence for text in texts for sentence in split_sentences(text) if sentence.strip()]
        self._tokens = [engine.count_tokens(sentence) for sentence in self._sentences]

    def sentences(self, rng: random.Random, tokens: int) -> list[str]:
        """Running text of about `tokens` tokens, starting at a random sentence."""
        sentences, sizes = self._sentences, self._tokens
        if not sentences:
            sentences = filler_sentences(rng, max(tokens // 8, 8))
            sizes = [self._engine.count_tokens(sentence) + 1 for sentence in sentences]
        chosen: list[str] = []
        index, total = rng.randrange(len(sentences)), 0
        while total < tokens:
            chosen.append(sentences[index])
            total += sizes[index]
            index = (index + 1) % len(sentences)
        return chosen


@dataclass(frozen=True, eq=False)
class Material:
    """What sheets are made from.

    Attributes:
        questions: how many are asked
        tokens: about how long a made-up document is; `None` for tasks with data
        records: the data; empty for tasks that make their documents up
        arrange: how records become documents, as in `records.ARRANGEMENTS`; `None` is the task's own way
    """

    engine: FocusEngine
    questions: int
    seed: int
    haystack: Haystack
    tokens: int | None = None
    records: Sequence[Record] = ()
    arrange: str | None = None


class Task(Protocol):
    """Questions, and how answers to them are scored.

    Attributes:
        needs_data: whether documents and questions come from a file of the user
        instruction: words after every question, the same for all contenders
        scores: names of the scores; the first is the one that contenders are compared by
    """

    needs_data: ClassVar[bool]

    @property
    def name(self) -> str: ...
    @property
    def instruction(self) -> str: ...
    @property
    def scores(self) -> tuple[str, ...]: ...

    def sheets(self, material: Material) -> Iterator[Sheet]:
        """Documents with `material.questions` questions in all. The same seed gives the same ones.

        Raises:
            ConfigError: impossible sizes, or not so many questions
        """

    def score(self, question: Question, text: str) -> dict[str, float]:
        """The value of each score for the answer `text`, from 0 to 1."""
