"""How LangChain's two classes are driven by the conformance tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import GenerationChunk, LLMResult

from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.conformance import Reply


class Ends(BaseCallbackHandler):
    """Counts the answers that LangChain reports."""

    def __init__(self) -> None:
        self.results: list[LLMResult] = []

    def on_llm_end(self, response: LLMResult, **kwargs: Any) -> None:
        self.results.append(response)


class ChatDriver:
    def __init__(self, **settings: Any) -> None:
        self.chat = ChatFocusLLM(**settings)

    def ask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(self.chat.invoke(question, documents=documents, **options))

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _reply(await self.chat.ainvoke(question, documents=documents, **options))

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]:
        stream = self.chat.stream(question, documents=documents, **options)
        try:
            for chunk in stream:
                yield str(chunk.content)
        finally:
            stream.close()  # type: ignore[attr-defined]

    async def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]:
        stream = self.chat.astream(question, documents=documents, **options)
        try:
            async for chunk in stream:
                yield str(chunk.content)
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        whole = None
        for chunk in self.chat.stream(question, documents=documents, **options):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return _reply(whole)

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        whole = None
        async for chunk in self.chat.astream(question, documents=documents, **options):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None
        return _reply(whole)

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        asked, streamed = Ends(), Ends()
        self.chat.invoke(question, {"callbacks": [asked]}, documents=documents)
        for _ in self.chat.stream(question, {"callbacks": [streamed]}, documents=documents):
            pass
        return {"invoke": len(asked.results), "stream": len(streamed.results)}


class LLMDriver:
    def __init__(self, **settings: Any) -> None:
        self.llm = FocusLLM(**settings)

    def ask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _first(self.llm.generate([question], documents=documents, **options))

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply:
        return _first(await self.llm.agenerate([question], documents=documents, **options))

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]:
        stream = self.llm.stream(question, documents=documents, **options)
        try:
            yield from stream
        finally:
            stream.close()  # type: ignore[attr-defined]

    async def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]:
        stream = self.llm.astream(question, documents=documents, **options)
        try:
            async for text in stream:
                yield text
        finally:
            await stream.aclose()  # type: ignore[attr-defined]

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        ends = Ends()
        for _ in self.llm.stream(question, {"callbacks": [ends]}, documents=documents, **options):
            pass
        return _first(ends.results[0])

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        ends = Ends()
        async for _ in self.llm.astream(question, {"callbacks": [ends]}, documents=documents, **options):
            pass
        return _first(ends.results[0])

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        asked, streamed = Ends(), Ends()
        self.llm.invoke(question, {"callbacks": [asked]}, documents=documents)
        for _ in self.llm.stream(question, {"callbacks": [streamed]}, documents=documents):
            pass
        return {"invoke": len(asked.results), "stream": len(streamed.results)}


def _reply(message: AIMessage | AIMessageChunk) -> Reply:
    usage = message.usage_metadata
    assert usage is not None
    return Reply(
        str(message.content),
        usage["input_tokens"],
        usage["output_tokens"],
        message.response_metadata.get("finish_reason"),
        message.response_metadata.get("method"),
    )


def _first(result: LLMResult) -> Reply:
    generation = result.generations[0][0]
    info = generation.generation_info
    assert info is not None
    assert not isinstance(generation, GenerationChunk) or generation.text
    usage = info["usage_metadata"]
    return Reply(generation.text, usage["input_tokens"], usage["output_tokens"], info["finish_reason"], info["method"])
