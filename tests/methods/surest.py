"""A third method, to show that the seam holds: every chunk is read with the question alone, and the surest one answers.

Each question is appended to every chunk as ordinary tokens; the chunk whose row is surest of the first token gives the
whole answer, as the plain model would from that chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.errors import ConfigError
from focus_core.methods.base import ChunkScore, Prefilling, Reading, TokenizedQuestion, pad_left, without_unused
from focus_core.methods.decoder import Decoder
from focus_core.methods.evidence import Evidence, ReadChunks
from focus_core.methods.limits import FocusLimits, Lengths
from focus_core.text.chunking import Chunk


class SurestDecoding:
    def __init__(self, decoder: Decoder, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> None:
        self._decoder, self._chunks = decoder, chunks
        self._prompts, self._padding = pad_left([question.dynamic_prompt for question in questions])
        self._generated = [len(question.generated) for question in questions]  # of a question that goes on, not 0
        self._appended = decoder.new_appended(chunks, self._padding, layers=decoder.parts.num_layers)
        self._surest = torch.zeros(len(questions), dtype=torch.long)

    def scores(self) -> list[tuple[ChunkScore, ...]]:
        return [()] * len(self._padding)

    def shares(self) -> list[None]:
        return [None] * len(self._padding)

    def start(self) -> Tensor:
        rows = self._append(self._prompts, logits_of=max(self._generated) + 1)
        sure = rows.softmax(-1).amax(-1)  # [chunks, questions, tokens]
        firsts = [sure[:, number, -1 - generated] for number, generated in enumerate(self._generated)]
        self._surest = torch.stack(firsts, dim=1).argmax(0)
        return self._of_surest(rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self._of_surest(self._append(tokens[:, None]))

    def keep(self, questions: Sequence[int]) -> None:
        self._padding, unused = without_unused([self._padding[index] for index in questions])
        self._appended.keep(questions, unused)
        self._surest = self._surest[torch.tensor(questions)]

    def join(self, other: SurestDecoding) -> None:
        self._appended.join(other._appended)
        self._padding = self._appended.padding.tolist()
        self._surest = torch.cat([self._surest, other._surest])

    def _append(self, tokens: Tensor, logits_of: int = 1) -> Tensor:
        return self._decoder.append(self._chunks, tokens, self._appended, logits_of=logits_of)

    def _of_surest(self, rows: Tensor) -> Tensor:
        """`[chunks, questions, tokens, vocab]` to `[questions, vocab]`."""
        return rows[self._surest, torch.arange(rows.shape[1]), -1]


class SurestMethod:
    name: ClassVar[str] = "surest"
    reading: ClassVar[Reading] = Reading()
    own_rows: ClassVar[bool] = False
    notice = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.cached_layers = decoder.parts.num_layers
        self.bytes_per_token = self.cached_layers * decoder.bytes_per_layer

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        return self.cached_layers * self._decoder.chunk_bytes_per_layer(chunks, tokens)

    def limits(self, lengths: Lengths) -> FocusLimits:
        return FocusLimits(self._decoder.config, lengths)

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        return self._decoder.prefill_passes([chunk.row for chunk in chunks], layers=self.cached_layers)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> SurestDecoding:
        return SurestDecoding(self._decoder, chunks, questions)

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> Evidence:
        raise ConfigError("method='surest' does not tell what an answer owes to its chunks. Ask without sources.")
