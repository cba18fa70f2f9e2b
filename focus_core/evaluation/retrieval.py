"""Top-k retrieval, as a rival: BM25 and embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from focus_core.errors import ConfigError

Scores = NDArray[np.float32]


class Index(Protocol):
    """Passages that questions are compared with."""

    def scores(self, question: str) -> Scores:
        """`[passages]`, the higher the better."""


class Ranker(Protocol):
    """A way to compare a question with passages."""

    def index(self, passages: Sequence[str]) -> Index:
        """Read the passages once, for all questions about them."""


class BM25:
    """BM25 in the variant of Lucene (k1 = 1.5, b = 0.75), lower-case words without English stop words, from `bm25s`.

    Raises:
        ConfigError: the package is not installed
    """

    def __init__(self) -> None:
        try:
            import bm25s
        except ImportError as error:
            raise ConfigError("Contender bm25 needs bm25s: pip install 'focusllm[eval]'.") from error
        self._library = bm25s

    def index(self, passages: Sequence[str]) -> BM25Index:
        words = self.words(passages)
        if not any(words):
            return BM25Index(self, None, len(words))
        model = self._library.BM25(k1=1.5, b=0.75, method="lucene")
        model.index(words, show_progress=False)
        return BM25Index(self, model, len(words))

    def words(self, texts: Sequence[str]) -> list[list[str]]:
        """Of each text."""
        found: list[list[str]] = self._library.tokenize(
            list(texts), stopwords="en", return_ids=False, show_progress=False
        )
        return found


class BM25Index:
    """Passages by their words; `model` is `None` where they have none."""

    def __init__(self, ranker: BM25, model: object, passages: int) -> None:
        self._ranker, self._model, self._passages = ranker, model, passages

    def scores(self, question: str) -> Scores:
        (words,) = self._ranker.words([question])
        if self._model is None or not words:
            return np.zeros(self._passages, dtype=np.float32)
        scores: Scores = self._model.get_scores(words)  # type: ignore[attr-defined]
        return scores
