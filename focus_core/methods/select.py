"""Select, then answer: the chunks that make the question likeliest go into the plain model's window.

    score_k = mean log p(question | chunk k)            # of every chunk, from a pass over the question alone
    row     = the best chunks that fit, in the order of their documents, and the question
    answer  = the plain model's, from this row

No training is needed, and the row is one that the model was made for. The score is the query likelihood of Ponte and
Croft (1998) with the model itself as language model.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.config import DEFAULT_SELECTED, ResolvedConfig
from focus_core.methods.base import ChunkScore, Prefilling, Reading, TokenizedQuestion, pad_left
from focus_core.methods.decoder import Decoder
from focus_core.methods.limits import Lengths, RowLimits
from focus_core.methods.plain import PlainDecoding
from focus_core.text.chunking import Chunk


class SelectDecoding:
    """The plain model over the selected chunks, for a batch of questions about the same chunks."""

    def __init__(self, decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> None:
        self._decoder, self._chunks, self._questions = decoder, chunks, questions
        self._scores: list[tuple[ChunkScore, ...]] = []
        self._plain: PlainDecoding | None = None

    def start(self) -> Tensor:
        logits = []
        for question, scores in zip(
            self._questions, question_scores(self._decoder, self._chunks, self._questions), strict=True
        ):
            kept = select(question, scores, self._decoder.config)
            self._scores.append(scored(question, scores, kept))
            plain = self._selected_row(question, kept)
            logits.append(plain.start())
            if self._plain is None:
                self._plain = plain
            else:
                self._plain.join(plain)
        return torch.cat(logits)

    def step(self, tokens: Tensor) -> Tensor:
        return self._started.step(tokens)

    def keep(self, questions: Sequence[int]) -> None:
        self._started.keep(questions)
        self._scores = [self._scores[index] for index in questions]

    def join(self, other: SelectDecoding) -> None:
        self._started.join(other._started)
        self._scores += other._scores

    def scores(self) -> list[tuple[ChunkScore, ...]]:
        return self._scores

    @property
    def _started(self) -> PlainDecoding:
        assert self._plain is not None, "start() comes first"
        return self._plain

    def _selected_row(self, question: TokenizedQuestion, kept: Sequence[int]) -> PlainDecoding:
        """The row of the selected chunks. The first one is in the cache already, if it begins as the row does."""
        chunks = [question.chunks[index] for index in kept]
        row = [*question.layout.selection(chunks, question.context), *question.generated]
        first = chunks[0]
        if list(first.opening) != question.layout.before(question.context):
            return PlainDecoding(self._decoder, [row])
        return PlainDecoding(self._decoder, [row[len(first) :]], [self._chunks.rows[kept[0]]])


class SelectMethod:
    """Select, then answer, as a `Method`."""

    name: ClassVar[str] = "select"
    reading: ClassVar[Reading] = Reading(paragraphs=True, pack=True)
    notice = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.cached_layers = decoder.parts.num_layers
        self.bytes_per_token = self.cached_layers * decoder.bytes_per_layer

    def limits(self, lengths: Lengths) -> RowLimits:
        return RowLimits(self._decoder.config, lengths)

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        return self._decoder.prefill_passes([chunk.row for chunk in chunks], layers=self.cached_layers)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> SelectDecoding:
        return SelectDecoding(self._decoder, chunks, questions)


def question_scores(decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> list[list[float]]:
    """Of each question, for each chunk in order: the mean log-probability of the question's words after it."""
    suffixes, padding = pad_left([question.layout.after(question.context) for question in questions])
    words = [question.layout.words(question.context) for question in questions]
    spans = [(start + unused, stop + unused) for (start, stop), unused in zip(words, padding, strict=True)]
    return decoder.likelihoods(chunks, suffixes, padding, spans).tolist()


def select(question: TokenizedQuestion, scores: Sequence[float], config: ResolvedConfig) -> list[int]:
    """Chunks that the answer is read from, in order: the best ones that fit, and always the best one."""
    around = len(question.layout.before(question.context)) + len(question.layout.after(question.context))
    room = min(config.window - around - question.new_tokens, config.select_tokens or DEFAULT_SELECTED)
    best_first = sorted(range(len(scores)), key=lambda index: -scores[index])
    kept, separator = best_first[:1], len(question.layout.separator)
    room -= len(question.chunks[kept[0]].token_ids)
    for index in best_first[1:]:
        taken = len(question.chunks[index].token_ids) + separator
        if taken <= room:
            kept.append(index)
            room -= taken
    return sorted(kept)


def scored(question: TokenizedQuestion, scores: Sequence[float], read: Sequence[int]) -> tuple[ChunkScore, ...]:
    """What an answer tells of its chunks."""
    kept = set(read)
    return tuple(
        ChunkScore(chunk, score, index in kept)
        for index, (chunk, score) in enumerate(zip(question.chunks, scores, strict=True))
    )
