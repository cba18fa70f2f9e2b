"""Chains over whole documents, in the shapes that LangChain's programs have."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_classic.chains.combine_documents import create_stuff_documents_chain
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import CommaSeparatedListOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore

from focus_core import ContextOverflowError, FocusEngine
from focus_core.errors import ConfigError, DocumentError, FocusWarning
from focus_integrations.langchain import WholeDocumentRetriever, create_focus_documents_chain
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall

A = Document("In the first story Ada keeps the lighthouse. " * 6, metadata={"source": "a.txt"})
B = Document("In the second story Edith sells bread. " * 6, metadata={"source": "b.txt"})
PROMPT = ChatPromptTemplate.from_messages([("system", "Use the context.\n\n{context}"), ("human", "{input}")])
INPUT = {"context": [A, B], "input": "Who?"}


# --- the chain --------------------------------------------------------------------------------------------------------


def test_langchains_own_chain_takes_more_than_the_window(model: Any, engine: FocusEngine) -> None:
    """Nobody has to change a program: the documents are text in the prompt then, and the prompt is read in chunks."""
    book = Document("The gates were closed at noon. " * (engine.config.window // 10))
    chain = create_stuff_documents_chain(model, PROMPT)
    assert engine.count_tokens(book.page_content) > 2 * engine.config.window
    answer = chain.invoke({"context": [book], "input": "Who?"})
    assert len(answer) > 8


async def test_the_chain_answers_in_four_ways(model: Any, asked: list[EngineCall]) -> None:
    """The stuff chain's input, the engine's documents."""
    chain = create_focus_documents_chain(model, PROMPT)
    answer = chain.invoke(INPUT)
    assert isinstance(answer, str)
    assert len(answer) > 8
    pieces = list(chain.stream(INPUT))
    assert "".join(pieces) == answer
    assert len(pieces) > 3
    assert await chain.ainvoke(INPUT) == answer
    later = [piece async for piece in chain.astream(INPUT)]
    assert "".join(later) == answer
    assert len(later) > 3
    assert [call.documents for call in asked] == [[A.page_content, B.page_content]] * 4


def test_the_documents_are_beside_the_prompt_and_not_in_it(model: Any, asked: list[EngineCall]) -> None:
    """In it they would be read a second time, as what Python prints of a list."""
    create_focus_documents_chain(model, PROMPT).invoke(INPUT)
    question = str(asked[0].questions[0])
    assert "Use the context." in question
    assert "Who?" in question
    assert "lighthouse" not in question
    assert "Document(" not in question


def test_a_prompt_need_not_name_the_documents(model: Any, asked: list[EngineCall]) -> None:
    create_focus_documents_chain(model, PromptTemplate.from_template("Q: {input}")).invoke(INPUT)
    assert asked[0].documents == [A.page_content, B.page_content]


def test_other_names_templates_and_parsers(model: Any, asked: list[EngineCall]) -> None:
    chain = create_focus_documents_chain(
        model,
        ChatPromptTemplate.from_messages([("human", "{question}")]),
        document_variable_name="papers",
        document_prompt=PromptTemplate.from_template("From {source}:\n{page_content}"),
        output_parser=CommaSeparatedListOutputParser(),
    )
    assert isinstance(chain.invoke({"papers": [B, A], "question": "Who?"}), list)
    assert asked[0].documents == [f"From b.txt:\n{B.page_content}", f"From a.txt:\n{A.page_content}"]


def test_documents_that_the_template_makes_equal_are_read_once(model: Any, asked: list[EngineCall]) -> None:
    again = Document(A.page_content, metadata={"source": "copy.txt"})
    create_focus_documents_chain(model, PROMPT).invoke({**INPUT, "context": [A, again, B]})
    assert asked[0].documents == [A.page_content, B.page_content]
    named = PromptTemplate.from_template("{source} {page_content}")
    create_focus_documents_chain(model, PROMPT, document_prompt=named).invoke({**INPUT, "context": [A, again]})
    assert len(asked[1].documents) == 2


def test_arguments_bound_to_the_model_hold_in_the_chain(model: Any, asked: list[EngineCall]) -> None:
    answer = create_focus_documents_chain(model.bind(max_tokens=3).bind(seed=1), PROMPT).invoke(INPUT)
    assert len(answer) == 3
    assert asked[0].options["seed"] == 1


@pytest.mark.parametrize("place", ["inside", "outside"])
def test_documents_bound_to_the_model_are_read_before_those_of_the_input(
    model: Any, asked: list[EngineCall], place: str
) -> None:
    """Of two arguments of one name LangChain keeps the outer: the bound ones were lost in silence."""
    law, glossary = "The law. " * 9, Document("The glossary. " * 9)
    bound = model.bind(documents=[law, glossary])
    bound = bound.bind(max_tokens=3) if place == "inside" else bound.with_retry().bind(max_tokens=3)
    answer = create_focus_documents_chain(bound, PROMPT).invoke(INPUT)
    expected = [law, glossary.page_content, A.page_content, B.page_content]
    assert asked[0].documents == expected
    assert answer == text_of(model.invoke(PROMPT.invoke({**INPUT, "context": ""}), documents=expected, max_tokens=3))


def of_every_kind(model: Any) -> list[Any]:
    """What LangChain makes of a model, which still answers like it."""
    other = model.model_copy(update={"max_tokens": 100_000})  # never fits
    alternatives = {"other": other, "later": lambda: model}
    which = model.configurable_alternatives(ConfigurableField("which"), **alternatives)
    return [
        model.with_retry(),
        model.with_fallbacks([other]),
        other.with_fallbacks([model]),
        other.with_retry(stop_after_attempt=1).with_fallbacks([model.with_config(tags=["a"])]),
        model.configurable_fields(max_tokens=ConfigurableField("tokens")),
        which,
        which.with_config(configurable={"which": "later"}),
        model.with_config(run_name="asking").with_listeners(),
    ]


async def test_the_chain_takes_what_langchain_makes_of_a_model(model: Any, asked: list[EngineCall]) -> None:
    """As the stuff chain does: with retries, fallbacks, configurable fields and alternatives, one in the other."""
    model = model.model_copy(update={"max_tokens": 2})
    expected = create_focus_documents_chain(model, PROMPT).invoke(INPUT)
    for made in of_every_kind(model):
        chain = create_focus_documents_chain(made, PROMPT)
        assert chain.invoke(INPUT) == expected
        assert "".join(chain.stream(INPUT)) == expected
        assert await chain.ainvoke(INPUT) == expected
        assert "".join([piece async for piece in chain.astream(INPUT)]) == expected
    assert {tuple(call.documents) for call in asked} == {(A.page_content, B.page_content)}


def test_fields_are_configured_through_the_chain(model: Any) -> None:
    chain = create_focus_documents_chain(model.configurable_fields(max_tokens=ConfigurableField("tokens")), PROMPT)
    assert len(chain.invoke(INPUT, {"configurable": {"tokens": 3}})) == 3


@pytest.mark.filterwarnings("error")
def test_the_separator_of_the_stuff_chain_is_accepted_and_said_to_be_without_effect(model: Any) -> None:
    expected = create_focus_documents_chain(model, PROMPT, document_separator="\n\n").invoke(INPUT)
    with pytest.warns(FocusWarning, match=r"document_separator='---' has no effect: .* not joined"):
        chain = create_focus_documents_chain(model, PROMPT, document_separator="---")
    assert chain.invoke(INPUT) == expected


def test_an_empty_page_among_good_ones_is_skipped_with_a_warning(model: Any, asked: list[EngineCall]) -> None:
    """Loaders make one of every blank side of a PDF; the stuff chain runs with them."""
    pages = [A, Document("  \n", metadata={"page": 2}), Document(""), B]
    with pytest.warns(FocusWarning, match=r"Skipped 2 of 4 documents, because they hold no text: number 2, 3"):
        create_focus_documents_chain(model, PROMPT).invoke({**INPUT, "context": pages})
    assert asked[0].documents == [A.page_content, B.page_content]
    titled = PromptTemplate.from_template("Page {page}: {page_content}")  # then it does hold text
    create_focus_documents_chain(model, PROMPT, document_prompt=titled).invoke({**INPUT, "context": pages[1:2]})
    assert asked[1].documents == ["Page 2:   \n"]


def test_nothing_but_empty_pages_is_an_error(model: Any) -> None:
    """A scan without a text layer: an answer without any documents would be made up."""
    with pytest.raises(DocumentError, match=r"All documents \(2\) are empty"):
        create_focus_documents_chain(model, PROMPT).invoke({**INPUT, "context": [Document(""), Document(" ")]})


def test_a_batch_through_the_chain_answers_each_input(model: Any) -> None:
    chain = create_focus_documents_chain(model, PROMPT)
    inputs = [INPUT, {"context": [B], "input": "What?"}]
    assert chain.batch(inputs) == [chain.invoke(one) for one in inputs]


def test_another_model_is_refused(model: Any) -> None:
    """It would get the question without the documents."""
    other = FakeListChatModel(responses=["no"])
    which = model.configurable_alternatives(ConfigurableField("which"), other=lambda: other)
    for foreign in (other, other.bind(stop=["x"]), other.with_retry(), model.with_fallbacks([other]), which):
        with pytest.raises(ConfigError, match="FakeListChatModel, which cannot take whole documents"):
            create_focus_documents_chain(foreign, PROMPT)


def test_another_model_is_a_fallback_in_a_chain_of_its_own(model: Any) -> None:
    """The way out that the error names."""
    ours = create_focus_documents_chain(model.bind(max_tokens=100_000), PROMPT)
    theirs = create_stuff_documents_chain(FakeListChatModel(responses=["yes"]), PROMPT)
    assert ours.with_fallbacks([theirs]).invoke(INPUT) == "yes"


def test_an_input_without_documents_is_refused(model: Any) -> None:
    chain = create_focus_documents_chain(model, PROMPT)
    with pytest.raises(ConfigError, match=r"the input has \['documents', 'input'\], not 'context'"):
        chain.invoke({"documents": [A], "input": "Who?"})


async def test_overflow_reaches_the_caller_of_a_chain(model: Any) -> None:
    """Never as an empty answer."""
    chain = create_focus_documents_chain(model, PROMPT)
    too_much = {"context": [Document("word " * 54_000)], "input": "Who?"}
    with pytest.raises(ContextOverflowError, match=r"memory of \d+ chunks"):
        chain.invoke(too_much)
    with pytest.raises(ContextOverflowError):
        list(chain.stream(too_much))
    with pytest.raises(ContextOverflowError):
        await chain.ainvoke(too_much)
    with pytest.raises(ContextOverflowError):
        [piece async for piece in chain.astream(too_much)]


async def test_events_of_a_chain_carry_every_token_once(model: Any) -> None:
    chain = create_focus_documents_chain(model, PROMPT)
    events = [event async for event in chain.astream_events(INPUT, version="v2")]
    kinds = {"on_chat_model_stream", "on_llm_stream"}
    chunks = [event["data"]["chunk"].text for event in events if event["event"] in kinds]
    assert "".join(chunks) == chain.invoke(INPUT)


# --- retrieval --------------------------------------------------------------------------------------------------------


class Letters(Embeddings):
    """How often each letter occurs: enough to tell stories apart, and the same every time."""

    def embed_query(self, text: str) -> list[float]:
        return [1.0 + text.lower().count(letter) for letter in "abcdefghijklmnopqrstuvwxyz"]

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


STORIES = {"sea": Document("Waves, wind and fog. " * 9), "mill": Document("Flour, stones and bread. " * 9)}
PASSAGES = [
    Document("Waves, wind", metadata={"doc_id": "sea"}),
    Document("Flour, stones", metadata={"doc_id": "mill"}),
    Document("and fog.", metadata={"doc_id": "sea"}),
]


@pytest.fixture
def vectors() -> InMemoryVectorStore:
    store = InMemoryVectorStore(Letters())
    store.add_documents(PASSAGES)
    return store


@pytest.fixture
def originals() -> InMemoryStore:
    store = InMemoryStore()
    store.mset(list(STORIES.items()))
    return store


@pytest.mark.parametrize(("query", "expected"), [("wwwindwavess", ["sea", "mill"]), ("flourstonee", ["mill", "sea"])])
async def test_hits_become_whole_documents_best_first_and_once(
    vectors: InMemoryVectorStore, originals: InMemoryStore, query: str, expected: list[str]
) -> None:
    """Several passages of one document are one document."""
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals)
    assert retriever.invoke(query) == [STORIES[key] for key in expected]
    assert await retriever.ainvoke(query) == [STORIES[key] for key in expected]
    assert len(WholeDocumentRetriever(vectorstore=vectors, docstore=originals, k=1).invoke(query)) == 1


async def test_a_passage_that_names_no_document_is_an_error(
    vectors: InMemoryVectorStore, originals: InMemoryStore
) -> None:
    """Left out in silence it would be a fact that nobody can find."""
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals, id_key="parent")
    with pytest.raises(DocumentError, match=r"no 'parent' in its metadata \(\['doc_id'\]\)"):
        retriever.invoke("wind")
    with pytest.raises(DocumentError, match="another id_key"):
        await retriever.ainvoke("wind")


async def test_a_document_that_is_not_in_the_store_is_an_error(
    vectors: InMemoryVectorStore, originals: InMemoryStore
) -> None:
    originals.mdelete(["mill"])
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals)
    with pytest.raises(DocumentError, match="no document under 'mill'"):
        retriever.invoke("wind")
    with pytest.raises(DocumentError, match="no document under 'mill'"):
        await retriever.ainvoke("wind")


def test_search_settings_reach_the_vector_store(vectors: InMemoryVectorStore, originals: InMemoryStore) -> None:
    only_sea = {"filter": lambda passage: passage.metadata["doc_id"] == "sea"}
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals, search_kwargs=only_sea)
    assert retriever.invoke("flour") == [STORIES["sea"]]


@pytest.mark.parametrize(
    "settings", [{"k": 1}, {"search_kwargs": {"k": 1}}, {"k": 1, "search_kwargs": {"k": 1}}], ids=str
)
async def test_the_number_of_passages_is_set_as_in_other_retrievers(
    vectors: InMemoryVectorStore, originals: InMemoryStore, settings: dict[str, Any]
) -> None:
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals, **settings)
    assert retriever.invoke("wwwindwavess") == await retriever.ainvoke("wwwindwavess") == [STORIES["sea"]]
    assert len(retriever.invoke("wwwindwavess", k=3)) == len(await retriever.ainvoke("wwwindwavess", k=3)) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 2, "search_kwargs": {"k": 3}}, r"k=2 and search_kwargs\['k'\]=3: give one"),
        ({"search_kwargs": {"k": 0}}, "search_kwargs.*=0: must be a whole number"),
        ({"search_kwargs": {"k": "3"}}, "search_kwargs.*='3': must be a whole number"),
    ],
    ids=["two numbers", "zero", "text"],
)
def test_an_impossible_number_of_passages_is_refused(
    vectors: InMemoryVectorStore, originals: InMemoryStore, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        WholeDocumentRetriever(vectorstore=vectors, docstore=originals, **settings)


async def test_retrieval_and_chain_together(
    model: Any, vectors: InMemoryVectorStore, originals: InMemoryStore, asked: list[EngineCall]
) -> None:
    retriever = WholeDocumentRetriever(vectorstore=vectors, docstore=originals)
    chain = create_retrieval_chain(retriever, create_focus_documents_chain(model, PROMPT))
    result = chain.invoke({"input": "wwwindwavess"})
    assert result["context"] == [STORIES["sea"], STORIES["mill"]]
    assert asked[0].documents == [story.page_content for story in (STORIES["sea"], STORIES["mill"])]
    assert "".join(part.get("answer", "") for part in chain.stream({"input": "wwwindwavess"})) == result["answer"]
    assert (await chain.ainvoke({"input": "wwwindwavess"}))["answer"] == result["answer"]
    later = [part.get("answer", "") async for part in chain.astream({"input": "wwwindwavess"})]
    assert "".join(later) == result["answer"]
