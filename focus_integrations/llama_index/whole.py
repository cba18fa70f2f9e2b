"""Documents put together again from their nodes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from llama_index.core.storage.docstore.types import BaseDocumentStore


@dataclass(frozen=True)
class WholeDocument:
    """One document behind some hits.

    Attributes:
        key: the document's id, or that of a node which belongs to none
        text: the document as far as it is known
        exact: whether this is certainly the document's text, all of it and each part once
        hits: the nodes that were found, best first
        metadata: the original's where it is kept, else the first hit's
    """

    key: str
    text: str
    exact: bool
    hits: list[NodeWithScore]
    metadata: dict[str, object]


def whole_documents(hits: Sequence[NodeWithScore], docstore: BaseDocumentStore | None) -> list[WholeDocument]:
    """The documents of `hits`, each once, in the order in which they first appear.

    Text is the original's where `docstore` keeps it; else all nodes of the document that `docstore` knows are put
    together, else the hits alone. Both of these warn, because what overlaps or is missing cannot be known for certain.
    """
    groups: dict[str, list[NodeWithScore]] = {}
    for hit in hits:
        source = hit.node.source_node
        groups.setdefault(source.node_id if source else hit.node.node_id, []).append(hit)
    documents = [_whole(key, found, docstore) for key, found in groups.items()]
    guessed = [document.key for document in documents if not document.exact]
    if guessed:
        warnings.warn(
            f"Put together from nodes, because the original is not in the docstore: {', '.join(guessed[:5])}"
            f"{' …' if len(guessed) > 5 else ''}. Keep originals with `docstore.add_documents(documents)`.",
            stacklevel=3,
        )
    return documents


def _whole(key: str, hits: list[NodeWithScore], docstore: BaseDocumentStore | None) -> WholeDocument:
    original = docstore.get_document(key, raise_error=False) if docstore is not None else None
    if original is not None:
        return WholeDocument(key, _content(original), True, hits, original.metadata)
    first = hits[0].node
    if len(hits) == 1 and first.source_node is None:
        return WholeDocument(key, _content(first), True, hits, first.metadata)
    known = docstore.get_ref_doc_info(key) if docstore is not None else None
    nodes = docstore.get_nodes(known.node_ids) if docstore is not None and known else [hit.node for hit in hits]
    return WholeDocument(key, joined(nodes), False, hits, first.metadata)


def joined(nodes: Sequence[BaseNode]) -> str:
    """The nodes' text in the document's order; what a node repeats of the one before is left out where offsets tell.

    Offsets are found by LlamaIndex with a text search and may be wrong, so they are believed only where the text of
    both nodes agrees on the overlap.
    """
    text, end = "", 0
    for node in _in_order(nodes):
        content, start = _content(node), getattr(node, "start_char_idx", None) or 0
        overlap = end - start
        if text and 0 < overlap <= len(content) and text.endswith(content[:overlap]):
            text += content[overlap:]
        else:
            text += ("\n" if text else "") + content
        end = max(end, start + len(content))
    return text


def _in_order(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Each node once, by its offset in the document where all have one."""
    once = list({node.node_id: node for node in nodes}.values())
    starts = {node.node_id: getattr(node, "start_char_idx", None) for node in once}
    if any(start is None for start in starts.values()):
        return once
    return sorted(once, key=lambda node: starts[node.node_id])


def _content(node: BaseNode) -> str:
    return node.get_content(MetadataMode.NONE)
