"""What an answer owes to its documents, as plain values for metadata of any framework."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from focus_core import Answer, Finished
from focus_core.engine.answers import Event
from focus_core.engine.sources import Source

_PAGE_LABEL = (
    "page_label"  # in metadata of documents that are single pages, as loaders of PDF in both frameworks make them
)


def source_fields(source: Source) -> dict[str, Any]:
    """A source without its text and metadata."""
    return {
        "document": source.document,
        "start": source.start,
        "end": source.end,
        "page": source.page if source.page is not None else source.metadata.get(_PAGE_LABEL),
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
        "explained": found.explained,
    }


def live_metadata(event: Event) -> dict[str, Any]:
    """A piece's text, and the chunk that its tokens draw on most; nothing without live evidence.

    A list of one: where a framework adds up the metadata of pieces, it has an entry for each, in order.
    """
    if event.evidence is None:
        return {}
    best = event.evidence.best
    return {"live_evidence": [{"text": event.text, **asdict(best), "documents": list(best.documents)}]}
