"""Sources by number, as in LlamaIndex's `CitationQueryEngine`: `[1]` in the answer, "Source 1:" in a source node."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llama_index.core.schema import MetadataMode, NodeRelationship, NodeWithScore, TextNode


def numbered(
    answer: str, sources: Sequence[dict[str, Any]], hits: Sequence[NodeWithScore]
) -> tuple[str, list[NodeWithScore]]:
    """The answer with the numbers of its sources at the end, and a source node for each of them.

    Args:
        sources: of the answer, as in the response's metadata
        hits: the nodes that came in; a source has the metadata of the first one that holds it
    """
    if not sources:
        return answer, list(hits)
    numbers = "".join(f"[{number}]" for number in range(1, len(sources) + 1))
    nodes = [_node(number, source, hits) for number, source in enumerate(sources, 1)]
    return f"{answer.rstrip()} {numbers}", nodes


def _node(number: int, source: dict[str, Any], hits: Sequence[NodeWithScore]) -> NodeWithScore:
    node = TextNode(text=f"Source {number}:\n{source['excerpt']}\n")
    holding = (hit.node for hit in hits if source["excerpt"] in hit.node.get_content(MetadataMode.NONE))
    found = next(holding, None)
    if found is not None:
        node.metadata = dict(found.metadata)
        origin = found.source_node or found.as_related_node_info()
        node.relationships[NodeRelationship.SOURCE] = origin
    return NodeWithScore(node=node, score=source["score"])
