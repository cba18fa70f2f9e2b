"""Facts hidden in long text, and the questions about them.

One module makes the material for the embedded model's training, for the demo and for the evaluation, so that all
three speak of the same task. Everything is drawn from a `random.Random` that the caller seeds; nothing else is used.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from focus_core.errors import ConfigError
from focus_core.evaluation import words

STATEMENTS = (
    "The {a} of {e} is {v}.",
    "The {a} of {e} is {v}.",
    "Note: the {a} of {e} is {v}.",
    "Remember that the {a} of {e} is {v}.",
    "According to the register, the {a} of {e} is {v}.",
    "The {a} of {e} is {v}, and it has not changed since.",
    "It is well known that the {a} of {e} is {v}.",
    "The {a} of {e} was {v}.",
    "The {a} for {e} is {v}.",
    "{E}'s {a} is {v}.",
)
QUESTIONS = (
    "What is the {a} of {e}?",
    "What is the {a} of {e}?",
    "What's the {a} of {e}?",
    "what is the {a} of {e}",
    "What was the {a} of {e}?",
    "What is the {a} for {e}?",
    "Tell me the {a} of {e}.",
    "What is {e}'s {a}?",
)
REWORDED_QUESTIONS = (  # for measuring only: no model of ours is trained with them
    "I would like to know the {a} of {e}.",
    "Find out the {a} of {e}, please.",
    "Say what the {a} of {e} is!",
    "Let me have {e}'s {a}.",
    "According to the text, the {a} of {e} is what?",
    "Somebody wants to know {e}'s {a}, and so do I.",
    "The {a} of {e}: which one is it?",
    "The text, what does it give as the {a} of {e}?",
)
RESTATEMENTS = (
    "The {a} of {e} is",
    "The {a} of {e} is",
    "The {a} for {e} is",
    "Note: the {a} of {e} is",
    "I remember that the {a} of {e} is",
)
PASS_KEY_STATEMENTS = (
    "The pass key is {v}. Remember it. {v} is the pass key.",
    "The pass key is {v}. Remember it. {v} is the pass key.",
    "The pass key is {v}.",
    "Remember this: the pass key is {v}.",
    "Please note: the pass key is {v}.",
    "There is an important note here: the pass key is {v}. Keep it.",
    "The secret pass key is {v}. Do not forget it.",
)
PASS_KEY_QUESTIONS = (
    "What is the pass key?",
    "What is the pass key?",
    "What's the pass key?",
    "Which pass key is given in the text?",
    "Tell me the pass key.",
    "what is the pass key",
    "What is the pass key in the document?",
    "Can you find the pass key?",
)
PASS_KEY_RESTATEMENTS = ("The pass key is", "The pass key is", "Remember it. The pass key is", "the pass key is")
KEY_QUESTIONS = (
    "What is the value of {e}?",
    "What is the value of {e}?",
    "What is the value for the key {e}?",
    "Which value does {e} have?",
    "What is stored under {e}?",
    "Look up {e}.",
    "What value belongs to the key {e}?",
)
KEY_RESTATEMENTS = ("{e}:", "{e}:", "The value of {e} is")


@dataclass(frozen=True)
class Fact:
    """One thing to be found: `attribute` of `entity` is `value`.

    `kind` is "fact", "passkey" (no entity) or "key" (a `key: value` line, the key being the entity).
    """

    attribute: str
    entity: str
    value: str
    kind: str = "fact"

    def statement(self, rng: random.Random) -> str:
        """A sentence that states the fact."""
        if self.kind == "key":
            return f"{self.entity}: {self.value}"
        return self._fill(rng, PASS_KEY_STATEMENTS if self.kind == "passkey" else STATEMENTS)

    def question(self, rng: random.Random, form: int | None = None) -> str:
        """A question that the fact answers (`form` picks one; otherwise it is drawn)."""
        forms = {"key": KEY_QUESTIONS, "passkey": PASS_KEY_QUESTIONS, "fact": QUESTIONS}
        return self._fill(rng, forms[self.kind], form)

    def reworded_question(self, rng: random.Random) -> str:
        """A question about a fact (of kind "fact") in words that no training uses."""
        return self._fill(rng, REWORDED_QUESTIONS)

    def restatement(self, rng: random.Random) -> str:
        """The beginning of a sentence that the value completes, for a model prompted without a question."""
        forms = {"key": KEY_RESTATEMENTS, "passkey": PASS_KEY_RESTATEMENTS, "fact": RESTATEMENTS}
        return self._fill(rng, forms[self.kind])

    def _fill(self, rng: random.Random, forms: Sequence[str], form: int | None = None) -> str:
        text = forms[rng.randrange(len(forms)) if form is None else form]
        return text.format(a=self.attribute, e=self.entity, v=self.value, E=_capital(self.entity))


@dataclass(frozen=True)
class Document:
    """A text with facts in it; `spans[i]` holds the first and last character of `facts[i]`'s statement."""

    text: str
    facts: tuple[Fact, ...]
    spans: tuple[tuple[int, int], ...]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def held_out(fact: Fact) -> bool:
    """Whether this attribute and entity never meet in training: one pair in eight, by a hash, for honest tests."""
    return zlib.crc32(f"{fact.attribute}|{fact.entity}".encode()) % 8 == 0


