"""Chat engines: documents of their model, turn by turn, and errors that reach the reader."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import Document

from focus_core import ContextOverflowError, FocusEngine
from focus_core.errors import ConfigError
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.llama_index.drivers import Found, as_documents, nodes_of
from tests.integrations.spies import EngineCall, Spy, break_after, count_steps, wait_until_idle

# LlamaIndex's thread raises what it hands to the reader as well.
in_a_thread = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")

LONG = "The first document, by Ada. " * 8


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    return Spy(monkeypatch).calls


def simple(llm: FocusLLM) -> SimpleChatEngine:
    """LlamaIndex's default memory is a database with threads of its own, which these tests need not wait for."""
    return SimpleChatEngine.from_defaults(llm=llm, memory=memory())


def memory() -> ChatMemoryBuffer:
    return ChatMemoryBuffer.from_defaults(tokenizer_fn=str.split)


# --- documents of the model -------------------------------------------------------------------------------------------


async def test_a_simple_chat_engine_reads_the_documents_of_its_model(
    tiny_settings: dict[str, Any], calls: list[EngineCall]
) -> None:
    """It has no way to hand over any. Every turn sees them, and the conversation."""
    chat = simple(FocusLLM(**tiny_settings, documents=as_documents(LONG, "second")))
    first = chat.chat("Who?")
    await chat.achat("And when?")
    list(chat.stream_chat("Where?").response_gen)
    assert [call.documents for call in calls] == [[LONG, "second"]] * 3
    assert [message["content"] for message in calls[1].questions[0]] == ["Who?", first.response, "And when?"]
    assert len(calls[2].questions[0]) == 5


