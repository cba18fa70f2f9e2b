"""Chunks as experts: several chunks' rows decode together, against a row that has no documents (the amateur).

The rows of the highest posterior (`scored.py`) take part; `mixing.py` says how they become one distribution. With a
single chunk this is the plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.methods.base import ChunkScore, Reading, TokenizedQuestion
from focus_core.methods.decoder import Decoder
from focus_core.methods.evidence import ReadChunks
from focus_core.methods.experts_evidence import ExpertsEvidence
from focus_core.methods.limits import Lengths, RowLimits
from focus_core.methods.mixing import Mixing, mixing_of
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import ScoredDecoding, ScoringMethod, best_first, chunks_read, relevance

DEFAULT_EXPERTS = 8


class ExpertRows:
    """Started questions: for each its experts' rows and, with more than one expert, the amateur's."""

    def __init__(self, rows: PlainDecoding, experts: int, mixing: Mixing) -> None:
        self._rows, self._experts, self._mixing = rows, experts, mixing
        self._rows_each = experts + (experts > 1)

    @classmethod
    def start(
        cls, decoder: Decoder, question: TokenizedQuestion, chunks: Sequence[ChunkRow], mixing: Mixing
    ) -> tuple[ExpertRows, Tensor]:
        """The rows of one question over these chunks, and its next-token logits `[1, vocab]`."""
        suffix = question.layout.after(question.context)
        rows = PlainDecoding(decoder, [suffix] * len(chunks), chunks)
        logits = rows.start()
        if len(chunks) > 1:
            amateur = PlainDecoding(decoder, [question.context.row])
            logits = torch.cat([logits, amateur.start()])
            rows.join(amateur)
        started = cls(rows, len(chunks), mixing)
        mixed = started._mix(logits)
        for token in question.generated:  # of an answer that goes on: what mixing remembers comes of every step
            mixed = started.step(torch.tensor([token]))
        return started, mixed

    @property
    def winners(self) -> Tensor | None:
        """`[questions]`, the expert that the newest logits are of; `None` where there is one expert."""
        return None if self._experts == 1 else self._mixing.winners

    def step(self, tokens: Tensor) -> Tensor:
        return self._mix(self._rows.step(tokens.repeat_interleave(self._rows_each)))

    def keep(self, questions: Sequence[int]) -> None:
        rows = range(self._rows_each)
        self._rows.keep([question * self._rows_each + row for question in questions for row in rows])
        self._mixing.keep(questions)

    def join(self, *others: ExpertRows) -> None:
        self._rows.join(*(other._rows for other in others))
        for other in others:
            self._mixing.join(other._mixing)

    def _mix(self, logits: Tensor) -> Tensor:
        """`[questions · rows, vocab]` to `[questions, vocab]`."""
        of_each = logits.unflatten(0, (-1, self._rows_each)).float()
        return of_each[:, 0] if self._experts == 1 else self._mixing.mix(of_each[:, :-1], of_each[:, -1])


class ExpertsDecoding(ScoredDecoding[ExpertRows]):
    """The best chunks as experts, for a batch of questions about the same chunks."""

    def _start(self, question: TokenizedQuestion, scores: Sequence[ChunkScore]) -> tuple[list[int], ExpertRows, Tensor]:
        config = self._decoder.config
        best = sorted(best_first(scores)[: config.experts or DEFAULT_EXPERTS])
        mixing = mixing_of(self._decoder, relevance(scores, best))
        chunks = [self._chunks.rows[index] for index in best]
        return best, *ExpertRows.start(self._decoder, question, chunks, mixing)

    def shares(self) -> list[list[float] | None]:
        """The chunk of the expert that spoke has all."""
        winners = self._started.winners
        experts: list[int] = [0] * len(self._scores) if winners is None else winners.tolist()
        found = list[list[float] | None]()
        for scores, expert in zip(self._scores, experts, strict=True):
            chunk = chunks_read(scores)[expert]
            found.append([float(index == chunk) for index in range(len(scores))])
        return found


class ExpertsMethod(ScoringMethod):
    """Chunks as experts, as a `Method`."""

    name: ClassVar[str] = "experts"
    reading: ClassVar[Reading] = Reading(boundaries="paragraph", pack=True, by_words=True, own_opening=True)
    own_rows: ClassVar[bool] = False  # their number depends on the chunks

    def limits(self, lengths: Lengths) -> RowLimits:
        return RowLimits(self._decoder.config, lengths, rows=self._decoder.config.experts or DEFAULT_EXPERTS)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> ExpertsDecoding:
        return ExpertsDecoding(self._decoder, chunks, questions)

    def evidence(
        self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks
    ) -> ExpertsEvidence:
        return ExpertsEvidence(self._decoder, question, scores)
