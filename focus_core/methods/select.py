"""Select, then answer: the chunks that make the question likeliest go into the plain model's window.

    row     = the chunks of the highest posterior until they sum to 95 %, as far as they fit, in the order of their
              documents, and the question
    answer  = the plain model's, from this row

`scored.py` says what a chunk's posterior is.

No training is needed, and the row is one that the model was made for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.config import DEFAULT_SELECTED, DEFAULT_TOP_P, ResolvedConfig
from focus_core.methods.base import ChunkScore, Reading, TokenizedQuestion
from focus_core.methods.evidence import ReadChunks
from focus_core.methods.hidden_tokens import RowEvidence
from focus_core.methods.limits import Lengths, RowLimits
from focus_core.methods.plain import PlainDecoding
from focus_core.methods.scored import ScoredDecoding, ScoringMethod, best_first, chunks_read


class SelectDecoding(ScoredDecoding[PlainDecoding]):
    """The plain model over the selected chunks, for a batch of questions about the same chunks."""

    def _start(
        self, question: TokenizedQuestion, scores: Sequence[ChunkScore]
    ) -> tuple[list[int], PlainDecoding, Tensor]:
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
    reading: ClassVar[Reading] = Reading(boundaries="paragraph", pack=True, by_words=True)
    own_rows: ClassVar[bool] = True

    def limits(self, lengths: Lengths) -> RowLimits:
        return RowLimits(self._decoder.config, lengths)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> SelectDecoding:
        return SelectDecoding(self._decoder, chunks, questions)

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> RowEvidence:
        return RowEvidence(self._decoder, question, chunks_read(scores))


def select(question: TokenizedQuestion, scores: Sequence[ChunkScore], config: ResolvedConfig) -> list[int]:
    """Chunks that the answer is read from, in order: the best ones that fit, and always the best one.

    No more of them once those that came before have `select_top_p` of the posterior: a question that only one chunk
    makes likely is answered from that chunk.
    """
    top_p = config.select_top_p or DEFAULT_TOP_P
    around = len(question.layout.before(question.context)) + len(question.layout.after(question.context))
    room = min(config.window - around - question.new_tokens, config.select_tokens or DEFAULT_SELECTED)
    order = best_first(scores)
    kept, separator, passed = order[:1], len(question.layout.separator), scores[order[0]].posterior
    room -= len(question.chunks[kept[0]].token_ids)
    for index in order[1:]:
        if passed >= top_p:
            break
        passed += scores[index].posterior
        taken = len(question.chunks[index].token_ids) + separator
        if taken <= room:
            kept.append(index)
            room -= taken
    return sorted(kept)
