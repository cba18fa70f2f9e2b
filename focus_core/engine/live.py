"""What the newest tokens of an answer draw on, while it is made: by the passes that make it, not the exact loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from focus_core.engine.places import Place


@dataclass(frozen=True)
class ChunkShare:
    """What some tokens of an answer draw on one chunk.

    Attributes:
        chunk: index of the chunk
        documents: indices of the documents that stand in it
        name: the document's; `None` if it has none, or where several stand in the chunk
        start: first character in the document's text; `None` where characters are not known, or of several documents
        end: the character after the last
        share: 0 to 1
    """

    chunk: int
    documents: tuple[int, ...]
    name: str | None
    start: int | None
    end: int | None
    share: float

    def __str__(self) -> str:
        numbers = ", ".join(str(index + 1) for index in self.documents)
        where = self.name or f"document{'s' if len(self.documents) > 1 else ''} {numbers}"
        if self.start is not None:
            where = f"{where}, characters {self.start:,}–{self.end:,}"
        return f"{where} (share {self.share:.2f})"


@dataclass(frozen=True)
class LiveEvidence:
    """How much some tokens of an answer draw on each chunk.

    With `method="focus"` a share is attention: what the token gives to the chunk's slot when it is chosen, the mean
    over layers and heads. With `"experts"` the chunk that speaks has 1, all others 0. How often the chunk with the
    highest share is the one without which the token loses most: docs/sources.md.

    Attributes:
        token_shares: for each token, of each chunk in the order of the documents; those of a token sum to at most 1
        places: of each chunk, where it stands
    """

    token_shares: tuple[tuple[float, ...], ...]
    places: Sequence[Sequence[Place]] = field(repr=False, compare=False)

    @property
    def shares(self) -> tuple[float, ...]:
        """Of each chunk, the mean over the tokens."""
        return tuple(sum(of_chunk) / len(of_chunk) for of_chunk in zip(*self.token_shares, strict=True))

    @property
    def best(self) -> ChunkShare:
        """The chunk with the highest share, the first of several."""
        shares = self.shares
        chunk = shares.index(max(shares))
        first, *others = self.places[chunk]
        documents = (first.index, *(place.index for place in others))
        if others:
            return ChunkShare(chunk, documents, None, None, None, shares[chunk])
        own = first.characters and first.document.own_characters(*first.characters)
        before, _ = first.document.own_span
        start, end = (own[0] - before, own[1] - before) if own else (None, None)
        return ChunkShare(chunk, documents, first.document.name, start, end, shares[chunk])
