"""Chunks as experts: several chunks' rows decode together, against a row that has no documents (the amateur).

PCED (arXiv 2601.08670):
    once:       p = softmax(a), q = softmax(e_k), m = (p + q) / 2
                β_k = clamp((p log(p/m) + q log(q/m)) / 2, 0, 1)        # of each vocabulary entry
    each step:  c_k = (1 + β_k) e_k − β_k a
                k*  = argmax_k (max_v c_k[v] + γ log r_k)               # r_k: relevance of the chunk, 0 to 1

NBCE (github.com/bojone/NBCE): k* is the row of the smallest entropy, with a bonus η for the row of the step before, and
    c = (1 + β) log p_k − β log p_amateur, where the amateur's nucleus has the token, else log p_k

The best rows by the likelihood of the question take part. With a single chunk this is the plain model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.methods.base import Reading, TokenizedQuestion
from focus_core.methods.decoder import Decoder
from focus_core.methods.limits import Lengths, RowLimits
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import ScoredDecoding, ScoringMethod, best_first

DEFAULT_EXPERTS = 8
DEFAULT_MIXING = "pced"
_GAMMA = 2.5  # weight of relevance, as in the published code of PCED
_BETA = 0.25  # of the amateur, in NBCE
_ETA = 0.1  # nats of entropy that the row of the step before is given, in NBCE
_NUCLEUS = 0.95  # of each row's probability, in NBCE


class Mixing(Protocol):
    """How rows become one distribution. Holds what it remembers between steps, for each question."""

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        """`[questions, experts, vocab]` and `[questions, vocab]` to next-token logits `[questions, vocab]`."""

    def keep(self, questions: Sequence[int]) -> None: ...

    def join(self, other: Any) -> None: ...


class Pced:
    """Parallel context-of-experts decoding.

    Args:
        relevance: log r_k `[questions, experts]`
    """

    def __init__(self, relevance: Tensor) -> None:
        self._relevance = relevance
        self._contrast: Tensor | None = None

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        if self._contrast is None:
            self._contrast = contrast_weights(experts, amateur[:, None])
        contrasted = (1 + self._contrast) * experts - self._contrast * amateur[:, None]
        best = (contrasted.amax(-1) + _GAMMA * self._relevance).argmax(1)
        return contrasted[torch.arange(len(best), device=best.device), best]

    def keep(self, questions: Sequence[int]) -> None:
        self._relevance = self._relevance[list(questions)]
        self._contrast = None if self._contrast is None else self._contrast[list(questions)]

    def join(self, other: Pced) -> None:
        self._relevance = torch.cat([self._relevance, other._relevance])
        if self._contrast is not None and other._contrast is not None:  # with a single expert nothing is mixed
            self._contrast = torch.cat([self._contrast, other._contrast])


class Nbce:
    """Naive Bayes-based context extension, with pooling by entropy."""

    def __init__(self, relevance: Tensor) -> None:
        self._last = torch.full_like(relevance[:, 0], -1, dtype=torch.long)  # row of the step before; -1: none yet

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        log_probs, absent = nucleus(experts.log_softmax(-1)), nucleus(amateur.log_softmax(-1))
        entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
        rows = torch.arange(entropy.shape[1], device=entropy.device)
        best = (entropy - _ETA * (rows == self._last[:, None])).argmin(1)
        self._last = best
        chosen = log_probs[torch.arange(len(best), device=best.device), best]
        return torch.where(absent.isfinite(), (1 + _BETA) * chosen - _BETA * absent, chosen)

    def keep(self, questions: Sequence[int]) -> None:
        self._last = self._last[list(questions)]

    def join(self, other: Nbce) -> None:
        self._last = torch.cat([self._last, other._last])


MIXINGS: dict[str, type[Pced] | type[Nbce]] = {"pced": Pced, "nbce": Nbce}


def contrast_weights(experts: Tensor, amateur: Tensor) -> Tensor:
    """β of PCED: what each vocabulary entry adds to the Jensen–Shannon divergence of expert and amateur."""
    p, q = amateur.softmax(-1), experts.softmax(-1)
    middle = ((p + q) / 2).log()
    return (0.5 * (_weighted_log(p, middle) + _weighted_log(q, middle))).clamp(0, 1)


def _weighted_log(p: Tensor, other: Tensor) -> Tensor:
    """p log(p / other), 0 where p is."""
    return torch.where(p > 0, p * (p.log() - other), 0.0)


def nucleus(log_probs: Tensor) -> Tensor:
    """Log-probabilities of the likeliest tokens that make up `_NUCLEUS`; the others get −∞."""
    ordered, index = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return log_probs.masked_fill((before >= _NUCLEUS).gather(-1, index.argsort(-1)), -torch.inf)


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

    def step(self, tokens: Tensor) -> Tensor:
        return self._mix(self._rows.step(tokens.repeat_interleave(self._rows_each)))

    def keep(self, questions: Sequence[int]) -> None:
        rows = range(self._rows_each)
        self._rows.keep([question * self._rows_each + row for question in questions for row in rows])
        self._mixing.keep(questions)

    def join(self, other: ExpertRows) -> None:
        self._rows.join(other._rows)
        self._mixing.join(other._mixing)

    def _mix(self, logits: Tensor) -> Tensor:
        """`[questions · rows, vocab]` to `[questions, vocab]`."""
        of_each = logits.unflatten(0, (-1, self._rows_each)).float()
        return of_each[:, 0] if self._experts == 1 else self._mixing.mix(of_each[:, :-1], of_each[:, -1])


class ExpertsDecoding(ScoredDecoding[ExpertRows]):
    """The best chunks as experts, for a batch of questions about the same chunks."""

    def _start(self, question: TokenizedQuestion, scores: Sequence[float]) -> tuple[list[int], ExpertRows, Tensor]:
        config = self._decoder.config
        best = sorted(best_first(scores)[: config.experts or DEFAULT_EXPERTS])
        relevance = torch.tensor([[scores[index] - max(scores) for index in best]], device=self._decoder.device)
        mixing = MIXINGS[config.mixing or DEFAULT_MIXING](relevance)
        chunks = [self._chunks.rows[index] for index in best]
        return best, *ExpertRows.start(self._decoder, question, chunks, mixing)


class ExpertsMethod(ScoringMethod):
    """Chunks as experts, as a `Method`."""

    name: ClassVar[str] = "experts"
    reading: ClassVar[Reading] = Reading(boundaries="paragraph", pack=True, own_opening=True)

    def limits(self, lengths: Lengths) -> RowLimits:
        return RowLimits(self._decoder.config, lengths, rows=self._decoder.config.experts or DEFAULT_EXPERTS)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> ExpertsDecoding:
        return ExpertsDecoding(self._decoder, chunks, questions)
