"""Trials with known answers at any length: a fact somewhere in a long text, and the question about it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation.facts import (
    Fact,
    distractors,
    filler_sentences,
    hide,
    key_values,
    make_fact,
    pass_key,
    split_sentences,
)

_PASSAGE_PROMPT = 16  # tokens of a passage that are given
_PASSAGE_ANSWER = 8  # tokens that must follow exactly
_PASSAGE_DRAWS = 200


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


def pass_key_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """One pass key at a random depth."""
    fact = pass_key(rng)
    document = hide([fact], haystack.sentences(rng, tokens - 30), rng)
    return Sheet(document.text, [Trial("What is the pass key?", fact.value)])


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
    return Sheet(document.text, [Trial(asked(f), f.value) for f in [fact, *rng.sample(facts[1:], 4)]])


def one_fact_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """A single stated fact at a random depth."""
    fact = make_fact(rng)
    document = hide([fact], haystack.sentences(rng, tokens - 20), rng)
    return Sheet(document.text, [Trial(fact.question(rng), fact.value)])


def keys_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """Nothing but `key: value` lines; five keys are asked for."""
    sample = key_values(rng, 8)
    per_line = max(1, engine.count_tokens("\n".join(map(_line, sample))) // len(sample))
    lines = key_values(rng, max(8, tokens // per_line))
    asked = rng.sample(lines, 5)
    return Sheet("\n".join(map(_line, lines)), [Trial(fact.question(rng), fact.value) for fact in asked])


def passage_sheet(engine: FocusEngine, haystack: Haystack, rng: random.Random, tokens: int) -> Sheet:
    """Five passages to be continued verbatim from their first words.

    Raises:
        ConfigError: the text repeats itself so much that there are no five
    """
    text = "".join(_spaced(sentence) for sentence in haystack.sentences(rng, tokens))
    words = text.split(" ")
    trials: list[Trial] = []
    for _ in range(_PASSAGE_DRAWS):
        if len(trials) == 5:
            return Sheet(text, trials)
        start = rng.randrange(max(1, len(words) - 80))
        ids = engine.tokenize(" ".join(words[start : start + 60]))
        given = engine.tokenizer.decode(ids[:_PASSAGE_PROMPT])
        answer = engine.tokenizer.decode(ids[_PASSAGE_PROMPT : _PASSAGE_PROMPT + _PASSAGE_ANSWER])
        if text.count(given) == 1:  # otherwise there is more than one right answer
            trials.append(Trial(given, answer, chat_template=False, new_tokens=_PASSAGE_ANSWER))
    raise ConfigError(
        f"Of {_PASSAGE_DRAWS} passages drawn from about {tokens} tokens of text, fewer than five occur only once. "
        "Give a longer text with --text, or fewer tokens."
    )


Task = Callable[[FocusEngine, Haystack, random.Random, int], Sheet]
TASKS: dict[str, Task] = {
    "passkey": pass_key_sheet,
    "fact": one_fact_sheet,
    "facts": facts_sheet,
    "reworded": reworded_sheet,
    "keys": keys_sheet,
    "passage": passage_sheet,
}


def task_named(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: naming those there are
    """
    if name not in TASKS:
        raise ConfigError(f"There is no task {name!r}. Choose from: {', '.join(TASKS)}.")
    return TASKS[name]


def _line(fact: Fact) -> str:
    return f"{fact.entity}: {fact.value}"


def _spaced(sentence: str) -> str:
    return sentence if sentence[-1:].isspace() else sentence + " "
