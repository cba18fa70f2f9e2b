"""Layout "chat": what a chat template writes before and after documents that stand in the user's turn.

A template is a program. So its parts are found by letting it run with a sentinel where the documents go, and splitting
what it writes there; and they are put together again, to see that the model gets what the template means.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

from focus_core.errors import ConfigError

Message = Mapping[str, str]
Render = Callable[[Sequence[Message]], str]

SEPARATOR = "\n\n"  # between documents and the user's words, and between two documents
RAW_INSTEAD = "Choose layout='raw', which puts documents in front of the conversation."


@dataclass(frozen=True)
class Turn:
    """A conversation in which documents stand in front of the user's last words.

    Attributes:
        opening: tokens before the documents, BOS included
        suffix: tokens after them: separator, the user's words, end of turn, start of the assistant's
        words: the user's words in `suffix`: first token, and the token after the last
    """

    opening: tuple[int, ...]
    suffix: tuple[int, ...]
    words: tuple[int, int]


@dataclass(frozen=True)
class SplitTurn:
    """What a template writes around documents, as text; `between`, `words` and `after` make up the suffix."""

    before: str
    between: str
    words: str
    after: str


def split_turn(messages: Sequence[Message], render: Render) -> SplitTurn:
    """The parts of a conversation around documents in front of the user's last words.

    Raises:
        ConfigError: there are no user's words, or the template does not write them as they stand
    """
    place = next((n for n in reversed(range(len(messages))) if messages[n]["role"] == "user"), None)
    if place is None:
        raise ConfigError("No message has the role 'user', so documents have no place. Add the question.")
    here, there = unused_words(messages, 2)
    rendered = _rendered_with(f"{here}{SEPARATOR}{there}", messages, place, render)
    before, between, after = _split_at(here, there, rendered)
    if between != SEPARATOR:
        raise ConfigError(
            f"The model's chat template writes {between!r} for the {SEPARATOR!r} between documents and question, so it "
            f"changes the white space of documents too. {RAW_INSTEAD}"
        )
    rendered = _rendered_with(f"{here}{SEPARATOR}{messages[place]['content']}", messages, place, render)
    suffix = rendered.removeprefix(before + here)
    words = suffix.removeprefix(between).removesuffix(after)
    if between + words + after != suffix or words.strip() != messages[place]["content"].strip():
        raise ConfigError(
            "The model's chat template changes the user's words, or what it writes around them depends on them. "
            f"{RAW_INSTEAD}"
        )
    return SplitTurn(before, between, words, after)


def unused_words(messages: Sequence[Message], number: int) -> list[str]:
    """Words that stand nowhere in the conversation."""
    text = "".join(message["content"] for message in messages)
    names = (f"Zq{index}vx" for index in count())
    return [next(name for name in names if name not in text) for _ in range(number)]


def _rendered_with(content: str, messages: Sequence[Message], place: int, render: Render) -> str:
    return render([*messages[:place], {**messages[place], "content": content}, *messages[place + 1 :]])


def _split_at(here: str, there: str, rendered: str) -> tuple[str, str, str]:
    if rendered.count(here) != 1 or rendered.count(there) != 1:
        raise ConfigError(
            "The model's chat template does not write the user's words once and as they stand, so documents have no "
            f"place in them. {RAW_INSTEAD}"
        )
    before, rest = rendered.split(here)
    between, after = rest.split(there)
    return before, between, after
