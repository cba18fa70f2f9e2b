"""Documents put together again from their nodes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from llama_index.core.schema import BaseNode, Document, MetadataMode, NodeWithScore, RelatedNodeInfo, TextNode
from llama_index.core.storage.docstore.types import BaseDocumentStore

from focus_core.errors import DocumentError

_BETWEEN = "\n"  # between two nodes whose distance is unknown
_GAPS = ((" ", " "), (" ", "\n"), ("\n", "\n"))  # whitespace that splitters remove: a single character, each of several
_ENDS = ("", "\n", " ")  # and at the end of a text
_SEPARATORS = (" ", "", "\n\n", "\n")  # between nodes that tell no offset, or a wrong one


@dataclass(frozen=True)
class WholeDocument:
    """A document that some hits belong to.

    Attributes:
        key: the document's id, or that of a node which belongs to none
        text: the document as far as it is known
        exact: whether this is certainly the document's text, all of it and each part once
        hits: the nodes that were found, in the order in which they came
        metadata: the original's where it is known, else the first hit's
        original: the document itself, where it is kept
    """

    key: str
    text: str
    exact: bool
    hits: list[NodeWithScore]
    metadata: dict[str, Any]
    original: BaseNode | None = None


def whole_documents(hits: Sequence[NodeWithScore], docstore: BaseDocumentStore | None) -> list[WholeDocument]:
    """The documents of `hits`, each once, in the order in which they first appear.

    Text is the original's where `docstore` keeps it. Else all nodes of the document that `docstore` knows are put
    together, else the hits alone; LlamaIndex's hash of the original then says whether that is its text, and there is a
    warning where it is not: missing and repeated text cannot be detected.

    Raises:
        DocumentError: a node that `docstore` lists for a document is not in it
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
            f"{' …' if len(guessed) > 5 else ''}. Text may be missing or repeated. "
            "Keep originals: docstore.add_documents(documents).",
            stacklevel=3,
        )
    return documents


def _whole(key: str, hits: list[NodeWithScore], docstore: BaseDocumentStore | None) -> WholeDocument:
    first = hits[0].node
    source = first.source_node
    original = docstore.get_document(key, raise_error=False) if docstore is not None else None
    if source is None:
        original = original or first  # a node of its own is its own document
    if source is None or original is not None:
        assert original is not None
        return WholeDocument(key, _content(original), True, hits, dict(original.metadata), original)
    nodes = _known_nodes(key, hits, docstore)
    guess = joined(nodes)
    right = next((text for text in chain([guess], _others(nodes)) if _is_text_of(source, text)), None)
    if right is None:
        return WholeDocument(key, guess, False, hits, dict(first.metadata))
    return WholeDocument(key, right, True, hits, dict(source.metadata))


def _known_nodes(key: str, hits: list[NodeWithScore], docstore: BaseDocumentStore | None) -> list[BaseNode]:
    """All nodes of the document that `docstore` lists, else those of the hits."""
    found = {hit.node.node_id: hit.node for hit in hits}
    known = docstore.get_ref_doc_info(key) if docstore is not None else None
    if docstore is None or known is None:
        return list(found.values())
    nodes: list[BaseNode] = []
    for node_id in known.node_ids:
        node = docstore.get_document(node_id, raise_error=False) or found.get(node_id)
        if node is None:
            raise DocumentError(
                f"The docstore lists node {node_id!r} of document {key!r} and does not hold it: its text would be "
                "missing. Keep the original: docstore.add_documents(documents)."
            )
        nodes.append(node)
    return nodes


def _is_text_of(source: RelatedNodeInfo, text: str) -> bool:
    """Whether the hash that every node keeps of its document is that of `text`."""
    rebuilt = (Document(text=text, metadata=source.metadata), TextNode(text=text, metadata=source.metadata))
    return source.hash in [node.hash for node in rebuilt]


def _others(nodes: Sequence[BaseNode]) -> Iterator[str]:
    """Further ways to put nodes together, which only the hash can prove."""
    texts = [joined(nodes, gap) for gap in _GAPS]
    for listed in (_in_order(nodes), _by_links(nodes)):
        texts += [separator.join(map(_content, listed)) for separator in _SEPARATORS]
    for text in dict.fromkeys(texts):
        yield from (text + end for end in _ENDS)


def joined(nodes: Sequence[BaseNode], gap: tuple[str, str] | None = None) -> str:
    """The nodes' text in the document's order; an overlap with the node before is left out where offsets show it.

    Offsets are found by LlamaIndex with a text search and may be wrong, so they are believed only where the text of
    both nodes agrees on the overlap.

    Args:
        gap: stands for a character that offsets say was taken away between two nodes, and for each of several; by
            default a line end stands for all of them
    """
    text, end = "", 0
    for node in _in_order(nodes):
        content, start = _content(node), getattr(node, "start_char_idx", None)
        if not text:
            text = content
        elif start is None or start > end:
            text += (_BETWEEN if start is None or gap is None else gap[start > end + 1] * (start - end)) + content
        elif text.endswith(content[: end - start]):
            text += content[end - start :]
        else:
            text += _BETWEEN + content
        end = max(end, (start or 0) + len(content))
    return text


def _in_order(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Each node once, by its offset in the document where all have one, else by their links."""
    starts = {node.node_id: getattr(node, "start_char_idx", None) for node in nodes}
    if any(start is None for start in starts.values()):
        return _by_links(nodes)
    once = {node.node_id: node for node in nodes}
    return sorted(once.values(), key=lambda node: starts[node.node_id] or 0)


def _by_links(nodes: Sequence[BaseNode]) -> list[BaseNode]:
    """Each node once, followed by the next one that it names; in the given order where they name none."""
    left = {node.node_id: node for node in nodes}
    firsts = [node for node in left.values() if node.prev_node is None or node.prev_node.node_id not in left]
    listed: list[BaseNode] = []
    for node in [*firsts, *left.values()]:  # the second for links that go round in a circle
        following: BaseNode | None = left.pop(node.node_id, None)
        while following is not None:
            listed.append(following)
            after = following.next_node
            following = left.pop(after.node_id, None) if after is not None else None
    return listed


def _content(node: BaseNode) -> str:
    return node.get_content(MetadataMode.NONE)
