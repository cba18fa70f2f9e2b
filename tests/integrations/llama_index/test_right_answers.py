"""End to end on the embedded model: real indices, a long document and many short ones, and answers that are right."""

from __future__ import annotations

import random
from typing import Any

import pytest
from llama_index.core import SummaryIndex, VectorStoreIndex
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.schema import Document, NodeRelationship, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer, WholeDocumentPostprocessor
from tests import embedded
from tests.embedded import needs_embedded, question_about
from tests.integrations.llama_index.drivers import TinyEmbedding
from tests.integrations.spies import EngineCall, Spy

pytestmark = [needs_embedded, pytest.mark.timeout(900)]

SENTENCES = 70  # of filler in each of the twelve documents: three of them are more than the window

FACTS = [
    *embedded.FACTS[:3],
    Fact("serial number", "the silver anchor", "304187"),
    Fact("room number", "Oscar Pemberton", "2217"),
    Fact("postal code", "Port Elwick", "61840"),
    Fact("invoice number", "the cobalt schooner", "77310"),
    Fact("favourite fruit", "Mabel Thorne", "cherry"),
    Fact("height", "the russet tower", "1846"),
    Fact("badge number", "Silas Marsh", "5093"),
    Fact("founding year", "Mount Quorn", "1723"),
    Fact("ticket number", "the velvet locomotive", "660254"),
]
ASKED = [0, 4, 9, 11]  # about these, so that answers sit in different documents


@pytest.fixture(scope="module")
def llm() -> FocusLLM:
    return FocusLLM(max_tokens=32)


@pytest.fixture(scope="module")
def long_document() -> Document:
    return Document(text=embedded.book(), id_="long")


@pytest.fixture(scope="module")
def twelve() -> list[Document]:
    rng = random.Random(12)
    texts = [hide([fact], filler_sentences(rng, SENTENCES), rng).text for fact in FACTS]
    return [Document(text=text, id_=f"doc-{number}") for number, text in enumerate(texts)]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    return Spy(monkeypatch).calls


def assert_right(facts: list[Fact], answers: list[str]) -> None:
    """All values, so that a failure shows how many are wrong."""
    wrong = {fact.value: answer for fact, answer in zip(facts, answers, strict=True) if fact.value not in answer}
    assert not wrong


async def in_four_ways(index: Any, questions: list[str], **options: Any) -> list[tuple[str, Any]]:
    """Each question in another way: at once, asynchronously, streamed, streamed asynchronously."""
    engines = [
        index.as_query_engine(response_synthesizer=FocusSynthesizer(options["llm"], **given), **options)
        for given in ({"docstore": index.docstore}, {"docstore": index.docstore, "streaming": True})
    ]
    whole = [engines[0].query(questions[0]), await engines[0].aquery(questions[1])]
    streamed, astreamed = engines[1].query(questions[2]), await engines[1].aquery(questions[3])
    texts = [str(response) for response in whole]
    texts.append("".join(streamed.response_gen))
    texts.append("".join([text async for text in astreamed.async_response_gen()]))
    return list(zip(texts, [*whole, streamed, astreamed], strict=True))


async def test_facts_in_a_long_document_are_found(
    llm: FocusLLM, long_document: Document, asked: list[EngineCall]
) -> None:
    """The index has cut it into overlapping passages; the model reads it whole, and reads it once."""
    index = SummaryIndex.from_documents([long_document])
    index.docstore.add_documents([long_document])
    facts = embedded.FACTS
    answers = await in_four_ways(index, [question_about(fact) for fact in facts], llm=llm)
    assert [call.documents for call in asked] == [[long_document.text]] * 4
    length = len(llm.tokenize(long_document.text))
    for number, (_, response) in enumerate(answers):
        usage = response.metadata["focus"]
        assert usage["document_tokens"] == length
        assert number == 0 or usage["cache_creation"] == 0
        assert len(response.source_nodes) > 9
        assert {hit.node.source_node.node_id for hit in response.source_nodes} == {"long"}
    assert_right(facts, [text for text, _ in answers])


@pytest.mark.long  # `test_facts_in_a_long_document_are_found` asks one document
async def test_facts_in_twelve_documents_are_found(
    llm: FocusLLM, twelve: list[Document], asked: list[EngineCall]
) -> None:
    """All twelve are read for every question, in their order."""
    index = SummaryIndex.from_documents(twelve)
    index.docstore.add_documents(twelve)
    facts = [FACTS[number] for number in ASKED]
    answers = await in_four_ways(index, [question_about(fact) for fact in facts], llm=llm)
    assert [call.documents for call in asked] == [[document.text for document in twelve]] * 4
    for _, response in answers:
        sources = list(dict.fromkeys(hit.node.source_node.node_id for hit in response.source_nodes))
        assert sources == [document.id_ for document in twelve]
    assert_right(facts, [text for text, _ in answers])


@pytest.mark.slow
async def test_a_vector_index_finds_the_document_and_the_model_reads_it_whole(
    llm: FocusLLM, twelve: list[Document], asked: list[EngineCall]
) -> None:
    """The sources are the passages that were found, the first of them from the document with the answer."""
    index = VectorStoreIndex.from_documents(
        twelve,
        transformations=[SentenceSplitter(chunk_size=96, chunk_overlap=24)],
        embed_model=TinyEmbedding(),
    )
    index.docstore.add_documents(twelve)
    facts = [FACTS[number] for number in ASKED]
    answers = await in_four_ways(index, [question_about(fact) for fact in facts], llm=llm, similarity_top_k=3)
    texts = {document.id_: document.text for document in twelve}
    for number, (_, response), call in zip(ASKED, answers, asked, strict=True):
        sources = list(dict.fromkeys(hit.node.source_node.node_id for hit in response.source_nodes))
        assert sources[0] == f"doc-{number}"
        assert call.documents == [texts[source] for source in sources]
        assert len(response.source_nodes) == 3
    assert_right(facts, [text for text, _ in answers])


