"""How LlamaIndex's classes are driven by the conformance tests, and what the other tests here share."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from zlib import crc32

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document, NodeWithScore, QueryBundle, TextNode

from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.conformance import Reply


class Events(BaseEventHandler):
    """Keeps every instrumentation event."""

    seen: list[BaseEvent] = []  # noqa: RUF012 (a pydantic field)

    @classmethod
    def class_name(cls) -> str:
        return "Events"

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        self.seen.append(event)

    def named(self, name: str) -> list[Any]:
        return [event for event in self.seen if event.class_name() == name]


@contextmanager
def listening() -> Iterator[Events]:
    """LlamaIndex's instrumentation events while this is open."""
    root, events = get_dispatcher(), Events()
    root.add_event_handler(events)
    try:
        yield events
    finally:
        root.event_handlers.remove(events)


def counting() -> TokenCountingHandler:
    """LlamaIndex's own token counter, with a tokenizer that no right number can come from."""
    return TokenCountingHandler(tokenizer=lambda text: [0] * 1_000_000)


class TinyEmbedding(BaseEmbedding):
    """A hashed bag of words of four letters and more: the same words give the same vector, offline and in no time."""

    def _get_text_embedding(self, text: str) -> list[float]:
        vector = [0.0] * 512
        for word in re.findall(r"[a-z0-9]{4,}", text.lower()):
            vector[crc32(word.encode()) % 512] += 1.0
        return vector

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return self._get_text_embedding(query)


class Found(BaseRetriever):
    """A retriever that always finds the same."""

    def __init__(self, nodes: Sequence[NodeWithScore]) -> None:
        super().__init__()
        self._nodes = list(nodes)

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return list(self._nodes)


def nodes_of(*texts: str) -> list[NodeWithScore]:
    """One node per text, each a document of its own."""
    return [NodeWithScore(node=TextNode(text=text)) for text in texts]


def as_documents(*texts: str) -> list[Document]:
    """Documents with the ids doc-0, doc-1, …"""
    return [Document(text=text, id_=f"doc-{number}") for number, text in enumerate(texts)]


class CompleteDriver:
    def __init__(self, **settings: Any) -> None:
        self.llm = FocusLLM(**settings)

    def ask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(self.llm.complete(question, documents=documents, **options))

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(await self.llm.acomplete(question, documents=documents, **options))

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]:
        for response in self.llm.stream_complete(question, documents=documents, **options):
            yield response.delta or ""

    async def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]:
        stream = await self.llm.astream_complete(question, documents=documents, **options)
        try:
            async for response in stream:
                yield response.delta or ""
        finally:
            await stream.aclose()

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        *_, last = self.llm.stream_complete(question, documents=documents, **options)
        return _reply(last)

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        stream = await self.llm.astream_complete(question, documents=documents, **options)
        return _reply([response async for response in stream][-1])

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        handlers = {"complete": counting(), "stream_complete": counting()}
        for name, handler in handlers.items():
            self.llm.callback_manager = CallbackManager([handler])
            answer = getattr(self.llm, name)(question, documents=documents)
            list(answer) if name.startswith("stream") else None
        return {name: len(handler.llm_token_counts) for name, handler in handlers.items()}


class ChatDriver(CompleteDriver):
    def ask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(self.llm.chat(_user(question), documents=documents, **options))

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(await self.llm.achat(_user(question), documents=documents, **options))

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]:
        for response in self.llm.stream_chat(_user(question), documents=documents, **options):
            yield response.delta or ""

    async def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]:
        stream = await self.llm.astream_chat(_user(question), documents=documents, **options)
        try:
            async for response in stream:
                yield response.delta or ""
        finally:
            await stream.aclose()

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        *_, last = self.llm.stream_chat(_user(question), documents=documents, **options)
        return _reply(last)

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        stream = await self.llm.astream_chat(_user(question), documents=documents, **options)
        return _reply([response async for response in stream][-1])

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        handlers = {"chat": counting(), "stream_chat": counting()}
        for name, handler in handlers.items():
            self.llm.callback_manager = CallbackManager([handler])
            answer = getattr(self.llm, name)(_user(question), documents=documents)
            list(answer) if name.startswith("stream") else None
        return {name: len(handler.llm_token_counts) for name, handler in handlers.items()}


class QueryEngineDriver:
    """The synthesizer behind a query engine, over one node for each document."""

    def __init__(self, **settings: Any) -> None:
        self.llm = FocusLLM(**settings)

    def _engine(self, documents: list[str], streaming: bool = False) -> RetrieverQueryEngine:
        synthesizer = FocusSynthesizer(self.llm, streaming=streaming)
        return RetrieverQueryEngine(Found(nodes_of(*documents)), response_synthesizer=synthesizer)

    def ask(self, question: str, documents: list[str], **options: Any) -> Reply:
        response = self._engine(documents).query(question)
        return _told(str(response), response.metadata)

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply:
        response = await self._engine(documents).aquery(question)
        return _told(str(response), response.metadata)

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]:
        yield from self._engine(documents, streaming=True).query(question).response_gen  # type: ignore[union-attr]

    async def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]:
        response = await self._engine(documents, streaming=True).aquery(question)
        stream = response.response_gen  # type: ignore[union-attr]
        try:
            async for text in stream:  # type: ignore[union-attr]
                yield text
        finally:
            await stream.aclose()  # type: ignore[union-attr]

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        response = self._engine(documents, streaming=True).query(question)
        return _told(str(response), response.metadata)

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        response = await self._engine(documents, streaming=True).aquery(question)
        text = "".join([text async for text in response.async_response_gen()])  # type: ignore[union-attr]
        return _told(text, response.metadata)

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        counts = {}
        for streaming in (False, True):
            handler = counting()
            self.llm.callback_manager = CallbackManager([handler])
            str(self._engine(documents, streaming=streaming).query(question))
            counts[f"streaming={streaming}"] = len(handler.llm_token_counts)
        return counts


def _user(text: str) -> list[ChatMessage]:
    return [ChatMessage(role="user", content=text)]


def _reply(response: CompletionResponse | ChatResponse) -> Reply:
    raw = response.raw
    assert isinstance(raw, dict)
    usage, text = raw["usage"], response.text if isinstance(response, CompletionResponse) else response.message.content
    return Reply(text or "", usage["input_tokens"], usage["output_tokens"], raw["finish_reason"], raw["method"])


def _told(text: str, metadata: dict[str, Any] | None) -> Reply:
    assert metadata is not None
    usage = metadata["focus"]
    return Reply(text, usage["input_tokens"], usage["output_tokens"], usage["finish_reason"], usage["method"])