def number(rng: random.Random, low: int, high: int) -> str:
    """A number of `low` to `high` digits, the first not zero."""
    digits = rng.randint(low, high)
    return str(rng.randrange(10 ** (digits - 1), 10**digits))


def entity(rng: random.Random) -> str:
    """Something a fact can be about: mostly "the amber falcon", also people and places."""
    draw = rng.random()
    if draw < 0.7:
        return f"the {rng.choice(words.ADJECTIVES)} {rng.choice(words.NOUNS)}"
    if draw < 0.85:
        return f"{rng.choice(words.FIRST_NAMES)} {rng.choice(words.LAST_NAMES)}"
    return f"{rng.choice(words.PLACE_PARTS[0])} {rng.choice(words.PLACE_PARTS[1])}"


def attribute(rng: random.Random) -> str:
    """The name of a property, numbers twice as often as words."""
    return rng.choice(list(words.NUMERIC_ATTRIBUTES if rng.random() < 0.67 else words.WORD_ATTRIBUTES))


def value(rng: random.Random, name: str) -> str:
    """A value that suits the attribute `name`; a number where the attribute is unknown."""
    if name in words.WORD_ATTRIBUTES:
        return rng.choice(words.WORD_ATTRIBUTES[name])
    return number(rng, *words.NUMERIC_ATTRIBUTES.get(name, (3, 6)))


def make_fact(rng: random.Random) -> Fact:
    """One fact drawn from everything there is."""
    name = attribute(rng)
    return Fact(name, entity(rng), value(rng, name))


def pass_key(rng: random.Random, digits: int = 5) -> Fact:
    """A pass key, as in the long-context literature: a number with no owner."""
    return Fact("pass key", "", number(rng, digits, digits), "passkey")


def look_alikes(rng: random.Random, fact: Fact) -> list[Fact]:
    """One distractor of each kind: other owner, owner that shares a word, other attribute of the same owner."""
    first, _, last = fact.entity.rpartition(" ")
    owners = [entity(rng), f"{first} {rng.choice(words.NOUNS)}", f"the {rng.choice(words.ADJECTIVES)} {last}"]
    if not fact.entity.startswith("the "):
        owners = [entity(rng), f"{first} {rng.choice(words.LAST_NAMES)}", f"{rng.choice(words.FIRST_NAMES)} {last}"]
    others = [Fact(fact.attribute, owner, value(rng, fact.attribute)) for owner in owners]
    name = attribute(rng)
    return [*others, Fact(name, fact.entity, value(rng, name))]


def distractors(rng: random.Random, fact: Fact, count: int) -> list[Fact]:
    """`count` facts of the same kind as `fact`, none with its attribute and owner, no two alike."""
    taken = {(fact.attribute, fact.entity)}
    found: list[Fact] = []
    while len(found) < count:
        for other in rng.sample(look_alikes(rng, fact), 4):
            if (other.attribute, other.entity) not in taken and len(found) < count:
                taken.add((other.attribute, other.entity))
                found.append(other)
    return found


