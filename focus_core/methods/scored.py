"""What methods that choose among chunks have in common: each chunk is scored by how likely it makes the question.

    score_k     = mean log p(question | chunk k)              # of every chunk, from a pass over the question alone
    posterior_k = softmax of (score_k · words + BM25_k) / 2   # at a temperature of 2

The score is the query likelihood of Ponte and Croft (1998), with the model itself as language model. BM25 is more for a
chunk that shares rare words with the question: a model takes names that it does not know for unlikely anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Generic, Protocol, Self, TypeVar

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.methods.base import ChunkScore, Prefilling, TokenizedQuestion, pad_left
from focus_core.methods.decoder import Decoder
from focus_core.text.chunking import Chunk


class Rows(Protocol):
    """Rows of questions that have started."""

    def step(self, tokens: Tensor) -> Tensor: ...

    def keep(self, questions: Sequence[int]) -> None: ...

    def join(self, *others: Self) -> None: ...


AnyRows = TypeVar("AnyRows", bound=Rows)

_TEMPERATURE = 2.0  # by measurement on stories with questions (log)
_MOST_WORDS = 32  # tokens; the measured questions had about twenty


class ScoredDecoding(Generic[AnyRows]):
    """Questions that choose among the same chunks, each by itself, and then take their steps together."""

    def __init__(self, decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> None:
        self._decoder, self._chunks, self._questions = decoder, chunks, questions
        self._scores: list[tuple[ChunkScore, ...]] = []
        self._rows: AnyRows | None = None

    def _start(self, question: TokenizedQuestion, scores: Sequence[ChunkScore]) -> tuple[list[int], AnyRows, Tensor]:
        """The chunks that are read, the rows of one question, and its next-token logits `[1, vocab]`."""
        raise NotImplementedError

    def start(self) -> Tensor:
        started, logits = list[AnyRows](), list[Tensor]()
        found = question_scores(self._decoder, self._chunks, self._questions)
        for question, of_question in zip(self._questions, found, strict=True):
            scores = scored(question, of_question)
            read, rows, first = self._start(question, scores)
            self._scores.append(tuple(replace(one, read=index in read) for index, one in enumerate(scores)))
            started.append(rows)
            logits.append(first)
        self._rows = started[0]
        if len(started) > 1:
            self._rows.join(*started[1:])
        return torch.cat(logits)

    def step(self, tokens: Tensor) -> Tensor:
        return self._started.step(tokens)

    def keep(self, questions: Sequence[int]) -> None:
        self._started.keep(questions)
        self._scores = [self._scores[index] for index in questions]

    def join(self, other: Self) -> None:
        self._started.join(other._started)
        self._scores += other._scores

    def scores(self) -> list[tuple[ChunkScore, ...]]:
        return self._scores

    def shares(self) -> list[list[float] | None]:
        return [None] * len(self._scores)

    @property
    def _started(self) -> AnyRows:
        assert self._rows is not None, "start() comes first"
        return self._rows


class ScoringMethod:
    """The part of a `Method` that prefills: rows go on from chunks, so all layers are kept."""

    notice = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.cached_layers = decoder.parts.num_layers
        self.bytes_per_token = self.cached_layers * decoder.bytes_per_layer

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        return self.cached_layers * self._decoder.chunk_bytes_per_layer(chunks, tokens)

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        return self._decoder.prefill_passes([chunk.row for chunk in chunks], layers=self.cached_layers)


def best_first(scores: Sequence[ChunkScore]) -> list[int]:
    """Indices of chunks, the highest posterior first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index].posterior)


def chunks_read(scores: Sequence[ChunkScore]) -> list[int]:
    """Indices of the chunks that an answer was read from."""
    return [index for index, score in enumerate(scores) if score.read]


def relevance(scores: Sequence[ChunkScore], chunks: Sequence[int]) -> list[float]:
    """Scores of some chunks, beside the highest of all (nats, at most 0)."""
    highest = max((one.score for one in scores), default=0.0)
    return [scores[index].score - highest for index in chunks]


def chunk_posterior(scores: Sequence[float], words: int, shared_words: Sequence[float] = ()) -> list[float]:
    """The probability of each chunk, given the question; they sum to 1.

    At a temperature: words depend on each other, so that their number overstates the evidence. Those of a long prompt
    beyond the first few dozen are taken to add none.

    Args:
        scores: mean log-probability of the question's words after each chunk
        words: number of these, in tokens
        shared_words: BM25 of each chunk, which counts as nats
    """
    evidence = torch.tensor(scores, dtype=torch.float64) * min(words, _MOST_WORDS)
    if shared_words:
        evidence += torch.tensor(shared_words, dtype=torch.float64)
    return (evidence / _TEMPERATURE).softmax(0).tolist()


def question_scores(decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> list[list[float]]:
    """Of each question, for each chunk in order: the mean log-probability of the question's words after it."""
    suffixes, padding = pad_left([question.layout.after(question.context) for question in questions])
    words = [question.layout.words(question.context) for question in questions]
    spans = [(start + unused, stop + unused) for (start, stop), unused in zip(words, padding, strict=True)]
    return decoder.likelihoods(chunks, suffixes, padding, spans).tolist()


def scored(question: TokenizedQuestion, scores: Sequence[float]) -> tuple[ChunkScore, ...]:
    """The chunks of a question with their scores and posteriors; none of them is read yet."""
    first, last = question.layout.words(question.context)
    posterior = chunk_posterior(scores, last - first, question.shared_words)
    return tuple(
        ChunkScore(chunk, score, probability, read=False)
        for chunk, score, probability in zip(question.chunks, scores, posterior, strict=True)
    )
