"""Select, then answer: the chunks that make the question likeliest go into the plain model's window.

    score_k = mean log p(question | chunk k)            # of every chunk, from a pass over the question alone
    share_k = softmax of score_k · words / 2            # the posterior of chunk k, at a temperature of 2
    row     = the best chunks until they have 95 % of the shares, as far as they fit, in the order of their documents,
              and the question
    answer  = the plain model's, from this row

No training is needed, and the row is one that the model was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.config import DEFAULT_SELECTED, DEFAULT_TOP_P, ResolvedConfig
from focus_core.methods.base import ChunkScore, Reading, TokenizedQuestion
from focus_core.methods.evidence import ReadChunks
from focus_core.methods.hidden_tokens import RowEvidence
from focus_core.methods.limits import Lengths, RowLimits
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import ScoredDecoding, ScoringMethod, best_first, chunks_read

_TEMPERATURE = 2.0  # by measurement on stories with questions (log)
_MOST_WORDS = 32  # tokens; the measured questions had about twenty


class SelectDecoding(ScoredDecoding[PlainDecoding]):
    """The plain model over the selected chunks, for a batch of questions about the same chunks."""

    def _start(self, question: TokenizedQuestion, scores: Sequence[float]) -> tuple[list[int], PlainDecoding, Tensor]:
        kept = select(question, scores, self._decoder.config)
        plain = self._selected_row(question, kept)
        return kept, plain, plain.start()

    def _selected_row(self, question: TokenizedQuestion, kept: Sequence[int]) -> PlainDecoding:
        """The row of the selected chunks. The first one is in the cache already, if it begins as the row does."""
        chunks = [question.chunks[index] for index in kept]
        row = [*question.layout.selection(chunks, question.context), *question.generated]
        first = chunks[0]
        if list(first.opening) != question.layout.before(question.context):
            return PlainDecoding(self._decoder, [row])
        return PlainDecoding(self._decoder, [row[len(first) :]], [self._chunks.rows[kept[0]]])


class SelectMethod(ScoringMethod):
    """Select, then answer, as a `Method`."""

    name: ClassVar[str] = "select"
    reading: ClassVar[Reading] = Reading(boundaries="paragraph", pack=True, shortlist=True)
    own_rows: ClassVar[bool] = True

    def limits(self, lengths: Lengths) -> RowLimits:
        return RowLimits(self._decoder.config, lengths)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> SelectDecoding:
        return SelectDecoding(self._decoder, chunks, questions)

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> RowEvidence:
        return RowEvidence(self._decoder, question, chunks_read(scores))


def select(question: TokenizedQuestion, scores: Sequence[float], config: ResolvedConfig) -> list[int]:
    """Chunks that the answer is read from, in order: the best ones that fit, and always the best one.

    No more of them once those that came before have `select_top_p` of the shares: a question that only one chunk
    makes likely is answered from that chunk.
    """
    first, last = question.layout.words(question.context)
    shares, top_p = chunk_shares(scores, last - first), config.select_top_p or DEFAULT_TOP_P
    around = len(question.layout.before(question.context)) + len(question.layout.after(question.context))
    room = min(config.window - around - question.new_tokens, config.select_tokens or DEFAULT_SELECTED)
    order = best_first(scores)
    kept, separator, passed = order[:1], len(question.layout.separator), shares[order[0]]
    room -= len(question.chunks[kept[0]].token_ids)
    for index in order[1:]:
        if passed >= top_p:
            break
        passed += shares[index]
        taken = len(question.chunks[index].token_ids) + separator
        if taken <= room:
            kept.append(index)
            room -= taken
    return sorted(kept)


def chunk_shares(scores: Sequence[float], words: int) -> list[float]:
    """How much of the evidence is for each chunk; they sum to 1.

    The posterior of the chunks, given the question, at a temperature: words depend on each other, so that their number
    overstates the evidence. Those of a long prompt beyond the first few dozen are taken to add none.

    Args:
        scores: mean log-probability of the question's words after each chunk
        words: number of these, in tokens
    """
    evidence = torch.tensor(scores, dtype=torch.float64) * min(words, _MOST_WORDS)
    return (evidence / _TEMPERATURE).softmax(0).tolist()
