"""An explanation that is made up: a random model's answers rest on nothing."""

from __future__ import annotations

import pytest

from focus_core import FocusEngine
from focus_core.engine.sources import DocumentLoss, Explanation, Source

EXCERPT = "nobody saw the keeper again."
SOURCE = Source(1, "a.txt", 8, 36, EXCERPT, 7.5, "sole", 2, metadata={"source": "https://example.org/a.txt"})
MADE = Explanation(
    sources=(SOURCE,),
    supported=True,
    support=7.25,
    explained=0.75,
    documents=(DocumentLoss(0, None, 0.5), DocumentLoss(1, "a.txt", 7.5)),
)
METADATA = {
    "sources": [
        {
            "document": 1, "start": 8, "end": 36, "page": None, "score": 7.5, "role": "sole", "name": "a.txt",
            "excerpt": EXCERPT,
        }
    ],
    "documents": [
        {"document": 0, "name": None, "score": 0.5},
        {"document": 1, "name": "a.txt", "score": 7.5},
    ],
    "supported": True,
    "support": 7.25,
    "explained": 0.75,
}  # fmt: skip


def make_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every answer that is explained has this explanation."""
    monkeypatch.setattr(FocusEngine, "_explain", lambda *_, **options: MADE)
