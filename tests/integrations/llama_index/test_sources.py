"""Sources of an answer: source nodes with the scores of the passages in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from llama_index.core.schema import NodeRelationship, NodeWithScore, RelatedNodeInfo, TextNode
from pydantic import BaseModel

from focus_core import ConfigError
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from focus_integrations.llama_index.numbered import numbered
from focus_integrations.llama_index.passages import ShownDocument, ShownDocuments
from focus_integrations.llama_index.whole import WholeDocument
from focus_integrations.templates import through_template
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
    assert numbered("Nobody. ", [], ShownDocuments([]), NODES) == ("Nobody. ", NODES)


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


def _shown(key: str, *hits: NodeWithScore, template: str = "{}", exact: bool = True) -> ShownDocument:
    text, own = through_template(template.format, TEXT)
    return ShownDocument(WholeDocument(key, TEXT, exact, list(hits), {}), text, own)


def _other(key: str) -> ShownDocument:
    return ShownDocument(WholeDocument(key, f"Of {key}.", True, [], {}), f"Of {key}.", (0, len(f"Of {key}.")))


def test_a_document_knows_its_characters_behind_its_template() -> None:
    shown = _shown("a", template="Title: {} (end)")
    assert shown.own is not None
    assert shown.for_engine.own_characters(0, 1000) == (7, 7 + len(TEXT))
    assert shown.for_engine.own_characters(0, 7) is None
    changed = ShownDocument(shown.whole, *through_template(str.upper, TEXT))
    assert changed.for_engine.own_characters(0, 1000) is None


def test_documents_are_told_apart_by_what_they_hold() -> None:
    """Equal ones are read once, wherever they come from, so that places in the list say nothing."""
    hit = _hit(TEXT, 0, "b")
    shown = ShownDocuments([_other("a"), _shown("b", hit), _other("a2"), _shown("b2")], beside=[_other("c").for_engine])
    found = shown.placed([_source(5, 0), _source(5, 1), _source(5, 2), _source(5, 3)])
    assert [one.get("ref_doc_id") for one in found] == [None, "a", "b", "a2"]
    assert [one["score"] for one in shown.held_by(hit, found)] == [2.0]
    beside = ShownDocuments([_other("a"), _shown("b", hit)], beside=[_shown("x").for_engine])
    assert [one["ref_doc_id"] for one in beside.placed([_source(5, 0), _source(5, 1)])] == ["b", "a"]


@pytest.mark.parametrize("start", [23, None, 5], ids=["right", "unknown", "wrong"])
def test_nodes_are_scored_by_characters(start: int | None) -> None:
    """A node of another document with the same words gets nothing; one with half of the passage gets its score."""
    holding, half, without = _hit(EXCERPT_HERE, start), _hit("keeper again. The", None), _hit("More of it.", None)
    elsewhere = _hit(EXCERPT_HERE, 23, "b")
    shown = ShownDocuments([_shown("a", holding, half, without), replace(_other("b"), whole=_whole("b", elsewhere))])
    sources = shown.placed([_source(TEXT.index(EXCERPT_HERE))])
    found = shown.by_evidence([without, elsewhere, half, holding], sources)
    assert [(hit.node.node_id, hit.score) for hit in found] == [
        (half.node.node_id, 2.0),
        (holding.node.node_id, 2.0),
        (without.node.node_id, 0.0),
        (elsewhere.node.node_id, 0.0),
    ]


def _whole(key: str, *hits: NodeWithScore) -> WholeDocument:
    return WholeDocument(key, f"Of {key}. {EXCERPT_HERE}", True, list(hits), {})


def test_a_node_that_stands_twice_is_scored_by_its_text() -> None:
    twice = _hit("The gates were closed.", None)
    shown = ShownDocuments([_shown("a", twice)])
    sources = shown.placed([_source(0, excerpt="The gates were closed.")])
    assert [hit.score for hit in shown.by_evidence([twice], sources)] == [2.0]


@pytest.mark.parametrize(("said", "start"), [(880, 903), (None, None)])
def test_of_some_nodes_of_a_document_the_characters_are_those_that_the_nodes_say(
    said: int | None, start: int | None
) -> None:
    """What lies between the nodes is missing in the text that the model reads, but not in the document."""
    hit = _hit(TEXT, said)
    shown = ShownDocuments([_shown("a", hit, exact=False)])
    (source,) = shown.placed([_source(TEXT.index(EXCERPT_HERE))])
    assert source["start"] == start
    assert [one.score for one in shown.by_evidence([hit], [source])] == [2.0]