def test_the_documents_are_prefilled_once(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    text = "A document that no other test has read. " * 9
    llm = FocusLLM(**tiny_settings, documents=text)
    assert llm.complete("Who?").raw["usage"]["cache_creation"] == engine.count_tokens(text)
    assert llm.chat([ChatMessage(content="When?")]).raw["usage"]["cache_creation"] == 0  # type: ignore[index]


def test_documents_of_the_call_follow_and_equal_ones_are_read_once(
    tiny_settings: dict[str, Any], calls: list[EngineCall]
) -> None:
    """Neither are dropped: a synthesizer's nodes and the model's documents are both read."""
    llm = FocusLLM(**tiny_settings, documents=["one", Document(text="two")])
    llm.complete("Who?", documents=["three", "two"])
    FocusSynthesizer(llm).synthesize("Who?", nodes_of("four"))
    assert [call.documents for call in calls] == [["one", "two", "three"], ["one", "two", "four"]]


def test_the_documents_can_be_changed_and_checked(tiny_settings: dict[str, Any], calls: list[EngineCall]) -> None:
    llm = FocusLLM(**tiny_settings)
    llm.documents = "one"
    llm.complete("Who?")
    llm.documents = None
    llm.complete("Who?")
    assert [call.documents for call in calls] == [["one"], []]


def test_copies_keep_the_documents_and_dumps_do_not_show_them(
    tiny_settings: dict[str, Any], engine: FocusEngine
) -> None:
    """Every event holds a dump of the model."""
    llm = FocusLLM(**tiny_settings, documents=Document(text=LONG, metadata={"file_name": "a.txt"}))
    for again in (copy.deepcopy(llm), pickle.loads(pickle.dumps(llm)), llm.model_copy(update={"temperature": 0.5})):
        assert [(document.text, document.name) for document in again.documents] == [(LONG, "a.txt")]
    assert "by Ada" not in f"{llm.to_dict()} {llm!r} {llm.model_json_schema()}"
    prepared = engine.prepare(LONG)
    assert copy.deepcopy(FocusLLM(**tiny_settings, documents=prepared)).documents == (prepared,)
    with pytest.raises(ConfigError, match=r"Prepared documents exist in this process only.*their texts"):
        pickle.dumps(FocusLLM(**tiny_settings, documents=prepared))


# --- errors -----------------------------------------------------------------------------------------------------------


def condensing(llm: FocusLLM, streaming: bool) -> CondenseQuestionChatEngine:
    synthesizer = FocusSynthesizer(llm, streaming=streaming)
    return CondenseQuestionChatEngine.from_defaults(
        RetrieverQueryEngine(Found(nodes_of(LONG)), response_synthesizer=synthesizer),
        llm=llm,
        memory=memory(),
    )


@in_a_thread
@pytest.mark.parametrize("kind", ["simple", "condensing"])
async def test_what_does_not_fit_is_an_error_of_every_turn(tiny_settings: dict[str, Any], kind: str) -> None:
    """No empty answer, and no thread that waits for ever."""
    llm = FocusLLM(**{**tiny_settings, "max_tokens": 100_000}, documents=LONG)
    chat = simple(llm) if kind == "simple" else condensing(llm, streaming=False)
    with pytest.raises(ContextOverflowError):
        chat.chat("Who?")
    with pytest.raises(ContextOverflowError):
        await chat.achat("Who?")
    chat = simple(llm) if kind == "simple" else condensing(llm, streaming=True)
    with pytest.raises(ContextOverflowError):
        list(chat.stream_chat("Who?").response_gen)


@in_a_thread
@pytest.mark.parametrize("kind", ["simple", "condensing"])
def test_an_error_in_mid_stream_reaches_the_reader(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A thread of LlamaIndex reads the stream; the chat's reader must not take its end for the answer's."""
    llm = FocusLLM(**tiny_settings, documents=LONG)
    chat = simple(llm) if kind == "simple" else condensing(llm, streaming=True)
    break_after(monkeypatch, 4)
    read: list[str] = []
    with pytest.raises(Exception, match="broken on purpose"):
        read.extend(chat.stream_chat("Who?").response_gen)


# --- streams of a server ----------------------------------------------------------------------------------------------

ENGINES: dict[str, Callable[[FocusLLM], Any]] = {
    "simple": simple,
    "condensing": lambda llm: condensing(llm, streaming=True),
    "context": lambda llm: ContextChatEngine.from_defaults(Found(nodes_of(LONG)), llm=llm, memory=memory()),
    "both": lambda llm: CondensePlusContextChatEngine.from_defaults(Found(nodes_of(LONG)), llm=llm, memory=memory()),
}


@pytest.mark.parametrize("kind", ENGINES)
async def test_every_request_of_a_server_gets_its_stream(tiny_settings: dict[str, Any], kind: str) -> None:
    """An engine for each request, one model for all; and a second turn."""
    llm = FocusLLM(**tiny_settings, documents=LONG)
    expected = (await ENGINES[kind](llm).achat("Who?")).response
    for _ in range(2):
        chat = ENGINES[kind](llm)
        pieces = [piece async for piece in (await chat.astream_chat("Who?")).async_response_gen()]
        assert len(pieces) > 3
        assert "".join(pieces).strip() == expected.strip()
    assert [piece async for piece in (await chat.astream_chat("And?")).async_response_gen()]
    assert [message.role.value for message in chat.chat_history] == ["user", "assistant"] * 2


@pytest.mark.parametrize("kind", ENGINES)
async def test_a_reader_that_has_gone_can_stop_the_model(
    tiny_settings: dict[str, Any], engine: FocusEngine, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """LlamaIndex reads the stream to its end, for the history, in a task: cancelling that is what the docs advise."""
    chat = ENGINES[kind](FocusLLM(**{**tiny_settings, "max_tokens": 200}, documents=LONG))
    response = await chat.astream_chat("Who?")
    stream = response.async_response_gen()
    await anext(stream)
    response.awrite_response_to_history_task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await stream.aclose()
    steps = count_steps(monkeypatch)
    await asyncio.to_thread(wait_until_idle, engine)
    assert len(steps) < 3
