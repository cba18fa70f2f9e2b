"""What an answer owes to its documents: sources, losses of chunks and documents, whether the text supports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from focus_core.methods.evidence import NO_COST, Cost

Role = Literal["sole", "needed", "redundant"]

NOISE = 0.1  # nats; a token that loses less does not count: rounding in bfloat16 takes as much from an unsure one
_SHOWN = 60  # characters of an excerpt that a repr shows


@dataclass(frozen=True)
class Source:
    """A passage that an answer rests on.

    Attributes:
        document: index among the documents of the question, counted from 0; those of a prepared handle one by one
        name: the document's
        start: first character in the document's own text; `None` where characters are not known, and of what a template
            has put around it
        end: the character after the last
        excerpt: the characters from `start` to `end`
        score: what the answer's tokens lose in log-probability (nats) when the passage is left out; what other tokens
            gain then does not count against it. Of a redundant passage: when it is left out after the passages that
            say the same
        role: "sole": nothing else supports the answer; "needed": one of several that the answer needs together;
            "redundant": another passage supports the answer by itself too
        chunk: index of the chunk that it stands in
        metadata: the document's
        page: that the passage begins on, counted from 1, where form feeds end the document's pages, as in the text that
            `read_file` makes of a PDF; else `None`
    """

    document: int
    name: str | None
    start: int | None
    end: int | None
    excerpt: str
    score: float
    role: Role
    chunk: int
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    page: int | None = None

    def __str__(self) -> str:
        where = self.name or f"document {self.document + 1}"
        if self.page is not None:
            where = f"{where}, page {self.page:,}"
        if self.start is not None:
            where = f"{where}, characters {self.start:,}–{self.end:,}"
        text = " ".join(self.excerpt.split())
        shown = text if len(text) <= _SHOWN else f"{text[: _SHOWN - 1]}…"
        return f"{where} ({self.score:.2f} nats): {shown}"


@dataclass(frozen=True)
class ChunkLoss:
    """What the answer loses without one chunk.

    Attributes:
        documents: indices of the documents that stand in it
        start: first character in the document's text; `None` where characters are not known, or of several documents
        end: the character after the last
        loss: of the whole answer's log-probability, nats: the sum over its tokens, of losses and gains; `None` where
            the chunk was left out only together with others
        token_losses: of each of its tokens; none without `loss`
        group: of a chunk without `loss`, the index in `Explanation.groups`
    """

    documents: tuple[int, ...]
    start: int | None
    end: int | None
    loss: float | None
    token_losses: tuple[float, ...] = field(default=(), repr=False)
    group: int | None = None

    @property
    def lost(self) -> float:
        """What those tokens lose that lose, nats, as a source's `score` counts it; 0 without `loss`."""
        return sum(loss for loss in self.token_losses if loss >= NOISE)


@dataclass(frozen=True)
class GroupLoss:
    """What the answer loses without several chunks together.

    Attributes:
        chunks: indices in `Explanation.chunks`, rising
        loss: of the whole answer, nats
        token_losses: of each of its tokens
    """

    chunks: tuple[int, ...]
    loss: float
    token_losses: tuple[float, ...] = field(repr=False)


@dataclass(frozen=True)
class DocumentLoss:
    """The sum of the losses of a document's chunks, nats; chunks that were left out together count together.

    `None` where chunks of other documents were left out with them. Where documents share a chunk, the loss without the
    document's part of it; 0 if that chunk is no source.
    """

    document: int
    name: str | None
    loss: float | None


@dataclass(frozen=True)
class Explanation:
    """What `FocusEngine.explain` finds.

    Attributes:
        sources: the passages that the answer rests on, the one with the highest score first
        supported: whether the text carries the answer: `support` reaches the threshold that was measured, and
            `explained` the setting `supported_share` (docs/sources.md); `None` where nothing can be left out, because
            there are no documents
        support: what the answer's tokens lose, in nats, when all its sources are left out together
        explained: the share, 0 to 1, of what is unlikely about the answer without documents that the documents explain:
            what its tokens lose without any, of that and of what stays unlikely with all of them
        chunks: of all chunks that were read or scored, in order; not of those that a shortlist left out
        groups: of long texts: the chunks that were left out only together
        documents: of the documents that these chunks are of, in order
        pieces: the answer's tokens as text
        log_probs: of the answer's tokens, with nothing left out
        without_documents: what each token of the answer loses without any document
        cost: what all this took
        cost_of_chunks: the part of it that found the chunks; the rest told sentences apart
    """

    sources: tuple[Source, ...] = ()
    supported: bool | None = None
    support: float = 0.0
    explained: float = 0.0
    chunks: tuple[ChunkLoss, ...] = field(default=(), repr=False)
    groups: tuple[GroupLoss, ...] = field(default=(), repr=False)
    documents: tuple[DocumentLoss, ...] = field(default=(), repr=False)
    pieces: tuple[str, ...] = field(default=(), repr=False)
    log_probs: tuple[float, ...] = field(default=(), repr=False)
    without_documents: tuple[float, ...] = field(default=(), repr=False)
    cost: Cost = NO_COST
    cost_of_chunks: Cost = NO_COST
