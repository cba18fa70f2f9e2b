"""What the pieces of a stream have to say about their chunks, whatever the framework."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import pytest

from focus_core import Document, FocusEngine
from tests.integrations.conformance import QUESTION, TOKENS

DOCUMENTS = [
    Document("The gates were closed at noon. " * 8, name="gates"),
    Document("And nobody saw the keeper again, by Edith. " * 6, name="keeper"),
]
WITH_SHARES = ("focus", "experts")
WITHOUT = ("plain", "select")


def wanted(engine: FocusEngine, question: str = QUESTION, **options: Any) -> list[dict[str, Any]]:
    """An entry for each piece, from the engine itself; its chunk lies where its document has these characters."""
    events = engine.stream(question, DOCUMENTS, max_new_tokens=TOKENS, live_evidence=True, **options)
    found = []
    for event in events:
        if event.evidence is None:
            continue
        best, shares = event.evidence.best, event.evidence.shares
        assert best.share == max(shares) == shares[best.chunk]
        found.append({"text": event.text, **asdict(best), "documents": list(best.documents)})
    assert len(found) > TOKENS // 2
    if options.get("method") != "experts":  # the random model's winner is always the same
        assert len({(entry["chunk"], entry["share"]) for entry in found}) == len(found)
        assert len({entry["name"] for entry in found}) == len(DOCUMENTS)
    return found


def assert_agree(found: Sequence[dict[str, Any]], expected: Sequence[dict[str, Any]]) -> None:
    """The same entries in the same order, and nothing but what JSON has."""
    assert json.loads(json.dumps(found)) == list(found)
    assert [{**entry, "share": None} for entry in found] == [{**entry, "share": None} for entry in expected]
    assert [entry["share"] for entry in found] == pytest.approx([entry["share"] for entry in expected], abs=1e-5)
