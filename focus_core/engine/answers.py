"""What an answer is: pieces while it is made, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

from focus_core.engine.live import LiveEvidence
from focus_core.engine.sources import Explanation, Source
from focus_core.methods.base import ChunkScore, Plan

FinishReason = Literal["stop", "length"]

_SHOWN = 60  # characters of an answer that its repr shows


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens.

    Attributes:
        input_tokens: question with its template, and documents
        output_tokens: generated tokens, the end-of-sequence token included
        document_tokens: the part of the input that came as documents, or was chunked from one long prompt; where a
            method reads a shortlist of many chunks, the tokens of those
        cache_read: the part of `document_tokens` whose keys and values were there already
        cache_creation: the part of `document_tokens` that was read for this answer; of questions that are asked
            together, the first one's
        chunks: number of chunks; 0 where documents and question were read in one row
    """

    input_tokens: int
    output_tokens: int = 0
    document_tokens: int = 0
    cache_read: int = 0
    cache_creation: int = 0
    chunks: int = 0


@dataclass(frozen=True)
class Piece:
    """Text of an answer that is certain.

    Attributes:
        evidence: with `live_evidence=True`: what the tokens since the piece before draw on
    """

    text: str
    evidence: LiveEvidence | None = field(default=None, repr=False)


@dataclass(frozen=True)
class _Ended:
    """What `Finished` and `Answer` tell of an answer.

    Attributes:
        finish_reason: `"stop"` (end of sequence, or a stop string) or `"length"` (`max_new_tokens` reached)
        method: the method that answered, as in `methods.table.METHODS`
        tokens: all generated tokens
        chunk_scores: what methods that score chunks made of each, in order; of other methods none
        explanation: with `sources=True`: what the answer owes to its documents; `None` if that took more memory than
            there is, which a warning says
        plan: how it was made, for `FocusEngine.explain`
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    method: str
    tokens: tuple[int, ...] = field(default=(), repr=False)
    chunk_scores: tuple[ChunkScore, ...] = field(default=(), repr=False)
    explanation: Explanation | None = field(default=None, repr=False)
    plan: Plan | None = field(default=None, repr=False, compare=False)

    @property
    def sources(self) -> tuple[Source, ...]:
        """The passages that the answer rests on, the best first; none without `sources=True`."""
        return () if self.explanation is None else self.explanation.sources

    @property
    def supported(self) -> bool | None:
        """Whether the text carries the answer; `None` without `sources=True`, and without documents."""
        return None if self.explanation is None else self.explanation.supported


@dataclass(frozen=True)
class Finished(_Ended):
    """The end of an answer; `text` is what was held back to the end, often nothing.

    Attributes:
        evidence: with `live_evidence=True`, if there is such a text: what the tokens since the last piece draw on
    """

    evidence: LiveEvidence | None = field(default=None, repr=False)


Event = Piece | Finished


class Answer(_Ended):
    """A whole answer."""

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[: _SHOWN - 1]}…"
        read = f"{self.usage.chunks:,} chunks" if self.usage.chunks else f"{self.usage.input_tokens:,} tokens"
        return f"<Answer {shown!r}: {self.finish_reason}, {len(self.tokens)} tokens, {self.method} over {read}>"


class AnswersFromEvents:
    """Puts whole answers together from the events of `FocusEngine.stream_batch`."""

    def __init__(self, questions: int) -> None:
        self._texts = [""] * questions
        self._ends: dict[int, Finished] = {}

    def add(self, index: int, event: Event) -> None:
        """An event of the answer to question `index`."""
        self._texts[index] += event.text
        if isinstance(event, Finished):
            self._ends[index] = event

    def answer(self, index: int) -> Answer:
        """The answer to question `index`, once it has finished."""
        end = self._ends[index]
        return Answer(**{one.name: getattr(end, one.name) for one in fields(Answer)} | {"text": self._texts[index]})

    def answers(self) -> list[Answer]:
        """All answers, once each of them has finished."""
        return [self.answer(index) for index in range(len(self._texts))]