def key_values(rng: random.Random, count: int) -> list[Fact]:
    """`count` `key: value` lines with distinct keys of one style.

    Raises:
        ConfigError: more lines than there are keys
    """
    if count > MOST_KEYS:
        raise ConfigError(f"{count} keys: there are no more than {MOST_KEYS} that differ. Choose a shorter list.")
    style, numeric = rng.choice(("hex", "id", "word", "pair")), rng.random() < 0.7
    # Drawing more than half of all keys of a style would take very long.
    style = style if count <= _KEYS_OF_STYLE.get(style, MOST_KEYS) // 2 else "hex"
    lines: dict[str, Fact] = {}
    while len(lines) < count:
        key = _key(rng, style)
        lines[key] = Fact("value", key, number(rng, 2, 6) if numeric else rng.choice(words.NOUNS), "key")
    return list(lines.values())


MOST_KEYS = 1_000_000
_KEYS_OF_STYLE = {
    "word": len(set(words.ADJECTIVES) | set(words.NOUNS)),
    "pair": len(set(words.ADJECTIVES)) * len(set(words.NOUNS)),
}


def _key(rng: random.Random, style: str) -> str:
    if style == "hex":
        return "".join(rng.choices("0123456789abcdef", k=rng.randint(4, 8)))
    if style == "id":
        letters = "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 3)))
        return f"{letters}{rng.choice(('', '-', '_'))}{number(rng, 1, 4)}"
    if style == "word":
        return rng.choice(words.ADJECTIVES + words.NOUNS)
    return f"{rng.choice(words.ADJECTIVES)}{rng.choice('-_')}{rng.choice(words.NOUNS)}"


def filler_sentence(rng: random.Random) -> str:
    """A plain English sentence that states no fact anyone would ask for."""
    clause = _clause(rng)
    if rng.random() < 0.4:
        clause = f"{clause} {rng.choice(words.FILLER_LINKS)} {_clause(rng)}"
    if rng.random() < 0.3:
        clause = f"{rng.choice(words.FILLER_TIMES)}, {clause}"
    return _capital(clause) + "."


def _clause(rng: random.Random) -> str:
    clause = f"{rng.choice(words.FILLER_PEOPLE)} {rng.choice(words.FILLER_VERBS)} {rng.choice(words.FILLER_THINGS)}"
    return f"{clause} {rng.choice(words.FILLER_TIMES)}" if rng.random() < 0.5 else clause


def filler_sentences(rng: random.Random, count: int) -> list[str]:
    """`count` sentences of filler."""
    return [filler_sentence(rng) for _ in range(count)]


def split_sentences(text: str) -> list[str]:
    """Text cut after line ends and after spaces that follow `.?!;`; the pieces joined give the text again."""
    pieces, start = [], 0
    for index, letter in enumerate(text):
        if letter == "\n" or (letter == " " and index and text[index - 1] in ".?!;"):
            pieces.append(text[start : index + 1])
            start = index + 1
    return [*pieces, text[start:]] if start < len(text) else pieces


def hide(
    facts: Sequence[Fact], sentences: Sequence[str], rng: random.Random, depths: Sequence[float] | None = None
) -> Document:
    """Puts each fact's statement between two sentences, at a random place or at `depths` (0 start, 1 end).

    Sentences that carry their own white space (from `split_sentences`) keep it; others are joined by a space.
    """
    places = [round(d * len(sentences)) for d in depths] if depths else [rng.randint(0, len(sentences)) for _ in facts]
    order = sorted(range(len(facts)), key=lambda i: (places[i], rng.random()))
    parts: list[str] = []
    length, done = 0, 0
    spans: list[tuple[int, int]] = [(0, 0)] * len(facts)
    for index in range(len(sentences) + 1):
        while done < len(order) and places[order[done]] == index:
            statement = facts[order[done]].statement(rng)
            spans[order[done]] = (length, length + len(statement))
            parts.append(statement + ("\n" if facts[order[done]].kind == "key" else " "))
            length, done = length + len(parts[-1]), done + 1
        if index < len(sentences):
            piece = sentences[index]
            parts.append(piece if piece[-1:].isspace() else piece + " ")
            length += len(parts[-1])
    return Document("".join(parts), tuple(facts), tuple(spans))
