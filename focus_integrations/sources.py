"""What an answer owes to its documents, as plain values for metadata of any framework."""

from __future__ import annotations

from typing import Any

from focus_core import Answer, Finished
from focus_core.engine.sources import Source


def source_fields(source: Source) -> dict[str, Any]:
    """A source without its text and metadata."""
    return {
        "document": source.document,
        "start": source.start,
        "end": source.end,
        "score": source.score,
        "role": source.role,
    }


def sources_metadata(end: Answer | Finished) -> dict[str, Any]:
    """Sources, documents with their scores, and whether the text supports the answer; nothing unless asked for."""
    found = end.explanation
    if found is None:
        return {}
    return {
        "sources": [
            {**source_fields(source), "name": source.name, "excerpt": source.excerpt} for source in found.sources
        ],
        "documents": [{"document": of.document, "name": of.name, "score": of.loss} for of in found.documents],
        "supported": found.supported,
        "support": found.support,
    }
