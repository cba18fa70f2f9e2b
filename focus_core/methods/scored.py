"""What methods that choose among chunks have in common: each chunk is scored by how likely it makes the question.

The score is the query likelihood of Ponte and Croft (1998), with the model itself as language model.
"""

from __future__ import annotations

from collections.abc import Sequence
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

    def join(self, other: Self) -> None: ...


AnyRows = TypeVar("AnyRows", bound=Rows)


class ScoredDecoding(Generic[AnyRows]):
    """Questions that choose among the same chunks, each by itself, and then take their steps together."""

    def __init__(self, decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> None:
        self._decoder, self._chunks, self._questions = decoder, chunks, questions
        self._scores: list[tuple[ChunkScore, ...]] = []
        self._rows: AnyRows | None = None

    def _start(self, question: TokenizedQuestion, scores: Sequence[float]) -> tuple[list[int], AnyRows, Tensor]:
        """The chunks that are read, the rows of one question, and its next-token logits `[1, vocab]`."""
        raise NotImplementedError

    def start(self) -> Tensor:
        logits, found = [], question_scores(self._decoder, self._chunks, self._questions)
        for question, scores in zip(self._questions, found, strict=True):
            read, rows, first = self._start(question, scores)
            self._scores.append(scored(question, scores, read))
            logits.append(first)
            if self._rows is None:
                self._rows = rows
            else:
                self._rows.join(rows)
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


def best_first(scores: Sequence[float]) -> list[int]:
    """Indices of chunks, the highest score first."""
    return sorted(range(len(scores)), key=lambda index: -scores[index])


def chunks_read(scores: Sequence[ChunkScore]) -> list[int]:
    """Indices of the chunks that an answer was read from."""
    return [index for index, score in enumerate(scores) if score.read]


def question_scores(decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> list[list[float]]:
    """Of each question, for each chunk in order: the mean log-probability of the question's words after it."""
    suffixes, padding = pad_left([question.layout.after(question.context) for question in questions])
    words = [question.layout.words(question.context) for question in questions]
    spans = [(start + unused, stop + unused) for (start, stop), unused in zip(words, padding, strict=True)]
    return decoder.likelihoods(chunks, suffixes, padding, spans).tolist()


def scored(question: TokenizedQuestion, scores: Sequence[float], read: Sequence[int]) -> tuple[ChunkScore, ...]:
    """What an answer tells of its chunks."""
    kept = set(read)
    return tuple(
        ChunkScore(chunk, score, index in kept)
        for index, (chunk, score) in enumerate(zip(question.chunks, scores, strict=True))
    )
