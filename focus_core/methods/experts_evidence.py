"""What an answer of experts owes to its chunks: each chunk has a row, and only the winner of a token speaks.

The logits of every row for every token of the answer are computed once. Without a chunk, they are mixed again without
its row; with all chunks left out the amateur speaks, which has read no documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor

from focus_core.methods.base import ChunkScore, TokenizedQuestion
from focus_core.methods.decoder import Decoder
from focus_core.methods.evidence import Cost, LeftOut, by_chunk, tokens_left
from focus_core.methods.hidden_tokens import HiddenTokens, log_probs_of
from focus_core.methods.mixing import mixing_of
from focus_core.methods.scored import chunks_read, relevance

_LEAST = -50.0  # nats of a token that the mixing excludes


class ExpertsEvidence:
    """The evidence of one answer.

    Args:
        question: with its answer
        scores: of its chunks
    """

    attended = None

    def __init__(self, decoder: Decoder, question: TokenizedQuestion, scores: Sequence[ChunkScore]) -> None:
        self._decoder, self._question = decoder, question
        self._answer, self._experts = question.generated, chunks_read(scores)
        self._relevance = relevance(scores, self._experts)
        suffix = question.layout.after(question.context)
        self._rows = {
            index: HiddenTokens(decoder, [*question.chunks[index].row, *suffix], self._answer)
            for index in self._experts
        }
        self._amateur = HiddenTokens(decoder, question.context.row, self._answer)

    def begin(self) -> None: ...

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        cost = Cost()
        if "_whole_rows" not in self.__dict__:
            cost = sum((row.cost(1) for row in self._rows.values()), self._amateur.cost(1))
        return sum((self._rows[self._chunk(part)].cost(1) for part in self._partly(left_out)), cost)

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        partly = {part: self._hidden(part) for part in self._partly(left_out)}
        found = torch.stack([self._log_probs(one, partly) for one in left_out])
        return found if tokens is None else found[:, list(tokens)]

    def _log_probs(self, left_out: LeftOut, partly: dict[LeftOut, Tensor]) -> Tensor:
        parts = by_chunk(left_out)
        rows, relevance = [], []
        for index, log_relevance in zip(self._experts, self._relevance, strict=True):
            if index in parts and parts[index] not in partly:
                continue
            rows.append(partly[parts[index]] if index in parts else self._whole_rows[index])
            relevance.append(log_relevance)
        return log_probs_of(self._mixed(rows, relevance)[None], self._answer)[0].clamp(min=_LEAST).cpu()

    def _mixed(self, rows: Sequence[Tensor], relevance: Sequence[float]) -> Tensor:
        """Logits of the answer's tokens `[answer, vocab]`, from those of the experts that take part."""
        if not rows:
            return self._amateur_row
        if len(self._experts) == 1:  # it has spoken without an amateur
            return rows[0]
        mixing, experts = mixing_of(self._decoder, relevance), torch.stack(list(rows), dim=1)
        pairs = zip(experts, self._amateur_row, strict=True)
        return torch.cat([mixing.mix(expert[None], amateur[None]) for expert, amateur in pairs])

    @cached_property
    def _whole_rows(self) -> dict[int, Tensor]:
        """Of each expert its logits `[answer, vocab]`."""
        return {index: row.logits([()])[0] for index, row in self._rows.items()}

    @cached_property
    def _amateur_row(self) -> Tensor:
        return self._amateur.logits([()])[0]

    def _hidden(self, part: LeftOut) -> Tensor:
        """The logits of an expert without some of its tokens."""
        chunk = self._chunk(part)
        first = len(self._question.chunks[chunk].opening)
        places = [first + token for passage in part for token in range(passage.start, passage.stop)]
        return self._rows[chunk].logits([places])[0]

    def _partly(self, left_out: Sequence[LeftOut]) -> list[LeftOut]:
        """Parts of experts' chunks that are left out and are not the whole chunk, each once."""
        parts = (part for one in left_out for chunk, part in by_chunk(one).items() if chunk in self._rows)
        chunks = self._question.chunks
        return [part for part in dict.fromkeys(parts) if tokens_left(chunks[self._chunk(part)].token_ids, part)]

    @staticmethod
    def _chunk(part: LeftOut) -> int:
        return next(iter(part)).chunk
