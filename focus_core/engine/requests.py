"""A request on its way through the scheduler: what it waits for, and the events that its client reads."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

from focus_core.engine.answers import Event, Finished, FinishReason, Piece, Usage
from focus_core.engine.live import LiveEvidence
from focus_core.engine.places import Place, chunk_places
from focus_core.engine.prefill import ChunkPrefill
from focus_core.engine.sampling import Sampler
from focus_core.methods.base import ChunkScore, Plan, TokenizedQuestion
from focus_core.progress import Reading
from focus_core.text.stream import TextStream


@dataclass(frozen=True)
class Progress:
    """Chunks prefilled so far, and in all."""

    done: int
    total: int


@dataclass(frozen=True)
class Ready:
    """All chunks of a request are prefilled."""


@dataclass(frozen=True)
class Failed:
    """The request ends with an error, which its client raises."""

    error: Exception


Notice = Event | Progress | Reading | Ready | Failed


class Request:
    """Chunks to be prefilled; `QuestionRequest` goes on from there.

    Attributes:
        notices: what has happened, for the client; filled and emptied under the scheduler's lock
        left: whether it has ended, or its client has gone
        keeps_chunks: whether its client needs the chunks when it has ended
    """

    def __init__(self, prefill: ChunkPrefill, *, keeps_chunks: bool = True) -> None:
        self.prefill, self.keeps_chunks = prefill, keeps_chunks
        self.notices: deque[Notice] = deque()
        self.left = False

    def ends_with(self, notice: Notice) -> bool:
        """Whether nothing follows this notice."""
        return isinstance(notice, Failed | Ready)


AnyRequest = TypeVar("AnyRequest", bound=Request)


class QuestionRequest(Request):
    """One question: how its tokens are chosen and shown.

    Attributes:
        stop_tokens: end the answer and are not shown
        tokens: generated so far
        scores: what the method made of each chunk, once the question has started
        local_length: tokens of the local context
        documents_in_row: those that stand in the question's own row, because its method reads no chunks
        row_length: tokens of the local context and of these documents
    """

    def __init__(
        self,
        plan: Plan,
        prefill: ChunkPrefill,
        *,
        sampler: Sampler,
        stop_tokens: frozenset[int],
        text: TextStream,
        usage: Usage,
        keeps_chunks: bool = False,
    ) -> None:
        super().__init__(prefill, keeps_chunks=keeps_chunks)
        self.plan, self.sampler, self.usage = plan, sampler, usage
        self.tokens: list[int] = []
        self.scores: tuple[ChunkScore, ...] = ()
        self._stop_tokens, self._text = stop_tokens, text
        self._token_shares: list[tuple[float, ...]] = []  # of tokens whose text is not out yet
        self.local_length = len(plan.question.local_context)
        in_row = () if plan.method.cached_layers else plan.question.documents
        self.documents_in_row = tuple(tokenized.document for tokenized in in_row)
        self.row_length = self.local_length + sum(map(len, in_row))

    def ends_with(self, notice: Notice) -> bool:
        return isinstance(notice, Failed | Finished)

    @property
    def question(self) -> TokenizedQuestion:
        """The question with the answer so far."""
        return self.plan.question.continued(self.tokens)

    @property
    def bytes_left(self) -> int:
        """Bytes of keys and values that the rest of the answer may still add."""
        limits, new_tokens = self.plan.limits, self.plan.new_tokens
        held = limits.appended_tokens(len(self.tokens)) if self.tokens else 0
        return (limits.appended_tokens(new_tokens) - held) * self.plan.method.bytes_per_token

    def count_chunks(self) -> None:
        """Note in `usage` what was prefilled, once all chunks are there."""
        if not self.plan.chunks:
            self.usage = replace(self.usage, cache_creation=self.usage.document_tokens)
            return
        tokens = sum(len(chunk.token_ids) for chunk in self.plan.chunks)
        created = self.prefill.take_prefilled_tokens()
        self.usage = replace(
            self.usage,
            document_tokens=tokens,
            cache_read=tokens - created,
            cache_creation=created,
            chunks=len(self.plan.chunks),
        )

    @cached_property
    def _places(self) -> list[list[Place]]:
        return chunk_places(self.plan.question)

    def accept(self, token: int, shares: Sequence[float] | None = None) -> Event | None:
        """Append a generated token; the event that it makes certain, if any.

        Args:
            shares: what its logits drew on each chunk, where that is known
        """
        self.tokens.append(token)
        ended = token in self._stop_tokens
        if shares is not None and self.plan.question.live_evidence and not ended:
            self._token_shares.append(tuple(shares))
        text = "" if ended else self._text.push(token)
        reason: FinishReason | None = None
        if ended or self._text.stopped:
            reason = "stop"
        elif len(self.tokens) >= self.plan.new_tokens:
            reason = "length"
        if reason is None:
            return Piece(text, self._evidence()) if text else None
        text += self._text.finish()
        usage = replace(self.usage, output_tokens=len(self.tokens))
        method, tokens = self.plan.method.name, tuple(self.tokens)
        evidence = self._evidence() if text else None
        return Finished(text, reason, usage, method, tokens, self.scores, plan=self.plan, evidence=evidence)

    def _evidence(self) -> LiveEvidence | None:
        """Of the tokens since the piece before."""
        if not self._token_shares:
            return None
        evidence, self._token_shares = LiveEvidence(tuple(self._token_shares), self._places), []
        return evidence


def tokens_together(requests: Sequence[QuestionRequest]) -> int:
    """Tokens of the pass in which these questions start together, in rows as long as the longest.

    Documents that stand in the rows of all of them are read once, before that.
    """
    shared = len({request.documents_in_row for request in requests}) == 1
    return len(requests) * max(request.local_length if shared else request.row_length for request in requests)
