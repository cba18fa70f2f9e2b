"""Sources of an answer: source nodes with the scores of the passages in them."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from pydantic import BaseModel

from focus_core import ConfigError
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from focus_integrations.llama_index.numbered import numbered
from focus_integrations.llama_index.passages import ShownDocument, by_evidence, placed_sources
from focus_integrations.llama_index.whole import WholeDocument
from tests.integrations.made_sources import EXCERPT, METADATA, make_up

NODES = [
    NodeWithScore(node=TextNode(id_="a", text="The gates were closed at noon. " * 3), score=0.9),
    NodeWithScore(node=TextNode(id_="b", text=f"At noon {EXCERPT} More."), score=0.1),
]
PLACED = [{**source, "ref_doc_id": "b"} for source in METADATA["sources"]]


class Person(BaseModel):
    """What an answer may have to be."""

    name: str


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)


def test_source_nodes_are_sorted_by_what_the_answer_owes_them(tiny_settings: dict[str, Any]) -> None:
    response = FocusSynthesizer(FocusLLM(**tiny_settings, sources=True)).synthesize("Who?", NODES)
    assert [(hit.node.node_id, hit.score) for hit in response.source_nodes] == [("b", 7.5), ("a", 0.0)]
    assert response.metadata is not None
    assert {name: response.metadata["focus"][name] for name in METADATA} == {**METADATA, "sources": PLACED}


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
    assert response.metadata["focus"]["sources"] == PLACED


def test_the_model_tells_sources_in_raw(tiny_settings: dict[str, Any]) -> None:
    raw = FocusLLM(**tiny_settings).complete("Who?", documents=["At noon."], sources=True).raw
    assert {name: raw[name] for name in METADATA} == METADATA


# --- by number --------------------------------------------------------------------------------------------------------


def test_numbers_in_the_answer_are_those_of_the_source_nodes(tiny_settings: dict[str, Any]) -> None:
    llm = FocusLLM(**tiny_settings, sources=True)
    plain = FocusSynthesizer(llm).synthesize("Who?", NODES)
    response = FocusSynthesizer(llm, numbered_sources=True).synthesize("Who?", NODES)
    sources = PLACED
    numbers = "".join(f"[{number}]" for number in range(1, len(sources) + 1))
    assert str(response) == f"{str(plain).rstrip()} {numbers}"
    assert [hit.node.get_content() for hit in response.source_nodes] == [
        f"Source {number}:\n{source['excerpt']}\n" for number, source in enumerate(sources, 1)
    ]
    assert [hit.score for hit in response.source_nodes] == [source["score"] for source in sources]
    assert [(hit.node.start_char_idx, hit.node.end_char_idx) for hit in response.source_nodes] == [(8, 36)]
    assert response.metadata["focus"]["sources"] == sources


def test_a_numbered_source_has_the_metadata_of_its_node(tiny_settings: dict[str, Any]) -> None:
    holding = next(hit.node for hit in NODES if EXCERPT in hit.node.get_content())
    holding.metadata["page"] = 7
    response = FocusSynthesizer(FocusLLM(**tiny_settings, sources=True), numbered_sources=True).synthesize(
        "Who?", NODES
    )
    cited = next(hit.node for hit in response.source_nodes if EXCERPT in hit.node.get_content())
    assert cited.metadata["page"] == 7
    assert cited.source_node is not None


def test_an_answer_without_sources_has_no_numbers() -> None:
    assert numbered("Nobody. ", [], [], NODES) == ("Nobody. ", NODES)


@pytest.mark.parametrize("given", [{"streaming": True}, {"output_cls": Person}])
def test_numbers_need_sources_and_a_whole_answer(tiny_settings: dict[str, Any], given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="needs a model that finds sources"):
        FocusSynthesizer(FocusLLM(**tiny_settings), numbered_sources=True)
    with pytest.raises(ConfigError, match=f"numbered_sources=True with {next(iter(given))}"):
        FocusSynthesizer(FocusLLM(**tiny_settings, sources=True), numbered_sources=True, **given)


# --- characters -------------------------------------------------------------------------------------------------------

TEXT = "The gates were closed. Nobody saw the keeper again. The gates were closed. More of it."
EXCERPT_HERE = "Nobody saw the keeper again."


def _hit(text: str, start: int | None, document: str = "a") -> NodeWithScore:
    node = TextNode(text=text, start_char_idx=start)
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=document)
    return NodeWithScore(node=node)


def _source(start: int | None, document: int = 0, excerpt: str = EXCERPT_HERE) -> dict[str, Any]:
    end = None if start is None else start + len(excerpt)
    return {"document": document, "start": start, "end": end, "excerpt": excerpt, "score": 2.0}


def _shown(key: str, *hits: NodeWithScore, template: str = "{}") -> ShownDocument:
    return ShownDocument(WholeDocument(key, TEXT, True, list(hits), {}), template.format(TEXT))


def test_characters_are_those_of_the_document_without_its_template() -> None:
    shown = [_shown("a"), _shown("b", template="Title: {} (end)")]
    start = TEXT.index(EXCERPT_HERE)
    found = placed_sources(
        [_source(start, 1), _source(start + len("Title: "), 2), _source(0, 2, "Title: The gates"), _source(None, 1)],
        shown,
        asked=3,
    )
    assert [(one["ref_doc_id"], one["start"], one["end"]) for one in found] == [
        ("a", start, start + len(EXCERPT_HERE)),
        ("b", start, start + len(EXCERPT_HERE)),
        ("b", None, None),
        ("a", None, None),
    ]


def test_sources_in_documents_of_the_model_stay_as_they_are() -> None:
    assert placed_sources([_source(5)], [_shown("a")], asked=2) == [_source(5)]


@pytest.mark.parametrize("start", [23, None, 5], ids=["right", "unknown", "wrong"])
def test_nodes_are_scored_by_characters(start: int | None) -> None:
    """A node of another document with the same words gets nothing; one with half of the passage gets its score."""
    holding, half, without = _hit(EXCERPT_HERE, start), _hit("keeper again. The", None), _hit("More of it.", None)
    elsewhere = _hit(EXCERPT_HERE, 23, "b")
    shown = [_shown("a", holding, half, without), _shown("b", elsewhere)]
    sources = placed_sources([_source(TEXT.index(EXCERPT_HERE))], shown, asked=2)
    found = by_evidence([without, elsewhere, half, holding], shown, sources)
    assert [(hit.node.node_id, hit.score) for hit in found] == [
        (half.node.node_id, 2.0),
        (holding.node.node_id, 2.0),
        (without.node.node_id, 0.0),
        (elsewhere.node.node_id, 0.0),
    ]


def test_a_node_that_stands_twice_is_scored_by_its_text() -> None:
    twice = _hit("The gates were closed.", None)
    shown = [_shown("a", twice)]
    sources = placed_sources([_source(0, excerpt="The gates were closed.")], shown, asked=1)
    assert [hit.score for hit in by_evidence([twice], shown, sources)] == [2.0]
