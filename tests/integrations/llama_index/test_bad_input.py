"""What users hand over by mistake: an error of ours that names it and the way out, before any work is done."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from llama_index.core import Settings, StorageContext, SummaryIndex
from llama_index.core.llms import ChatMessage, MockLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate, RichPromptTemplate
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    NodeRelationship,
    NodeWithScore,
    QueryBundle,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from pydantic import BaseModel

from focus_core.errors import ConfigError, ContextOverflowError, DocumentError, FocusError, FocusWarning
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer, WholeDocumentPostprocessor
from tests.integrations.llama_index.drivers import as_documents
from tests.integrations.spies import EngineCall, Spy

STORE = SimpleDocumentStore()
HIT = NodeWithScore(node=TextNode(text="text"), score=0.5)


def shape(value: object) -> str:
    """A name for a case, the same in every process: nodes have ids that are drawn anew."""
    return value if isinstance(value, str) else type(value).__name__


class Person(BaseModel):
    """Somebody."""

    name: str


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    return Spy(monkeypatch).calls


def as_index(*texts: str) -> SummaryIndex:
    index = SummaryIndex([])
    index.docstore.add_documents(as_documents(*texts))
    return index


# --- documents of a call ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("documents", "message"),
    [
        (5, "documents is an int. Give a LlamaIndex Document or node, a string"),
        (QueryBundle("text"), "documents is a QueryBundle. Give a LlamaIndex Document"),
        (ChatMessage(content="text"), "documents is a ChatMessage. Give a LlamaIndex Document"),
        (Path("a.txt"), "documents is a .*Path, .*Read it with read_file"),
        ([Path("a.txt")], "Document 1 of 1 is a .*Path. Read it with read_file"),
        (["text", b"text"], "Document 2 of 2 is a bytes. Decode it"),
        ([{"text": "text"}], "Document 1 of 1 is a dict. Hand over its texts"),
        ([None], "Document 1 of 1 is None. Give a LlamaIndex Document"),
        ([["text"]], "Document 1 of 1 is a list. Give a LlamaIndex Document"),
        (ImageDocument(image="aGk=", id_="photo"), "ImageDocument 'photo' holds no text"),
        ([TextNode(text=" ", id_="blank")], "TextNode 'blank' holds no text"),
    ],
    ids=shape,
)
async def test_what_is_no_document_is_refused(llm: FocusLLM, documents: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        llm.complete("Who?", documents=documents)
    with pytest.raises(DocumentError, match=message):
        await llm.achat([ChatMessage(content="Who?")], documents=documents)
    with pytest.raises(DocumentError, match=message):
        FocusLLM(documents=documents)


@pytest.mark.parametrize(
    "node",
    [
        ImageNode(text="A heron.", image_url="a.png", id_="photo"),
        ImageDocument(text="A heron.", image="aGk=", id_="photo"),
    ],
    ids=lambda node: type(node).__name__,
)
def test_a_picture_beside_the_text_is_warned_about(llm: FocusLLM, node: BaseNode) -> None:
    """The model would invent what is on it."""
    with pytest.warns(FocusWarning, match="Only the text is read .*: photo"):
        llm.complete("Who?", documents=[node])
    with pytest.warns(FocusWarning, match="Only the text is read .*: photo"):
        FocusSynthesizer(llm).synthesize("Who?", [NodeWithScore(node=node)])


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "messages is None. Give a list"),
        (5, "messages is an int. Give a list"),
        ("Who?", r"messages is a str\..*text alone goes to complete\(\)"),
        (ChatMessage(content="Who?"), "messages is a ChatMessage. Give a list"),
        ({"role": "user"}, "messages is a dict. Give a list"),
        ([None], "messages holds None. Give a list"),
        (["Who?"], "messages holds a str. Give a list"),
        ([], "no messages to answer"),
    ],
    ids=shape,
)
async def test_what_are_no_messages_is_refused(llm: FocusLLM, messages: Any, message: str) -> None:
    """In all four ways; LlamaIndex's callbacks would raise pydantic's errors about events."""
    with pytest.raises(ConfigError, match=message):
        llm.chat(messages)
    with pytest.raises(ConfigError, match=message):
        llm.stream_chat(messages)
    with pytest.raises(ConfigError, match=message):
        await llm.achat(messages)
    with pytest.raises(ConfigError, match=message):
        await llm.astream_chat(messages)


@pytest.mark.parametrize("prompt", [None, 5, b"Who?", ["Who?"]])
def test_a_prompt_that_is_no_text_is_refused(llm: FocusLLM, prompt: Any) -> None:
    with pytest.raises(ConfigError, match=r"prompt is .* Give a string"):
        llm.complete(prompt)


@pytest.mark.parametrize("query", [None, 5, b"Who?", ["Who?"]])
async def test_a_query_that_is_no_text_is_refused(llm: FocusLLM, query: Any) -> None:
    with pytest.raises(ConfigError, match=r"query is .* Give a string, or a QueryBundle"):
        FocusSynthesizer(llm).synthesize(query, [HIT])
    with pytest.raises(ConfigError, match=r"query is .* Give a string, or a QueryBundle"):
        await FocusSynthesizer(llm).asynthesize(query, [])


# --- nodes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (None, "nodes is None, not a list. Give the nodes that a retriever returns"),
        (5, "nodes is an int, not a list"),
        ("text", "nodes is a str, not a list"),
        (Document(text="text"), "nodes is a Document, not a list"),
        (HIT, "nodes is a NodeWithScore, not a list"),
        ({"a": HIT}, "nodes is a dict, not a list"),
        ([None], "Number 1 of 1 nodes is None"),
        ([HIT, "text"], r"Number 2 of 2 nodes is a str.*documents: Document\(text=…\)"),
    ],
    ids=shape,
)
async def test_what_are_no_nodes_is_refused(llm: FocusLLM, nodes: Any, message: str) -> None:
    synthesizer = FocusSynthesizer(llm)
    with pytest.raises(DocumentError, match=message):
        synthesizer.synthesize("Who?", nodes)
    with pytest.raises(DocumentError, match=message):
        await synthesizer.asynthesize("Who?", nodes)
    with pytest.raises(DocumentError, match=message):
        WholeDocumentPostprocessor(docstore=SimpleDocumentStore()).postprocess_nodes(nodes)


def test_documents_in_the_place_of_nodes_are_read(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """They are nodes without a score."""
    one, two = as_documents("one", "two")
    response = FocusSynthesizer(llm).synthesize("Who?", [one, NodeWithScore(node=two)])  # type: ignore[list-item]
    assert calls[0].documents == ["one", "two"]
    assert [hit.node.node_id for hit in response.source_nodes] == ["doc-0", "doc-1"]


def test_a_node_that_the_docstore_has_lost_is_named() -> None:
    """Its text would be missing from the document, and LlamaIndex's own error names no way out."""
    store = SimpleDocumentStore()
    nodes = [TextNode(text=text, id_=text) for text in ("one", "two")]
    for node in nodes:
        node.relationships[NodeRelationship.SOURCE] = Document(text="one two", id_="doc").as_related_node_info()
    store.add_documents(nodes)
    store._kvstore.delete("two", collection=store._node_collection)
    processor = WholeDocumentPostprocessor(docstore=store)
    with pytest.raises(DocumentError, match=r"lists node 'two' of document 'doc'.*docstore\.add_documents"):
        processor.postprocess_nodes([NodeWithScore(node=nodes[0])])
    (whole,) = processor.postprocess_nodes([NodeWithScore(node=node) for node in nodes])  # a vector store has its text
    assert whole.node.get_content() == "one two"


