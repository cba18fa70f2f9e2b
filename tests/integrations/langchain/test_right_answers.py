"""A right answer, end to end: facts in a text of 60,000 tokens, found by the embedded model through LangChain's chains.

Everything is as a user meets it: models without arguments, documents as LangChain's, questions as strings. The text is
read once for the whole module; what is tried is that each way to ask finds what stands in it.
"""

from __future__ import annotations

import random
from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore

from focus_core.evaluation.facts import Fact, filler_sentences, hide
from focus_core.loading.embedded import EMBEDDED_FOLDER
from focus_integrations.langchain import ChatFocusLLM, FocusLLM, WholeDocumentRetriever, create_focus_documents_chain

pytestmark = [
    pytest.mark.skipif(
        not (EMBEDDED_FOLDER / "base" / "config.json").is_file(),
        reason="the embedded model is not in focus_core/embedded",
    ),
    pytest.mark.timeout(600),
]

TOKENS = 60_000
HIDDEN = [
    (Fact("access code", "the amber falcon", "48213"), 0.15, "What is the access code of the amber falcon?"),
    (Fact("home city", "Clara Fenwick", "Lisbon"), 0.4, "What is the home city of Clara Fenwick?"),
    (Fact("population", "Lake Marden", "90576"), 0.65, "What is the population of Lake Marden?"),
    (Fact("pass key", "", "71402", "passkey"), 0.9, "What is the pass key?"),
]
PROMPT = PromptTemplate.from_template("{input}")
NAMES = [fact.attribute for fact, _, _ in HIDDEN]
WAYS = ("invoke", "ainvoke", "stream", "astream")


@pytest.fixture(scope="module")
def book() -> Document:
    """The facts among made-up sentences; read here, so that no test pays for it."""
    engine = FocusLLM().engine
    rng = random.Random(11)
    sample = filler_sentences(rng, 500)
    sentences = filler_sentences(rng, round(TOKENS * len(sample) / engine.count_tokens(" ".join(sample))))
    text = hide([fact for fact, _, _ in HIDDEN], sentences, rng, [depth for _, depth, _ in HIDDEN]).text
    assert abs(engine.prepare([text]).tokens - TOKENS) < TOKENS // 20
    return Document(text, id="book", metadata={"title": "A long book"})


@pytest.fixture(scope="module")
def retriever(book: Document) -> WholeDocumentRetriever:
    """Passages of the book and of a short letter; what is found is the whole book."""
    letter = Document("Dear Anna, the weather is fine and the train was late. Yours, Ben.", id="letter")
    vectors, originals = InMemoryVectorStore(WordCounts()), InMemoryStore()
    for document in (book, letter):
        assert document.id is not None
        originals.mset([(document.id, document)])
        text, size = document.page_content, 2000
        passages = [text[start : start + size] for start in range(0, len(text), size)]
        vectors.add_documents([Document(passage, metadata={"doc_id": document.id}) for passage in passages])
    return WholeDocumentRetriever(vectorstore=vectors, docstore=originals, k=3)


class WordCounts(Embeddings):
    """Words sorted into 64 drawers by their letters: similar texts are near each other, today and tomorrow."""

    def embed_query(self, text: str) -> list[float]:
        drawers = [0.01] * 64
        for word in text.lower().split():
            drawers[sum(map(ord, word)) % 64] += 1.0
        return drawers

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [self.embed_query(text) for text in texts]


async def ask(chain: Runnable[dict[str, Any], Any], way: str, given: dict[str, Any]) -> str:
    """The answer, asked for in one of four ways."""
    if way == "invoke":
        return _answer(chain.invoke(given))
    if way == "ainvoke":
        return _answer(await chain.ainvoke(given))
    if way == "stream":
        return "".join(map(_answer, chain.stream(given)))
    return "".join([_answer(piece) async for piece in chain.astream(given)])


def _answer(result: Any) -> str:
    """A retrieval chain gives (and streams) dictionaries."""
    return result if isinstance(result, str) else str(result.get("answer", ""))


@pytest.fixture(params=[FocusLLM, ChatFocusLLM])
def answering(request: pytest.FixtureRequest, book: Document) -> Any:
    return create_focus_documents_chain(request.param(), PROMPT)


@pytest.mark.parametrize(("fact", "question"), [(fact, question) for fact, _, question in HIDDEN], ids=NAMES)
def test_every_fact_is_found(answering: Any, book: Document, fact: Fact, question: str) -> None:
    assert fact.value in answering.invoke({"context": [book], "input": question})


@pytest.mark.parametrize(("way", "hidden"), list(zip(WAYS, HIDDEN, strict=True)), ids=WAYS)
async def test_each_way_to_ask_finds_it(answering: Any, book: Document, way: str, hidden: Any) -> None:
    fact, _, question = hidden
    assert fact.value in await ask(answering, way, {"context": [book], "input": question})


@pytest.mark.parametrize(("way", "hidden"), list(zip(WAYS, HIDDEN, strict=True)), ids=WAYS)
async def test_retrieval_of_the_whole_document_finds_it(
    answering: Any, retriever: WholeDocumentRetriever, book: Document, way: str, hidden: Any
) -> None:
    """The passage with the fact need not be among the hits: its document is enough."""
    fact, _, question = hidden
    assert book in retriever.invoke(question)
    assert fact.value in await ask(create_retrieval_chain(retriever, answering), way, {"input": question})
