"""Where the sources of an answer stand: in the documents' own texts, and in the nodes that were found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llama_index.core.schema import MetadataMode, NodeWithScore

from focus_core import Document
from focus_integrations.llama_index.llm import named_document
from focus_integrations.llama_index.whole import WholeDocument

SourceRecord = dict[str, Any]  # as in the metadata of a response


@dataclass(frozen=True)
class ShownDocument:
    """A document, and its text as the model reads it: through the document template."""

    whole: WholeDocument
    text: str

    @cached_property
    def for_engine(self) -> Document:
        return named_document(self.text, self.whole.metadata, self.whole.key)

    def placed(self, source: SourceRecord) -> SourceRecord:
        """The source with the document's id, and with characters in the document's own text.

        `start` and `end` are `None` of what the template adds.
        """
        own, start, end = self.whole.text, source["start"], source["end"]
        before = self.text.find(own)
        inside = start is not None and before >= 0 and before <= start and end <= before + len(own)
        return {
            **source,
            "start": start - before if inside else None,
            "end": end - before if inside else None,
            "ref_doc_id": self.whole.key,
        }

    def held_by(self, hit: NodeWithScore, sources: Sequence[SourceRecord]) -> list[SourceRecord]:
        """The sources of which a node of this document has some: by its characters, else by its text."""
        of_this = [source for source in sources if source.get("ref_doc_id") == self.whole.key]
        if not of_this:
            return []
        content = hit.node.get_content(MetadataMode.NONE)
        first = _first_character(hit, content, self.whole.text)
        return [source for source in of_this if _holds(content, first, source)]


def placed_sources(found: Sequence[SourceRecord], shown: Sequence[ShownDocument], asked: int) -> list[SourceRecord]:
    """Sources of an answer about `asked` documents, of which these are the last; the others are the model's own."""
    before = asked - len(shown)
    return [
        shown[source["document"] - before].placed(source) if source["document"] >= before else source
        for source in found
    ]


def by_evidence(
    hits: Sequence[NodeWithScore], shown: Sequence[ShownDocument], sources: Sequence[SourceRecord]
) -> list[NodeWithScore]:
    """The nodes with the scores of the passages in them, the best first."""
    document_of = {id(hit): one for one in shown for hit in one.whole.hits}

    def score(hit: NodeWithScore) -> float:
        document = document_of.get(id(hit))  # a document without text is not shown
        return float(sum(one["score"] for one in document.held_by(hit, sources))) if document else 0.0

    rescored = [NodeWithScore(node=hit.node, score=score(hit)) for hit in hits]
    return sorted(rescored, key=lambda hit: -(hit.score or 0.0))


def _holds(content: str, first: int | None, source: SourceRecord) -> bool:
    if first is None or source["start"] is None:
        return source["excerpt"] in content
    return bool(source["start"] < first + len(content) and first < source["end"])


def _first_character(hit: NodeWithScore, content: str, text: str) -> int | None:
    """Of a node in its document: where it says, if it says so rightly, else where its text stands, if once."""
    said = getattr(hit.node, "start_char_idx", None)
    if said is not None and text.startswith(content, said):
        return int(said)
    first = text.find(content)
    return first if first >= 0 and text.find(content, first + 1) < 0 else None
