"""Small nodes share chunks of the model, and an answer's sources still say which node they are from."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from focus_integrations.llama_index import FocusLLM, FocusSynthesizer

NODES = [NodeWithScore(node=TextNode(id_=f"n{n}", text=f"Ticket {n}: {'ok' * (n % 3)}."), score=0.5) for n in range(9)]


@pytest.mark.parametrize("method", ["select", "experts"])
def test_sources_of_packed_nodes_name_their_nodes(tiny_settings: dict[str, Any], method: str) -> None:
    llm = FocusLLM(**tiny_settings, method=method, sources=True)
    question, texts = "Which ticket?", [hit.node.get_content() for hit in NODES]
    answer = llm.engine.generate(question, texts, method=method, sources=True, max_new_tokens=llm.max_tokens)
    assert 0 < answer.usage.chunks < len(NODES)
    assert answer.explanation is not None
    response = FocusSynthesizer(llm, text_qa_template="{query_str}").synthesize(question, NODES)
    assert str(response) == answer.text
    scores = dict.fromkeys((hit.node.node_id for hit in NODES), 0.0)
    for source in answer.explanation.sources:
        scores[f"n{source.document}"] += source.score
    assert {hit.node.node_id: hit.score for hit in response.source_nodes} == pytest.approx(scores)
    record = (response.metadata or {})["focus"]
    assert record["sources"]
    for source in record["sources"]:
        assert source["name"] == f"n{source['document']}"
        assert source["excerpt"] == texts[source["document"]]
    assert [one["name"] for one in record["documents"]] == list(scores)
