"""Documents cut into passages, and passages put together again: what retrieval hands to a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from focus_core.evaluation.facts import split_sentences
from focus_core.evaluation.tasks.base import Sheet, Span

_PARAGRAPH = re.compile(r"\n\s*\n")
_WORD = re.compile(r"\S+\s*")

CountTokens = Callable[[str], int]


@dataclass(frozen=True)
class Passage:
    """A part of a document, and its number of tokens."""

    span: Span
    text: str
    tokens: int


def cut(sheet: Sheet, size: int, count_tokens: CountTokens) -> list[Passage]:
    """All documents as passages of up to `size` tokens, in order; together they are the documents again.

    Paragraphs stay whole where one fits, then sentences, then words; neighbours share a passage as long as they fit.
    """
    passages = []
    for number, document in enumerate(sheet.documents):
        start = 0
        for text in _packed(_pieces(document, size, count_tokens), size, count_tokens):
            span = Span(number, start, start + len(text))
            passages.append(Passage(span, text, count_tokens(text)))
            start = span.stop
    return [passage for passage in passages if passage.text.strip()]


def fill(ranked: Iterable[Passage], budget: int, *, each: int = 0) -> list[Passage]:
    """The best passages that fit `budget` tokens together; one that is too long is passed over for the next that fits.

    Args:
        ranked: the best first
        each: tokens that a passage costs besides its own
    """
    chosen, left = [], budget
    for passage in ranked:
        if passage.tokens + each <= left:
            chosen.append(passage)
            left -= passage.tokens + each
    return chosen


def joined(spans: Iterable[Span]) -> tuple[Span, ...]:
    """In document order, with spans that touch or overlap put together."""
    merged: list[Span] = []
    for span in sorted(spans, key=lambda one: (one.document, one.start)):
        last = merged[-1] if merged else None
        if last is not None and last.document == span.document and span.start <= last.stop:
            merged[-1] = Span(last.document, last.start, max(last.stop, span.stop))
        else:
            merged.append(span)
    return tuple(merged)


def share_read(gold: Sequence[Span], read: Iterable[Span]) -> float:
    """Of the characters of `gold`, the share that stands in `read` (0 to 1)."""
    wanted, spans = joined(gold), joined(read)
    common = sum(
        max(0, min(one.stop, other.stop) - max(one.start, other.start))
        for one in wanted
        for other in spans
        if one.document == other.document
    )
    return common / sum(span.stop - span.start for span in wanted)


def _pieces(text: str, size: int, count_tokens: CountTokens) -> Iterator[tuple[str, int]]:
    """Paragraphs, or parts of those that are too long, each with its number of tokens."""
    for paragraph in _paragraphs(text):
        if (tokens := count_tokens(paragraph)) <= size:
            yield paragraph, tokens
            continue
        for sentence in split_sentences(paragraph):
            if (tokens := count_tokens(sentence)) <= size:
                yield sentence, tokens
            else:
                yield from ((part, count_tokens(part)) for part in _parts(sentence, size, count_tokens))


def _paragraphs(text: str) -> list[str]:
    """Cut after blank lines; the paragraphs joined give the text again."""
    borders = [0, *(found.end() for found in _PARAGRAPH.finditer(text)), len(text)]
    return [text[start:stop] for start, stop in pairwise(borders) if start < stop]


def _parts(sentence: str, size: int, count_tokens: CountTokens) -> Iterator[str]:
    """Words of a sentence that is too long; halves of a word that is too long itself."""
    words = [found[0] for found in _WORD.finditer(sentence)]
    if len(words) == 1 or not words:
        middle = len(sentence) // 2
        words = [sentence[:middle], sentence[middle:]] if middle else [sentence]
    if "".join(words) != sentence:  # white space in front
        words.insert(0, sentence[: len(sentence) - len("".join(words))])
    for word in words:
        if len(word) > 1 and count_tokens(word) > size:
            yield from _parts(word, size, count_tokens)
        else:
            yield word


def _packed(pieces: Iterable[tuple[str, int]], size: int, count_tokens: CountTokens) -> Iterator[str]:
    """Neighbours together as long as their tokens fit `size`."""
    held, total = "", 0
    for piece, tokens in pieces:
        if held and total + tokens > size:
            yield held
            held, total = "", 0
        held, total = held + piece, total + tokens
    if held:
        yield held
