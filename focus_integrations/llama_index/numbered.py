"""Sources by number, as in LlamaIndex's `CitationQueryEngine`: `[1]` in the answer, "Source 1:" in a source node."""

from __future__ import annotations

from collections.abc import Sequence

from llama_index.core.schema import NodeRelationship, NodeWithScore, TextNode

from focus_integrations.llama_index.passages import ShownDocuments, SourceRecord


def numbered(
    answer: str, sources: Sequence[SourceRecord], shown: ShownDocuments, hits: Sequence[NodeWithScore]
) -> tuple[str, list[NodeWithScore]]:
    """The answer with the numbers of its sources at the end, and a source node for each of them.

    Args:
        sources: of the answer, as in the response's metadata
        shown: the documents that were asked; a source has the metadata of the first node that holds it
        hits: the nodes that came in; the source nodes of an answer without sources
    """
    if not sources:
        return answer, list(hits)
    numbers = "".join(f"[{number}]" for number in range(1, len(sources) + 1))
    nodes = [_node(number, source, shown) for number, source in enumerate(sources, 1)]
    return f"{answer.rstrip()} {numbers}", nodes


def _node(number: int, source: SourceRecord, shown: ShownDocuments) -> NodeWithScore:
    node = TextNode(
        text=f"Source {number}:\n{source['excerpt']}\n", start_char_idx=source["start"], end_char_idx=source["end"]
    )
    holding = (hit.node for one in shown.documents for hit in one.whole.hits if shown.held_by(hit, [source]))
    found = next(holding, None)
    if found is not None:
        node.metadata = dict(found.metadata)
        node.relationships[NodeRelationship.SOURCE] = found.source_node or found.as_related_node_info()
    return NodeWithScore(node=node, score=source["score"])