def test_whole_documents_of_a_postprocessor_give_the_same_answer(llm: FocusLLM, twelve: list[Document]) -> None:
    """Then the sources are the documents themselves."""
    splitter = SentenceSplitter(chunk_size=96, chunk_overlap=24)
    index = VectorStoreIndex.from_documents(twelve, transformations=[splitter], embed_model=TinyEmbedding())
    index.docstore.add_documents(twelve)
    whole = WholeDocumentPostprocessor(
        docstore=index.docstore, llm=llm, max_document_tokens=llm.metadata.context_window
    )
    engine = index.as_query_engine(
        llm=llm, similarity_top_k=3, response_synthesizer=FocusSynthesizer(llm), node_postprocessors=[whole]
    )
    response = engine.query(question_about(FACTS[4]))
    assert response.source_nodes[0].node.node_id == "doc-4"
    assert response.source_nodes[0].node.get_content() == twelve[4].text
    assert_right([FACTS[4]], [str(response)])


@pytest.mark.parametrize(
    ("count", "separator"),
    [
        pytest.param(2000, " ", id="two_thousand", marks=pytest.mark.long),
        pytest.param(300, "\n", id="lines", marks=pytest.mark.slow),
    ],
)
def test_a_fact_in_very_many_tiny_nodes_is_found(
    llm: FocusLLM, asked: list[EngineCall], count: int, separator: str
) -> None:
    """A sentence each, without offsets: one document in a few chunks, not a chunk for each."""
    rng = random.Random(7)
    fact = embedded.FACTS[0]
    text = hide([fact], filler_sentences(rng, count), rng).text
    sentences = [f"{sentence.rstrip('.')}." for sentence in text.split(". ")]
    document = Document(text=separator.join(sentences), id_="long")
    nodes = [TextNode(text=sentence) for sentence in sentences]
    for node in nodes:
        node.relationships[NodeRelationship.SOURCE] = document.as_related_node_info()
    assert len(nodes) > count
    response = FocusSynthesizer(llm).synthesize(question_about(fact), [NodeWithScore(node=node) for node in nodes])
    assert asked[0].documents == [document.text]
    assert count / 100 < response.metadata["focus"]["chunks"] < count / 40  # type: ignore[index]
    assert_right([fact], [str(response)])


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["the original", "all nodes", "nothing"])
@pytest.mark.filterwarnings("ignore:Put together from nodes")
def test_a_source_has_the_characters_of_the_document_that_was_split(kept: str) -> None:
    """Read through a template, and found in nodes that overlap; where nothing is kept, in some of its nodes."""
    fact, rng = embedded.FACTS[1], random.Random(3)
    hidden = hide([fact], filler_sentences(rng, SENTENCES), rng)
    text, ((first, stop),) = hidden.text, hidden.spans
    documents = [Document(text=text, id_="asked"), Document(text="Nothing is said here. " * 20, id_="other")]
    nodes = SentenceSplitter(chunk_size=128, chunk_overlap=32).get_nodes_from_documents(documents)
    store = SimpleDocumentStore()
    store.add_documents({"the original": documents, "all nodes": nodes, "nothing": []}[kept])
    if kept == "nothing":
        holding = [node for node in nodes if text[first:stop] in node.get_content()]
        nodes = [nodes[-1], *holding, *holding[:1]]
    synthesizer = FocusSynthesizer(
        FocusLLM(max_tokens=24, sources=True, method="focus", chunk_size=256),
        docstore=store,
        document_template="A letter.\n\n{text}",
        numbered_sources=True,
    )
    response = synthesizer.synthesize(question_about(fact), [NodeWithScore(node=node) for node in nodes])
    (source,) = response.metadata["focus"]["sources"]
    assert source["ref_doc_id"] == "asked"
    assert text[source["start"] : source["end"]] == source["excerpt"] == text[first:stop]
    cited, *_ = response.source_nodes
    assert text[cited.node.start_char_idx : cited.node.end_char_idx] == source["excerpt"]
    assert cited.node.ref_doc_id == "asked"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "noise"),
    [
        ({"method": "focus", "pack": False}, ["a", "a"]),
        ({"method": "focus", "documents": ["fact"]}, ["a"]),
        ({"method": "select", "shortlist": 2, "pack": False, "plain_up_to": 0}, ["a", "b", "c", "d", "e"]),
    ],
    ids=["equal documents", "a document of the model", "a shortlist"],
)
def test_a_score_is_that_of_its_document(settings: dict[str, Any], noise: list[str]) -> None:
    """Equal documents are read once, and a shortlist drops some: the place in a list says nothing."""
    fact = "The home city of Clara Fenwick is Lisbon. Nothing more is known."
    texts = [*(f"The grass of {name} is green and the sky is blue." for name in noise), fact]
    nodes = [NodeWithScore(node=TextNode(text=text, id_=f"n{number}")) for number, text in enumerate(texts)]
    bound = {"documents": [fact]} if "documents" in settings else {}
    synthesizer = FocusSynthesizer(FocusLLM(sources=True, max_tokens=16, **{**settings, **bound}))
    response = synthesizer.synthesize("What is the home city of Clara Fenwick?", nodes)
    (source,) = response.metadata["focus"]["sources"]
    assert (source["ref_doc_id"], fact[source["start"] : source["end"]]) == (f"n{len(noise)}", source["excerpt"])
    scores = {hit.node.node_id: hit.score for hit in response.source_nodes}
    assert scores.pop(f"n{len(noise)}") > 5
    assert set(scores.values()) == {0.0}