# --- the synthesizer --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"docstore": "store"}, "docstore is a str. Give a docstore, an index or a storage context"),
        ({"docstore": as_documents("text")}, r"docstore is a list.*add_documents\(documents\)"),
        ({"output_cls": Person(name="Ada")}, "output_cls is a Person itself. Give its class: output_cls=Person"),
        ({"output_cls": dict}, "output_cls=<class 'dict'> is no class of pydantic"),
        ({"output_cls": "Person"}, "output_cls='Person' is no class of pydantic"),
        ({"text_qa_template": 5}, "text_qa_template is an int. Give a PromptTemplate"),
        ({"text_qa_template": "Be brief."}, r"text_qa_template does not hold \{query_str\}"),
        ({"document_template": PromptTemplate("{title}")}, r"document_template does not hold \{text\}"),
        ({"response_mode": "compact"}, "takes no 'response_mode'. There is one mode"),
        ({"refine_template": PromptTemplate("{text}")}, "takes no 'refine_template'. It asks once"),
        ({"use_async": True}, "takes no 'use_async'. There is one call"),
        ({"streamin": True}, "takes no 'streamin'. Did you mean 'streaming'"),
        ({"streaming": "yes"}, "streaming='yes': must be of the type bool"),
        ({"empty_response": 3}, "empty_response=3: must be of the type"),
        ({"callback_manager": 3}, "callback_manager=3: must be of the type"),
    ],
    ids=shape,
)
def test_what_a_synthesizer_cannot_use_is_refused_at_construction(
    llm: FocusLLM, given: dict[str, Any], message: str
) -> None:
    """The first query may come hours later."""
    with pytest.raises(ConfigError, match=message):
        FocusSynthesizer(llm, **given)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("gpt", r"llm='gpt' is a name. Give a model: llm=FocusLLM\(model='gpt'\)"),
        (FocusLLM, r"llm is the class FocusLLM. Give a model: llm=FocusLLM\(\)"),
        (5, "llm is an int, not a model of LlamaIndex"),
    ],
    ids=shape,
)
def test_what_is_no_model_is_refused_at_construction(model: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FocusSynthesizer(model)
    with pytest.raises(ConfigError, match=r"llm is .* does not count tokens"):
        WholeDocumentPostprocessor(docstore=SimpleDocumentStore(), max_document_tokens=9, llm=model)


@pytest.mark.parametrize("kind", ["docstore", "index", "storage context"])
def test_the_docstore_of_an_index_is_taken(llm: FocusLLM, calls: list[EngineCall], kind: str) -> None:
    index = as_index("the whole text")
    given = {"docstore": index.docstore, "index": index, "storage context": index.storage_context}[kind]
    node = TextNode(text="whole")
    node.relationships[NodeRelationship.SOURCE] = Document(text="?", id_="doc-0").as_related_node_info()
    hits = [NodeWithScore(node=node)]
    FocusSynthesizer(llm, docstore=given).synthesize("Who?", hits)
    assert calls[0].documents == ["the whole text"]
    (made,) = WholeDocumentPostprocessor(docstore=given).postprocess_nodes(hits)
    assert made.node.get_content() == "the whole text"


@pytest.mark.parametrize(
    "kind", [str, PromptTemplate, lambda text: ChatPromptTemplate.from_messages([("user", text)])], ids=shape
)
def test_a_template_may_be_its_text(llm: FocusLLM, calls: list[EngineCall], kind: Any) -> None:
    synthesizer = FocusSynthesizer(llm, text_qa_template=kind("Briefly: {query_str}"))
    synthesizer.synthesize("Who?", [HIT])
    synthesizer.update_prompts({"text_qa_template": "Now: {query_str}", "document_template": "<{text}>"})
    synthesizer.synthesize("Who?", [HIT])
    assert [(call.question, call.documents) for call in calls] == [
        ("Briefly: Who?", ["text"]),
        ("Now: Who?", ["<text>"]),
    ]


def test_a_template_that_drops_the_question_is_refused_later_too(llm: FocusLLM) -> None:
    synthesizer = FocusSynthesizer(llm)
    with pytest.raises(ConfigError, match=r"text_qa_template does not hold \{query_str\}"):
        synthesizer.update_prompts({"text_qa_template": PromptTemplate("Be brief.")})


def test_mapped_templates_are_understood(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """LlamaIndex lets a template call its variables otherwise, and compute them."""
    mapped = PromptTemplate("Q: {question}", template_var_mappings={"query_str": "question"})
    loud = PromptTemplate("{loud}", function_mappings={"loud": lambda **given: given["text"].upper()})
    FocusSynthesizer(llm, text_qa_template=mapped, document_template=loud).synthesize("Who?", [HIT])
    assert (calls[0].question, calls[0].documents) == ("Q: Who?", ["TEXT"])


NAMES = "self llm text completion_to_prompt messages_to_prompt template kwargs args".split()


@pytest.mark.parametrize("name", NAMES)
def test_metadata_may_have_any_name(llm: FocusLLM, calls: list[EngineCall], name: str) -> None:
    """Files name their metadata as they like; these names are arguments inside LlamaIndex."""
    node = NodeWithScore(node=TextNode(text="whole", metadata=dict.fromkeys([*NAMES, "string_to_format"], "meta")))
    for template in (PromptTemplate(f"{{{name}}} {{text}}"), RichPromptTemplate("{{llm}} {{text}}")):
        FocusSynthesizer(llm, document_template=template).synthesize("Who?", [node])
    assert [call.documents for call in calls] == [[f"{'whole' if name == 'text' else 'meta'} whole"], ["meta whole"]]


# --- the postprocessor ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "needs docstore=…"),
        ({"docstore": None}, "docstore is None"),
        ({"docstore": []}, "docstore is a list. Give a docstore, an index or a storage context"),
        (
            {"docstore": SimpleDocumentStore(), "max_document_tokens": 0},
            "max_document_tokens=0: Input should be greater",
        ),
        (
            {"docstore": SimpleDocumentStore(), "on_overflow": "cut"},
            "on_overflow='cut': Input should be 'raise' or 'drop'",
        ),
        ({"docstore": SimpleDocumentStore(), "max_tokns": 3}, "takes no setting 'max_tokns'"),
    ],
    ids=shape,
)
def test_what_a_postprocessor_cannot_use_is_refused_at_construction(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WholeDocumentPostprocessor(**given)


def test_one_document_that_is_too_long_gets_other_advice(llm: FocusLLM) -> None:
    """Dropping is set already, and dropping the only one would leave nothing."""
    processor = WholeDocumentPostprocessor(
        docstore=SimpleDocumentStore(), llm=llm, max_document_tokens=3, on_overflow="drop"
    )
    with pytest.raises(ContextOverflowError) as caught:
        processor.postprocess_nodes([NodeWithScore(node=TextNode(text="long text", id_="long"))])
    assert "the first document, long, is too long by itself" in str(caught.value)
    assert "on_overflow" not in str(caught.value)


def test_no_error_here_is_one_that_llama_index_swallows() -> None:
    assert not issubclass(FocusError, ValueError | TypeError)


def test_another_model_is_checked_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Settings, "_llm", None)
    with pytest.warns(UserWarning, match="MockLLM cannot take whole documents"):
        foreign = FocusSynthesizer(MockLLM(), docstore=StorageContext.from_defaults())
    with pytest.raises(DocumentError, match="nodes is None"):
        foreign.synthesize("Who?", None)  # type: ignore[arg-type]
