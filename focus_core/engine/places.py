"""Where chunks and their sentences stand in the documents."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from focus_core.methods.base import TokenizedQuestion
from focus_core.methods.evidence import Passage
from focus_core.text.chunking import Chunk, Cutting
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.text.sentences import sentence_spans

_PIECES = 16  # that documents are cut into, at paragraphs, for a method that reads no chunks
_SMALLEST = 32  # tokens of such a piece


@dataclass(frozen=True)
class Place:
    """A passage and where it stands in its document.

    Attributes:
        index: of the document
        characters: `None` where they are not known
    """

    passage: Passage
    index: int
    document: Document
    characters: tuple[int, int] | None

    @property
    def excerpt(self) -> str | None:
        """The characters of the passage, where they are known."""
        if self.characters is None or self.document.text is None:
            return None
        return self.document.text[slice(*self.characters)]


def with_pieces(question: TokenizedQuestion) -> TokenizedQuestion:
    """A question of a method that reads no chunks, with pieces of its documents that stand for them."""
    if question.chunks or not question.documents:
        return question
    longest = max(_SMALLEST, sum(map(len, question.documents)) // _PIECES)
    return question.with_chunks(question.layout.chunks_of(question.documents, Cutting(longest, "paragraph")))


def chunk_places(question: TokenizedQuestion) -> list[list[Place]]:
    """Of each chunk a place for each document in it."""
    found = list[list[Place]]()
    for number, chunk in enumerate(question.chunks):
        places = []
        for part, first in zip(chunk.document_parts, _part_starts(chunk, question.layout), strict=True):
            passage = Passage(number, first, first + len(part.token_ids))
            places.append(Place(passage, part.document_index, part.document, part.characters))
        found.append(places)
    return found


def sentence_places(question: TokenizedQuestion, places: Sequence[Place]) -> list[Place]:
    """The sentences of a chunk; a part of it whose characters are not known stays whole."""
    found = list[Place]()
    for place in places:
        part = _part_at(question.chunks[place.passage.chunk], place, places)
        tokenized = question.documents[place.index] if place.index < len(question.documents) else None
        found += [place] if tokenized is None else _sentences(part, place, tokenized)
    return found


def _sentences(part: Chunk, place: Place, tokenized: TokenizedDocument) -> list[Place]:
    if place.excerpt is None or place.characters is None or tokenized.starts is None:
        return [place]
    first, found = place.characters[0], list[Place]()
    spans = [(first + start, first + stop) for start, stop in sentence_spans(place.excerpt)]
    # A token belongs to the sentence that it begins in; white space before a sentence, to this sentence's first token.
    tokens = [bisect_left(tokenized.starts, stop, part.start, part.stop) for _, stop in spans]
    for (start, stop), begin, end in zip(spans, [part.start, *tokens], tokens, strict=False):
        if begin < end:
            offset = place.passage.start - part.start
            passage = Passage(place.passage.chunk, offset + begin, offset + end)
            found.append(Place(passage, place.index, place.document, (start, stop)))
    return found or [place]


def _part_starts(chunk: Chunk, layout: Layout) -> list[int]:
    """Where in a chunk's `token_ids` each of its documents begins."""
    starts, place = list[int](), 0
    for part in chunk.document_parts:
        starts.append(place)
        place += len(part.token_ids) + len(layout.separator)
    return starts


def _part_at(chunk: Chunk, place: Place, places: Sequence[Place]) -> Chunk:
    return chunk.document_parts[list(places).index(place)]
