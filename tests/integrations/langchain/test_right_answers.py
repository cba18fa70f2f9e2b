"""A right answer, end to end: facts in a long text, found by the embedded model through LangChain's chains.

Everything is as a user meets it: models without arguments, documents as LangChain's, questions as strings. That all
ways to ask give the same answer is what `test_conformance.py` and `test_chains.py` say, on a tiny model; so each class
and each chain finds one fact here, and all ways find all facts in `make test-slow`.
"""

from __future__ import annotations

from typing import Any

import pytest
from langchain_classic.chains import create_retrieval_chain
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import Runnable
from langchain_core.stores import InMemoryStore
from langchain_core.vectorstores import InMemoryVectorStore

from focus_core.evaluation.facts import Fact
from focus_integrations.langchain import ChatFocusLLM, FocusLLM, WholeDocumentRetriever, create_focus_documents_chain
from tests import embedded
from tests.embedded import FACTS, needs_embedded, question_about

pytestmark = [needs_embedded, pytest.mark.timeout(600)]

PROMPT = PromptTemplate.from_template("{input}")
WAYS = ("invoke", "ainvoke", "stream", "astream")


def each_way(*quick: tuple[type, str]) -> pytest.MarkDecorator:
    """Each class asked in each way, for another fact in each; what is not in `quick` is slow."""
    cases = [
        pytest.param(
            kind, way, fact, id=f"{kind.__name__}-{way}", marks=() if (kind, way) in quick else pytest.mark.slow
        )
        for kind in (FocusLLM, ChatFocusLLM)
        for way, fact in zip(WAYS, FACTS, strict=True)
    ]
    return pytest.mark.parametrize(("kind", "way", "fact"), cases)


@pytest.fixture(scope="module")
def book() -> Document:
    return Document(embedded.book(), id="book", metadata={"title": "A long book"})


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


def answering(kind: type) -> Any:
    return create_focus_documents_chain(kind(), PROMPT)


@each_way((FocusLLM, "invoke"), (ChatFocusLLM, "stream"))
async def test_a_chain_over_the_whole_document_finds_it(book: Document, kind: type, way: str, fact: Fact) -> None:
    assert fact.value in await ask(answering(kind), way, {"context": [book], "input": question_about(fact)})


@each_way((ChatFocusLLM, "invoke"))
async def test_retrieval_of_the_whole_document_finds_it(
    retriever: WholeDocumentRetriever, book: Document, kind: type, way: str, fact: Fact
) -> None:
    """The passage with the fact need not be among the hits: its document is enough."""
    question = question_about(fact)
    assert book in retriever.invoke(question)
    assert fact.value in await ask(create_retrieval_chain(retriever, answering(kind)), way, {"input": question})
