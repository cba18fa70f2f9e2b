"""FocusLLM as a `Method`: what fits, its prefill, its decoding, its evidence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from focus_core.cache.chunks import ChunkSet
from focus_core.methods.base import ChunkScore, Prefilling, Reading, TokenizedQuestion
from focus_core.methods.evidence import ReadChunks
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.focus_evidence import FocusEvidence
from focus_core.methods.limits import FocusLimits, Lengths
from focus_core.text.chunking import Chunk


class FocusMethod:
    """FocusLLM as a `Method`."""

    name: ClassVar[str] = "focus"
    reading: ClassVar[Reading] = Reading()
    own_rows: ClassVar[bool] = False

    def __init__(self, model: FocusModel) -> None:
        self._model = model

    @property
    def cached_layers(self) -> int:
        return self._model.cached_layers

    @property
    def bytes_per_token(self) -> int:
        return self.cached_layers * self._model.bytes_per_layer

    @property
    def notice(self) -> str | None:
        if self._model.trained:
            return None
        return (
            "no adapter is loaded, so its candidate projections are untrained copies of the model's own maps, which "
            "find little in chunks. Name an adapter, or train one with `focusllm train`."
        )

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        return self._model.chunk_bytes(chunks, tokens)

    def limits(self, lengths: Lengths) -> FocusLimits:
        return FocusLimits(self._model.config, lengths)

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        return self._model.prefill_passes([chunk.row for chunk in chunks], layers=self.cached_layers)

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> FocusDecoding:
        local_contexts = [question.local_context for question in questions]
        prompts = [question.dynamic_prompt for question in questions]
        watched = [index for index, question in enumerate(questions) if question.live_evidence]
        return FocusDecoding(self._model, chunks, local_contexts, prompts, watched)

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> FocusEvidence:
        return FocusEvidence(self._model, question, chunks)
