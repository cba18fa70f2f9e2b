"""Sentence embeddings from a local folder, for top-k retrieval: mean pooling and cosine, as all-MiniLM-L6-v2 has it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from focus_core.errors import ConfigError, first_line
from focus_core.evaluation.retrieval import Scores

_BATCH = 32


class Embedder:
    """A sentence encoder of Hugging Face transformers, on the CPU.

    Raises:
        ConfigError: the folder holds none
    """

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            self._model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
        except (OSError, ValueError) as error:
            raise ConfigError(f"{folder} holds no sentence encoder: {first_line(error)}") from error
        self._positions: int = self._model.config.max_position_embeddings

    def index(self, passages: Sequence[str]) -> EmbeddingIndex:
        return EmbeddingIndex(self, self.embed(passages))

    @torch.no_grad()
    def embed(self, texts: Sequence[str]) -> Scores:
        """`[texts, dim]`, of length 1.

        Raises:
            ConfigError: a text is longer than the encoder's positions
        """
        rows = self._tokenizer(list(texts))["input_ids"]
        longest = max(map(len, rows))
        if longest > self._positions:
            raise ConfigError(
                f"A passage has {longest} tokens for the sentence encoder, which has {self._positions} positions. "
                "Cut documents into smaller passages (--passage-tokens)."
            )
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        found = np.empty((len(rows), self._model.config.hidden_size), dtype=np.float32)
        for start in range(0, len(order), _BATCH):
            batch = order[start : start + _BATCH]
            found[batch] = self._embed([rows[index] for index in batch]).numpy()
        return found

    def _embed(self, rows: list[list[int]]) -> Tensor:
        padded = self._tokenizer.pad({"input_ids": rows}, return_tensors="pt")
        states = self._model(**padded).last_hidden_state
        mask = padded["attention_mask"][..., None]
        means = (states * mask).sum(dim=1) / mask.sum(dim=1)
        return torch.nn.functional.normalize(means, dim=-1)


class EmbeddingIndex:
    """Passages by their embeddings."""

    def __init__(self, embedder: Embedder, passages: Scores) -> None:
        self._embedder, self._passages = embedder, passages

    def scores(self, question: str) -> Scores:
        (asked,) = self._embedder.embed([question])
        scores: Scores = self._passages @ asked
        return scores
