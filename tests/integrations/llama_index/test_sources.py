"""Sources of an answer: source nodes with the scores of the passages in them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.schema import NodeWithScore, TextNode

from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.made_sources import EXCERPT, METADATA, make_up

NODES = [
    NodeWithScore(node=TextNode(id_="a", text="The gates were closed at noon. " * 3), score=0.9),
    NodeWithScore(node=TextNode(id_="b", text=f"At noon {EXCERPT} More."), score=0.1),
]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)


def test_source_nodes_are_sorted_by_what_the_answer_owes_them(tiny_settings: dict[str, Any]) -> None:
    response = FocusSynthesizer(FocusLLM(**tiny_settings, sources=True)).synthesize("Who?", NODES)
    assert [(hit.node.node_id, hit.score) for hit in response.source_nodes] == [("b", 7.5), ("a", 0.0)]
    assert response.metadata is not None
    assert {name: response.metadata["focus"][name] for name in METADATA} == METADATA


async def test_without_waiting(tiny_settings: dict[str, Any]) -> None:
    response = await FocusSynthesizer(FocusLLM(**tiny_settings, sources=True)).asynthesize("Who?", NODES)
    assert [hit.node.node_id for hit in response.source_nodes] == ["b", "a"]


def test_without_sources_nodes_are_as_they_came(tiny_settings: dict[str, Any]) -> None:
    response = FocusSynthesizer(FocusLLM(**tiny_settings)).synthesize("Who?", NODES)
    assert [(hit.node.node_id, hit.score) for hit in response.source_nodes] == [("a", 0.9), ("b", 0.1)]
    assert response.metadata is not None
    assert not METADATA.keys() & response.metadata["focus"].keys()


def test_a_stream_has_its_sources_once_it_has_ended(tiny_settings: dict[str, Any]) -> None:
    response: Any = FocusSynthesizer(FocusLLM(**tiny_settings, sources=True), streaming=True).synthesize("Who?", NODES)
    assert "sources" not in response.metadata["focus"]
    assert "".join(response.response_gen)
    assert response.metadata["focus"]["sources"] == METADATA["sources"]


def test_the_model_tells_sources_in_raw(tiny_settings: dict[str, Any]) -> None:
    raw = FocusLLM(**tiny_settings).complete("Who?", documents=["At noon."], sources=True).raw
    assert {name: raw[name] for name in METADATA} == METADATA
