"""The plain model's rows with tokens hidden: what plain, select and experts make of a part that is left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from focus_core.methods.base import TokenizedQuestion
from focus_core.methods.decoder import LOGIT_BYTES, Decoder
from focus_core.methods.evidence import Cost, LeftOut, groups
from focus_core.text.documents import TokenIds


class HiddenTokens:
    """Rows of the plain model in which tokens are hidden: no other token sees them, and all keep their positions.

    Args:
        row: tokens in front of the answer
        answer: its tokens
    """

    def __init__(self, decoder: Decoder, row: TokenIds, answer: Sequence[int]) -> None:
        self._decoder, self._answer = decoder, list(answer)
        self._row = [*row, *self._answer[:-1]]

    def cost(self, rows: int) -> Cost:
        """Of `rows` rows."""
        return Cost(-(-rows // self._size), rows * len(self._row))

    def logits(self, hidden: Sequence[Iterable[int]]) -> Tensor:
        """Logits of the answer's tokens `[hidden, answer, vocab]`, float32, without the tokens at these places."""
        return torch.cat([self._pass(group) for group in groups(hidden, self._size)])

    def log_probs(self, hidden: Sequence[Iterable[int]]) -> Tensor:
        """Log-probability of the answer's tokens `[hidden, answer]`, without the tokens at these places."""
        return torch.cat([log_probs_of(self._pass(group), self._answer).cpu() for group in groups(hidden, self._size)])

    @property
    def _size(self) -> int:
        """Rows of a pass."""
        vocabulary = self._decoder.model.get_output_embeddings().weight.shape[0]
        of_logits = LOGIT_BYTES // (len(self._answer) * vocabulary * 4)
        return max(1, min(self._decoder.tokens_per_pass // len(self._row), of_logits))

    @torch.no_grad()
    def _pass(self, hidden: Sequence[Iterable[int]]) -> Tensor:
        seen = torch.ones(len(hidden), len(self._row), dtype=torch.long)
        for row, places in enumerate(hidden):
            seen[row, list(places)] = 0
        device = self._decoder.device
        output = self._decoder.model(
            input_ids=torch.tensor([self._row] * len(hidden), device=device),
            attention_mask=seen.to(device),
            position_ids=torch.arange(len(self._row), device=device).expand(len(hidden), -1),
            use_cache=False,
            logits_to_keep=len(self._answer),
        )
        logits: Tensor = output.logits.float()
        return logits


def log_probs_of(logits: Tensor, answer: Sequence[int]) -> Tensor:
    """Of `logits [rows, answer, vocab]` the log-probability of each token of the answer, `[rows, answer]`."""
    tokens = torch.tensor(answer, device=logits.device).expand(len(logits), -1)
    return logits.log_softmax(-1).gather(-1, tokens[..., None])[..., 0]


class RowEvidence:
    """The evidence of methods that read some chunks and the question in one row.

    Args:
        question: with its answer
        read: the chunks of the question that stand in the row, in order
    """

    attended = None

    def __init__(self, decoder: Decoder, question: TokenizedQuestion, read: Sequence[int]) -> None:
        chunks, layout = [question.chunks[index] for index in read], question.layout
        row = layout.selection(chunks, question.context)
        self._first = dict(zip(read, layout.selection_starts(chunks, question.context), strict=True))
        self._rows = HiddenTokens(decoder, row, question.generated)

    def begin(self) -> None: ...

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        return self._rows.cost(len({self._hidden(one) for one in left_out}))

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        places = [self._hidden(one) for one in left_out]
        different = list(dict.fromkeys(places))  # of chunks that are not in the row nothing is hidden
        found = self._rows.log_probs(different)[[different.index(one) for one in places]]
        return found if tokens is None else found[:, list(tokens)]  # a row has them all in one pass

    def _hidden(self, left_out: LeftOut) -> frozenset[int]:
        """Places in the row."""
        return frozenset(
            self._first[passage.chunk] + token
            for passage in left_out
            if passage.chunk in self._first
            for token in range(passage.start, passage.stop)
        )
