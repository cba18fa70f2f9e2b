"""FocusSynthesizer: nodes become documents, one call answers, and the response says where it is from."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import llama_index.core
import pytest
from llama_index.core import Settings, SummaryIndex, VectorStoreIndex, get_response_synthesizer
from llama_index.core.base.response.schema import (
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import LLMRerank
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore
from pydantic import BaseModel

from focus_core import FocusEngine
from focus_core.errors import ConfigError, ContextOverflowError, DocumentError
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.conformance import TOKENS
from tests.integrations.llama_index.drivers import Found, TinyEmbedding, as_documents, counting, listening, nodes_of
from tests.integrations.spies import EngineCall, Script, Spy

QUESTION = "Who?"
STORIES = [
    " ".join(f"In year {year} of the {place} somebody saw the {thing}." for year in range(12))
    for place, thing in [("harbour", "comet"), ("valley", "heron"), ("island", "ferry")]
]
SPLITTER = SentenceSplitter(chunk_size=30, chunk_overlap=10, tokenizer=str.split)


class Person(BaseModel):
    """Somebody."""

    name: str


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process without an account anywhere."""
    monkeypatch.setattr(Settings, "_llm", None)
    monkeypatch.setattr(Settings, "_embed_model", None)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Every call to the engine, which works as usual."""
    return Spy(monkeypatch).calls


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> list[EngineCall]:
    """From now on the engine gives this answer."""
    return Script(monkeypatch, text).calls


def passages(*texts: str) -> list[NodeWithScore]:
    """Overlapping pieces of documents with the ids doc-0, doc-1, …"""
    nodes = SPLITTER.get_nodes_from_documents(as_documents(*texts))
    return [NodeWithScore(node=node, score=1 / number) for number, node in enumerate(nodes, 1)]


def keeping(*texts: str) -> SimpleDocumentStore:
    store = SimpleDocumentStore()
    store.add_documents(as_documents(*texts))
    return store


def texts_in(nodes: Sequence[NodeWithScore]) -> list[str]:
    return [node.node.get_content() for node in nodes]


# --- from nodes to documents ------------------------------------------------------------------------------------------


def test_hits_become_whole_documents_once_and_in_order(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """Stock synthesizers repeat what overlaps, and mix the pieces of documents."""
    first, second, third = STORIES
    hits = passages(first, second, third)
    mixed = [hits[-1], hits[0], hits[-2], hits[1], hits[0]]
    FocusSynthesizer(llm, docstore=keeping(first, second, third)).synthesize(QUESTION, mixed)
    assert [call.documents for call in calls] == [[third, first]]


def test_all_passages_of_a_document_give_its_text_back(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """LlamaIndex's hash of the original proves it, so nobody is warned."""
    hits = passages(*STORIES)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FocusSynthesizer(llm).synthesize(QUESTION, hits[::-1])
    assert calls[0].documents == STORIES[::-1]


