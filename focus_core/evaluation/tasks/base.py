"""What a task makes: a document, and trials with one right answer each."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from focus_core.engine.engine import FocusEngine
from focus_core.evaluation.facts import filler_sentences, split_sentences


@dataclass(frozen=True)
class Trial:
    """One question and its only right answer.

    Attributes:
        chat_template: False where the model is to continue `question` as it stands
        new_tokens: how many tokens the answer may take
    """

    question: str
    answer: str
    chat_template: bool = True
    new_tokens: int = 32

    def is_right(self, text: str) -> bool:
        """The answer and nothing else, or (to a question) a sentence that ends with it.

        White space around it and a full stop after it do not count.
        """
        said, answer = (words.strip().removesuffix(".") for words in (text, self.answer))
        return said == answer or (self.chat_template and said.endswith(f" {answer}"))


@dataclass(frozen=True)
class Sheet:
    """One document and the trials on it."""

    document: str
    trials: list[Trial]


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


# Of an engine, the haystack, a random generator, and about how many tokens the document has.
Task = Callable[[FocusEngine, Haystack, random.Random, int], Sheet]
