"""Where the sources of an answer stand: in the documents' own texts, and in the nodes that were found."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from llama_index.core.schema import MetadataMode, NodeWithScore

from focus_core import Document, PreparedDocuments
from focus_integrations.llama_index.llm import named_document
from focus_integrations.llama_index.whole import WholeDocument
from focus_integrations.settings import WholeText, without_duplicates

SourceRecord = dict[str, Any]  # as in the metadata of a response


@dataclass(frozen=True)
class ShownDocument:
    """A document as the model reads it: through the document template.

    Attributes:
        text: with what the template adds
        own: which characters of it are the document's
    """

    whole: WholeDocument
    text: str
    own: tuple[int, int]

    @cached_property
    def for_engine(self) -> Document:
        return named_document(self.text, self.whole.metadata, self.whole.key, self.own)

    def placed(self, source: SourceRecord) -> SourceRecord:
        """The source with the document's id, and with its characters in the document.

        Of a document that was put together from some of its nodes these are known where a node holds the passage and
        says where it begins; else `start` and `end` are `None`.
        """
        moved: int | None = 0
        if not self.whole.exact and source["start"] is not None:
            moved = next(self._moves(source), None)
        known = source["start"] is not None and moved is not None
        return {
            **source,
            "start": source["start"] + moved if known else None,
            "end": source["end"] + moved if known else None,
            "ref_doc_id": self.whole.key,
        }

    def _moves(self, source: SourceRecord) -> Iterator[int]:
        """How far the document's characters are from those of the text that was put together, by each node with it."""
        for hit in self.whole.hits:
            content, said = hit.node.get_content(MetadataMode.NONE), getattr(hit.node, "start_char_idx", None)
            first = _only(content, self.whole.text)
            if (
                said is not None
                and first is not None
                and first <= source["start"] <= source["end"] <= first + len(content)
            ):
                yield said - first

    def held_by(self, hit: NodeWithScore, sources: Sequence[SourceRecord]) -> list[SourceRecord]:
        """The sources of this document of which a node has some: by its characters, else by its text."""
        if not sources:
            return []
        content = hit.node.get_content(MetadataMode.NONE)
        first = self._first_character(hit, content)
        return [source for source in sources if _holds(content, first, source)]

    def _first_character(self, hit: NodeWithScore, content: str) -> int | None:
        """Of a node in its document: where it says, if it says so rightly, else where its text stands, if once."""
        said = getattr(hit.node, "start_char_idx", None)
        if said is not None and (not self.whole.exact or self.whole.text.startswith(content, said)):
            return int(said)
        return _only(content, self.whole.text) if self.whole.exact else None


@dataclass(frozen=True)
class ShownDocuments:
    """The documents of a question.

    Attributes:
        beside: documents that the model reads with every question, before these
    """

    documents: Sequence[ShownDocument]
    beside: Sequence[WholeText] = ()

    def placed(self, found: Sequence[SourceRecord]) -> list[SourceRecord]:
        """Sources as the model tells them, with their place in these documents; others stay as they are."""
        asked = self._asked
        with_key = {one.for_engine.key: one for one in reversed(self.documents)}
        documents = [with_key.get(asked[source["document"]]) if with_key else None for source in found]
        return [one.placed(source) if one else source for one, source in zip(documents, found, strict=True)]

    @property
    def _asked(self) -> list[bytes]:
        """Keys of the documents that the model is asked about, in its order: equal ones are read once."""
        given = without_duplicates([*self.beside, *(one.for_engine for one in self.documents)])
        prepared = (one.documents if isinstance(one, PreparedDocuments) else (one,) for one in given)
        return [one.key if isinstance(one, Document) else one.document.key for each in prepared for one in each]

    def held_by(self, hit: NodeWithScore, sources: Sequence[SourceRecord]) -> list[SourceRecord]:
        """The sources of which a node has some; those of a document are those of every document with its text."""
        document = self._document_of.get(id(hit))  # a document without text is not shown
        if document is None:
            return []
        same = self._same[document.for_engine.key]
        return document.held_by(hit, [source for source in sources if source.get("ref_doc_id") in same])

    def by_evidence(self, hits: Sequence[NodeWithScore], sources: Sequence[SourceRecord]) -> list[NodeWithScore]:
        """The nodes with the scores of the passages in them, the best first."""
        rescored = [
            NodeWithScore(node=hit.node, score=float(sum(one["score"] for one in self.held_by(hit, sources))))
            for hit in hits
        ]
        return sorted(rescored, key=lambda hit: -(hit.score or 0.0))

    @cached_property
    def _same(self) -> dict[bytes, set[str]]:
        """Ids of the documents with the same text, by its key."""
        found: dict[bytes, set[str]] = {}
        for one in self.documents:
            found.setdefault(one.for_engine.key, set()).add(one.whole.key)
        return found

    @cached_property
    def _document_of(self) -> dict[int, ShownDocument]:
        return {id(hit): one for one in self.documents for hit in one.whole.hits}


def _holds(content: str, first: int | None, source: SourceRecord) -> bool:
    if first is None or source["start"] is None:
        return source["excerpt"] in content
    return bool(source["start"] < first + len(content) and first < source["end"])


def _only(content: str, text: str) -> int | None:
    """Where the content stands in the text, if it does so once."""
    first = text.find(content)
    return first if first >= 0 and text.find(content, first + 1) < 0 else None