def test_missing_passages_are_warned_about(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """Without the original nobody knows what stood between them."""
    hits = passages(STORIES[0])
    with pytest.warns(UserWarning, match="doc-0") as told:
        FocusSynthesizer(llm).synthesize(QUESTION, [hits[0], hits[-1]])
    assert "docstore.add_documents" in str(told[0].message)
    assert calls[0].documents == ["\n".join(texts_in([hits[0], hits[-1]]))]


def test_a_docstore_that_knows_all_passages_is_enough(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """As `SummaryIndex` and `VectorStoreIndex` leave it behind."""
    index = SummaryIndex.from_documents(as_documents(*STORIES), transformations=[SPLITTER])
    hits = index.as_retriever().retrieve(QUESTION)
    FocusSynthesizer(llm, docstore=index.docstore).synthesize(QUESTION, hits[1:2])
    assert calls[0].documents == STORIES[:1]


def test_metadata_are_shown_by_the_document_template_only(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """LlamaIndex would write them, and the file's path, above every piece."""
    metadata = {"title": "Logbook", "llm": "a name that LlamaIndex uses itself", "self": "and so is this"}
    titled = NodeWithScore(node=Document(text="text", metadata=metadata))
    FocusSynthesizer(llm).synthesize(QUESTION, [titled])
    template = PromptTemplate("{title}: {text}")
    FocusSynthesizer(llm, document_template=template).synthesize(QUESTION, [titled, *nodes_of("{title} {x}")])
    assert [call.documents for call in calls] == [["text"], ["Logbook: text", ": {title} {x}"]]


def test_documents_without_text_are_left_out_with_a_warning(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """Readers make them of scanned pages; one of them must not end all queries."""
    nodes = nodes_of("text", " \n")
    with pytest.warns(UserWarning, match=nodes[1].node.node_id):
        response = FocusSynthesizer(llm).synthesize(QUESTION, nodes)
    assert calls[0].documents == ["text"]
    assert response.source_nodes == nodes
    with pytest.raises(DocumentError, match="None of the documents has any text"):
        FocusSynthesizer(llm).synthesize(QUESTION, nodes[1:])


async def test_nothing_found_is_no_call(llm: FocusLLM, calls: list[EngineCall]) -> None:
    synthesizer = FocusSynthesizer(llm, empty_response="Nothing found.")
    response = synthesizer.synthesize(QUESTION, [])
    assert str(response) == str(await synthesizer.asynthesize(QUESTION, [])) == "Nothing found."
    assert response.metadata == {"focus": {}}
    assert not calls


@pytest.mark.parametrize("chat_template", [False, True])
@pytest.mark.parametrize(
    ("ranked", "read"),
    [
        ("Doc: 3, Relevance: 9\nDoc: 1, Relevance: 4\n\nThe third one, which is Doc: 3, answers it.", [2, 0]),
        ("The question is not clear, so no document is relevant.", []),
        ("", []),
    ],
    ids=["with a remark", "no choice", "empty"],
)
def test_after_llama_indexs_reranker(
    llm: FocusLLM, monkeypatch: pytest.MonkeyPatch, chat_template: bool, ranked: str, read: list[int]
) -> None:
    """A small model ranks in words of its own (llama_index 11093, 12311, 12323); then nothing is found."""
    calls = says(monkeypatch, ranked)
    llm = llm.model_copy(update={"chat_template": chat_template})
    engine = RetrieverQueryEngine(
        Found(nodes_of(*STORIES)),
        response_synthesizer=FocusSynthesizer(llm, empty_response="Nothing found."),
        node_postprocessors=[LLMRerank(llm=llm)],
    )
    response = engine.query(QUESTION)
    assert [call.documents for call in calls] == [[], *([[STORIES[number] for number in read]] if read else [])]
    assert all(story in str(calls[0].questions) for story in STORIES)
    assert str(response) == (ranked if read else "Nothing found.")


# --- the response -----------------------------------------------------------------------------------------------------


async def test_source_nodes_are_what_came_in(llm: FocusLLM) -> None:
    """They name the passages that were found, with their scores; documents are named by them."""
    hits, more = passages(*STORIES), nodes_of("also read")
    synthesizer = FocusSynthesizer(llm, docstore=keeping(*STORIES))
    for response in (
        synthesizer.synthesize(QUESTION, hits, additional_source_nodes=more),
        await synthesizer.asynthesize(QUESTION, hits, additional_source_nodes=more),
    ):
        assert response.source_nodes == [*hits, *more]
        assert response.metadata is not None
        assert set(response.metadata) == {"focus", *(hit.node.node_id for hit in [*hits, *more])}


async def test_the_answer_is_the_engines_in_all_forms(llm: FocusLLM, engine: FocusEngine) -> None:
    expected = engine.generate(QUESTION, STORIES, max_new_tokens=TOKENS)
    nodes = nodes_of(*STORIES)
    whole, streamed = FocusSynthesizer(llm), FocusSynthesizer(llm, streaming=True)
    answers: list[Any] = [whole.synthesize(QUESTION, nodes), await whole.asynthesize(QUESTION, nodes)]
    stream: Any = streamed.synthesize(QUESTION, nodes)
    astream: Any = await streamed.asynthesize(QUESTION, nodes)
    assert [type(answer) for answer in answers] == [Response, Response]
    assert (type(stream), type(astream)) == (StreamingResponse, AsyncStreamingResponse)
    assert stream.metadata["focus"] == {}
    assert "".join(stream.response_gen) == expected.text
    assert "".join([text async for text in astream.async_response_gen()]) == expected.text
    assert [answer.response for answer in answers] == [expected.text] * 2
    for answer in [*answers, stream, astream]:
        assert answer.metadata["focus"]["input_tokens"] == expected.usage.input_tokens
        assert answer.metadata["focus"]["output_tokens"] == TOKENS
        assert answer.metadata["focus"]["finish_reason"] == "length"


async def test_output_cls_gives_an_object(llm: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """The schema is in the question as JSON, and not with the doubled braces of LlamaIndex's templates."""
    seen = says(monkeypatch, 'Sure: {"name": "Ada"}')
    for streaming in (False, True):
        synthesizer = FocusSynthesizer(llm, output_cls=Person, streaming=streaming)
        nodes = nodes_of("text")
        for response in (synthesizer.synthesize(QUESTION, nodes), await synthesizer.asynthesize(QUESTION, nodes)):
            assert isinstance(response, PydanticResponse)
            assert response.response == Person(name="Ada")
            assert response.metadata is not None
            assert response.metadata["focus"]["output_tokens"] == 7
    assert {call.question.count("{{") for call in seen} == {0}
    assert all('"name"' in call.question and QUESTION in call.question for call in seen)


async def test_a_structured_model_is_taken_apart(llm: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex's wrapper knows no documents."""
    says(monkeypatch, '{"name": "Ada"}')
    response = FocusSynthesizer(llm.as_structured_llm(Person)).synthesize(QUESTION, nodes_of("text"))
    assert isinstance(response, PydanticResponse)
    assert response.name == "Ada"


# --- prompts ----------------------------------------------------------------------------------------------------------


def test_prompts_are_updated_through_the_query_engine(llm: FocusLLM, calls: list[EngineCall]) -> None:
    engine = RetrieverQueryEngine(Found(nodes_of("text")), response_synthesizer=FocusSynthesizer(llm))
    assert set(engine.get_prompts()) == {
        "response_synthesizer:text_qa_template",
        "response_synthesizer:document_template",
    }
    engine.update_prompts(
        {
            "response_synthesizer:text_qa_template": PromptTemplate("In one word: {query_str}{context_str}"),
            "response_synthesizer:document_template": PromptTemplate("<{text}>"),
        }
    )
    engine.query(QUESTION)
    assert (calls[0].question, calls[0].documents) == (f"In one word: {QUESTION}", ["<text>"])


def test_a_prompt_that_does_not_exist_is_named(llm: FocusLLM) -> None:
    engine = RetrieverQueryEngine(Found([]), response_synthesizer=FocusSynthesizer(llm))
    with pytest.raises(ConfigError, match="'refine_template'"):
        engine.update_prompts({"response_synthesizer:refine_template": PromptTemplate("{query_str}")})


def test_the_system_prompt_comes_once(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = says(monkeypatch, "yes")
    llm = FocusLLM(**tiny_settings, system_prompt="Be brief.")
    FocusSynthesizer(llm).synthesize(QUESTION, nodes_of("text"))
    assert seen[0].questions == [[{"role": "system", "content": "Be brief."}, {"role": "user", "content": QUESTION}]]


async def test_documents_keep_name_and_metadata(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """Those of the original, whatever their nodes say; LlamaIndex passes on texts only."""
    document = Document(text=STORIES[0], id_="doc-0", metadata={"file_name": "harbour.txt", "year": 1911})
    store = SimpleDocumentStore()
    store.add_documents([document])
    synthesizer = FocusSynthesizer(llm, docstore=store)
    synthesizer.synthesize(QUESTION, passages(*STORIES[:2]))
    await synthesizer.asynthesize(QUESTION, passages(*STORIES[:2]))
    for call in calls:
        first, second = call.given
        assert (first.name, dict(first.metadata)) == ("harbour.txt", document.metadata)
        assert (second.name, dict(second.metadata)) == ("doc-1", {})


# --- events -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("streaming", [False, True])
async def test_every_event_is_fired_once_and_tells_the_truth(llm: FocusLLM, streaming: bool) -> None:
    hits = passages(*STORIES)
    synthesizer = FocusSynthesizer(llm, docstore=keeping(*STORIES), streaming=streaming)
    with listening() as events:
        str(synthesizer.synthesize(QUESTION, hits))
    for name in ("SynthesizeStartEvent", "GetResponseStartEvent", "LLMChatStartEvent", "LLMChatEndEvent"):
        assert len(events.named(name)) == 1, name
    assert len(events.named("GetResponseEndEvent")) == 1
    assert events.named("GetResponseStartEvent")[0].text_chunks == STORIES
    (end,) = events.named("SynthesizeEndEvent")
    assert [hit.node.node_id for hit in end.response.source_nodes] == [hit.node.node_id for hit in hits]


def test_callbacks_see_the_synthesis_and_one_answer(llm: FocusLLM) -> None:
    debug, counter = LlamaDebugHandler(print_trace_on_end=False), counting()
    manager = CallbackManager([debug, counter])
    response = FocusSynthesizer(llm, callback_manager=manager).synthesize(QUESTION, nodes_of(*STORIES))
    assert len(debug.get_event_pairs(CBEventType.SYNTHESIZE)) == 1
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1
    assert response.metadata is not None
    assert counter.prompt_llm_token_count == response.metadata["focus"]["input_tokens"]


# --- in pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["summary", "vector"])
async def test_indices_answer_without_any_key(
    llm: FocusLLM, engine: FocusEngine, calls: list[EngineCall], kind: str
) -> None:
    """The construction that the documentation shows. LlamaIndex looks for OpenAI where `llm` is left out."""
    documents = as_documents(*STORIES)
    if kind == "summary":
        index: Any = SummaryIndex.from_documents(documents, transformations=[SPLITTER])
    else:
        index = VectorStoreIndex.from_documents(documents, transformations=[SPLITTER], embed_model=TinyEmbedding())
    index.docstore.add_documents(documents)
    synthesizer = FocusSynthesizer(llm, docstore=index.docstore)
    options = {} if kind == "summary" else {"similarity_top_k": 2}
    query_engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, **options)
    response, aresponse = query_engine.query("Who saw the heron?"), await query_engine.aquery("Who saw the heron?")
    expected = STORIES if kind == "summary" else STORIES[1:2]
    assert [call.documents for call in calls] == [expected, expected]
    assert str(response) == str(aresponse)
    found = {hit.node.source_node.node_id for hit in response.source_nodes}
    assert found == ({"doc-0", "doc-1", "doc-2"} if kind == "summary" else {"doc-1"})


def test_a_condensing_chat_engine_works_turn_by_turn(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """It condenses with the model, then asks the query engine; other chat engines bring their own synthesizer."""
    query_engine = RetrieverQueryEngine(Found(nodes_of("text")), response_synthesizer=FocusSynthesizer(llm))
    chat = CondenseQuestionChatEngine.from_defaults(query_engine, llm=llm, memory_cls=ChatMemoryBuffer)
    first = chat.chat("Who?")
    second = chat.chat("And when?")
    assert [call.documents for call in calls] == [["text"], [], ["text"]]
    assert calls[0].question == "Who?"
    assert "And when?" in calls[1].question
    assert first.response in calls[1].question
    assert second.source_nodes[0].node.get_content() == "text"


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))], ids=["deepcopy", "pickle"]
)
def test_a_query_engine_can_be_copied(llm: FocusLLM, copied: Callable[[Any], Any]) -> None:
    """Models of pydantic copy their fields, and workers get pickles: tokenizer and locks stay where they are."""
    query_engine = RetrieverQueryEngine(Found(nodes_of(*STORIES)), response_synthesizer=FocusSynthesizer(llm))
    expected = str(query_engine.query(QUESTION))
    again = copied(query_engine)
    assert str(again.query(QUESTION)) == expected
    assert again._response_synthesizer._llm.engine is llm.engine


def test_settings_are_the_default_model(llm: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"FocusSynthesizer\(llm=FocusLLM"):
        FocusSynthesizer()
    monkeypatch.setattr(Settings, "_llm", llm)
    assert FocusSynthesizer()._llm is llm


def test_the_tokenizer_of_the_process_stays(llm: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stock synthesizers set it to one of OpenAI's when they are built."""
    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    FocusSynthesizer(llm).synthesize(QUESTION, nodes_of("text"))
    assert llama_index.core.global_tokenizer is None


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError])
async def test_no_error_of_the_model_becomes_an_empty_response(
    llm: FocusLLM, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    """LlamaIndex's refine swallows the first two of these."""

    def broken(*_: Any, **__: Any) -> Any:
        raise error("broken on purpose")

    for way in ("generate", "stream", "stream_batch"):
        monkeypatch.setattr(FocusEngine, way, broken)
    query_engine = RetrieverQueryEngine(Found(nodes_of("text")), response_synthesizer=FocusSynthesizer(llm))
    with pytest.raises(error, match="broken on purpose"):
        query_engine.query(QUESTION)
    with pytest.raises(error, match="broken on purpose"):
        await query_engine.aquery(QUESTION)


def test_stock_synthesizers_show_our_errors_too(llm: FocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no `ValueError`, which refine would turn into "Empty Response"."""

    def full(*_: Any, **__: Any) -> Any:
        raise ContextOverflowError("too long")

    monkeypatch.setattr(FocusEngine, "generate", full)
    stock = get_response_synthesizer(llm=llm)
    with pytest.raises(ContextOverflowError, match="too long"):
        stock.synthesize(QUESTION, nodes_of("text"))


# --- another model ----------------------------------------------------------------------------------------------------


@pytest.fixture
def foreign() -> FocusSynthesizer:
    """A mock that repeats its prompt."""
    with pytest.warns(UserWarning, match="MockLLM cannot take whole documents"):
        return FocusSynthesizer(MockLLM())


async def test_another_model_gets_the_documents_in_its_prompt(foreign: FocusSynthesizer) -> None:
    nodes = nodes_of(*STORIES)
    for response in (foreign.synthesize(QUESTION, nodes), await foreign.asynthesize(QUESTION, nodes)):
        text = str(response)
        assert "\n\n".join(STORIES) in text
        assert text.index(QUESTION) > text.index(STORIES[2])
        assert response.source_nodes == nodes


async def test_another_model_streams_and_takes_templates(foreign: FocusSynthesizer) -> None:
    """A template without a place for documents has them in front."""
    foreign._streaming = True
    foreign.update_prompts({"text_qa_template": PromptTemplate("Q: {query_str}")})
    stream: Any = foreign.synthesize(QUESTION, nodes_of("text"))
    astream: Any = await foreign.asynthesize(QUESTION, nodes_of("text"))
    assert "".join(stream.response_gen) == f"Q: text\n\n{QUESTION}"
    assert "".join([text async for text in astream.async_response_gen()]) == f"Q: text\n\n{QUESTION}"


async def test_another_model_answers_in_its_own_structured_way(
    monkeypatch: pytest.MonkeyPatch, foreign: FocusSynthesizer
) -> None:
    """Which may be function calling."""
    asked: list[dict[str, Any]] = []

    def predict(self: MockLLM, output_cls: type[Person], prompt: Any, **given: Any) -> Person:
        asked.append(given)
        return output_cls(name="Ada")

    async def apredict(self: MockLLM, output_cls: type[Person], prompt: Any, **given: Any) -> Person:
        return predict(self, output_cls, prompt, **given)

    monkeypatch.setattr(MockLLM, "structured_predict", predict)
    monkeypatch.setattr(MockLLM, "astructured_predict", apredict)
    foreign._output_cls = Person
    nodes = [NodeWithScore(node=TextNode(text="text"))]
    for response in (foreign.synthesize(QUESTION, nodes), await foreign.asynthesize(QUESTION, nodes)):
        assert isinstance(response, PydanticResponse)
        assert response.response == Person(name="Ada")
    assert asked == [{"query_str": QUESTION, "context_str": "text"}] * 2
