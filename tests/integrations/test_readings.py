"""Reading progress where programs look for it: LangChain's custom events, LlamaIndex's instrumentation."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import uuid4

import pytest
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.query_engine import RetrieverQueryEngine

from focus_integrations.langchain import READING_EVENT, ChatFocusLLM
from focus_integrations.langchain import FocusLLM as LangChainLLM
from focus_integrations.llama_index import FocusLLM as LlamaIndexLLM
from focus_integrations.llama_index import FocusReadingEvent, FocusSynthesizer
from tests.integrations.llama_index.drivers import Found, listening, nodes_of

CHUNK = 64  # of the tiny model, whose tokens are bytes
_numbers = count()


def new_document(chunks: int = 3) -> str:
    """A text that no engine has read yet."""
    number = next(_numbers)
    return "".join(f"{__name__} {number}.{chunk} ".ljust(CHUNK, "x") for chunk in range(chunks))


def assert_counted(told: list[dict[str, Any]], chunks: int = 3) -> None:
    """One before the first pass and one after each, in order."""
    assert [(one["total"], one["cached"], one["read"]) for one in told] == [
        (chunks, 0, read) for read in range(chunks + 1)
    ]
    assert all(set(one) == {"total", "cached", "read", "seconds"} for one in told)


@pytest.fixture
def settings(tiny_settings: dict[str, Any]) -> dict[str, Any]:
    return {**tiny_settings, "max_tokens": 2, "parallel_chunks": 1, "method": "focus"}


# --- LangChain --------------------------------------------------------------------------------------------------------


@dataclass
class Heard:
    """What a handler has got.

    Attributes:
        threads: in which its readings came
        order: "reading" and "token" as they came
    """

    data: list[dict[str, Any]] = field(default_factory=list)
    runs: list[Any] = field(default_factory=list)
    started: list[Any] = field(default_factory=list)
    tags: list[Any] = field(default_factory=list)
    threads: set[int] = field(default_factory=set)
    order: list[str] = field(default_factory=list)

    def add(self, name: str, data: Any, run_id: Any, tags: Any) -> None:
        assert name == READING_EVENT == "focusllm_reading"
        self.data.append(data)
        self.runs.append(run_id)
        self.tags.append(tags)
        self.threads.add(threading.get_ident())
        self.order.append("reading")


class Listener(BaseCallbackHandler):
    def __init__(self) -> None:
        self.heard = Heard()

    def on_llm_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.heard.started.append(run_id)

    def on_chat_model_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.heard.started.append(run_id)

    def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        self.heard.order.append("token")

    def on_custom_event(self, name: str, data: Any, *, run_id: Any, tags: Any = None, **_: Any) -> None:
        self.heard.add(name, data, run_id, tags)


class AsyncListener(AsyncCallbackHandler):
    def __init__(self) -> None:
        self.heard = Heard()

    async def on_chat_model_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.heard.started.append(run_id)

    async def on_llm_start(self, *_: Any, run_id: Any, **__: Any) -> None:
        self.heard.started.append(run_id)

    async def on_llm_new_token(self, *_: Any, **__: Any) -> None:
        self.heard.order.append("token")

    async def on_custom_event(self, name: str, data: Any, *, run_id: Any, tags: Any = None, **_: Any) -> None:
        await asyncio.sleep(0.01)
        self.heard.add(name, data, run_id, tags)


@pytest.fixture(params=[LangChainLLM, ChatFocusLLM], ids=["LLM", "chat"])
def model(request: pytest.FixtureRequest, settings: dict[str, Any]) -> Any:
    return request.param(**settings)


@pytest.mark.parametrize("way", ["invoke", "stream", "batch"])
def test_langchain_hears_of_it_before_the_answer(model: Any, way: str) -> None:
    listener, documents = Listener(), [new_document()]
    config: Any = {"callbacks": [listener], "tags": ["mine"]}
    if way == "invoke":
        model.invoke("Who?", config, documents=documents)
    elif way == "stream":
        list(model.stream("Who?", config, documents=documents))
    else:
        model.batch(["Who?"], config, documents=documents)
    heard = listener.heard
    assert_counted(heard.data)
    assert heard.runs == heard.started * 4
    assert heard.tags == [["mine"]] * 4
    assert heard.order[:4] == ["reading"] * 4


@pytest.mark.parametrize("listening_class", [Listener, AsyncListener])
@pytest.mark.parametrize("way", ["ainvoke", "astream", "abatch"])
async def test_langchain_hears_of_it_where_it_awaits(model: Any, way: str, listening_class: Any) -> None:
    """Handlers of an awaited call belong to its event loop; a slow one still gets all of it, in order."""
    listener, documents = listening_class(), [new_document()]
    config: Any = {"callbacks": [listener]}
    if way == "ainvoke":
        await model.ainvoke("Who?", config, documents=documents)
    elif way == "astream":
        _ = [piece async for piece in model.astream("Who?", config, documents=documents)]
    else:
        await model.abatch(["Who?"], config, documents=documents)
    heard = listener.heard
    assert_counted(heard.data)
    assert heard.runs == heard.started * 4
    assert heard.order[:4] == ["reading"] * 4
    if listening_class is AsyncListener:
        assert heard.threads == {threading.get_ident()}


async def test_a_chat_that_streams_under_the_surface_tells_it(settings: dict[str, Any]) -> None:
    chat, listener = ChatFocusLLM(**settings, streaming=True), Listener()
    chat.invoke("Who?", {"callbacks": [listener]}, documents=[new_document()])
    assert_counted(listener.heard.data)
    await chat.ainvoke("Who?", {"callbacks": [listener]}, documents=[new_document()])
    assert_counted(listener.heard.data[4:])
    assert listener.heard.runs == [run for run in listener.heard.started for _ in range(4)]


def test_a_listener_may_ask_the_model_itself(model: Any) -> None:
    """What is asked inside a call is a run of its own."""

    class Asking(Listener):
        def on_custom_event(self, *args: Any, **more: Any) -> None:
            super().on_custom_event(*args, **more)
            if self.heard.data[-1]["read"] == 1:
                list(model.stream("Where?", {"callbacks": [inner]}, documents=[inside]))

    outer, inner, inside = Asking(), Listener(), new_document()
    list(model.stream("Who?", {"callbacks": [outer]}, documents=[new_document()]))
    assert_counted(outer.heard.data)
    assert_counted(inner.heard.data)
    assert inner.heard.runs == inner.heard.started * 4


@pytest.mark.parametrize("given", [None, "run"])
def test_a_stream_has_the_run_id_that_it_is_given(settings: dict[str, Any], given: Any) -> None:
    listener, run_id = Listener(), uuid4()
    config: Any = {"callbacks": [listener], **({"run_id": run_id} if given else {})}
    list(ChatFocusLLM(**settings).stream("Who?", config, documents=[new_document()]))
    assert (listener.heard.started == [run_id]) == bool(given)
    assert listener.heard.runs == listener.heard.started * 4


async def test_events_of_a_chain_show_it(model: Any) -> None:
    chain = RunnableLambda(lambda question: question) | model.bind(documents=[new_document()])
    events = [event async for event in chain.astream_events("Who?", version="v2")]
    custom = [event for event in events if event["event"] == "on_custom_event"]
    assert_counted([event["data"] for event in custom])
    assert {event["name"] for event in custom} == {"focusllm_reading"}
    starts = [event["run_id"] for event in events if event["event"] in ("on_llm_start", "on_chat_model_start")]
    assert {event["run_id"] for event in custom} == set(starts)


def test_what_was_read_before_is_one_event(model: Any) -> None:
    listener, documents = Listener(), [new_document()]
    model.invoke("Who?", documents=documents)
    model.invoke("Where?", {"callbacks": [listener]}, documents=documents)
    assert [(one["total"], one["cached"], one["read"]) for one in listener.heard.data] == [(3, 3, 0)]


def test_nothing_is_told_where_no_chunks_are_read(model: Any) -> None:
    listener = Listener()
    model.invoke("Who?", {"callbacks": [listener]}, documents=[new_document()], method="plain")
    assert listener.heard.started
    assert not listener.heard.data


async def test_a_listener_that_raises_ends_the_call_if_it_says_so(model: Any) -> None:
    class Broken(Listener):
        raise_error = True

        def on_custom_event(self, *_: Any, **__: Any) -> None:
            raise RuntimeError("no more")

    config: Any = {"callbacks": [Broken()]}
    with pytest.raises(RuntimeError, match="no more"):
        model.invoke("Who?", config, documents=[new_document()])
    with pytest.raises(RuntimeError, match="no more"):
        await model.ainvoke("Who?", config, documents=[new_document()])
    assert model.invoke("Who?")


async def test_a_cancelled_call_tells_nobody_any_more(model: Any) -> None:
    """And leaves no thread that waits for an event loop."""
    seen = asyncio.Event()

    class First(AsyncListener):
        async def on_custom_event(self, *args: Any, **more: Any) -> None:
            await super().on_custom_event(*args, **more)
            seen.set()

    listener = First()
    task = asyncio.create_task(model.ainvoke("Who?", {"callbacks": [listener]}, documents=[new_document(6)]))
    await seen.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    told = len(listener.heard.data)
    await asyncio.sleep(0.1)
    assert len(listener.heard.data) == told


# --- LlamaIndex -------------------------------------------------------------------------------------------------------


def told_of(events: Any) -> list[dict[str, Any]]:
    found = events.named("FocusReadingEvent")
    assert all(isinstance(event, FocusReadingEvent) for event in found)
    names = ("total", "cached", "read", "seconds")
    return [{name: getattr(event, name) for name in names} for event in found]


@pytest.mark.parametrize("way", ["complete", "stream_complete", "chat", "stream_chat"])
def test_llama_index_hears_of_it(settings: dict[str, Any], way: str) -> None:
    asked: Any = [ChatMessage(role="user", content="Who?")] if "chat" in way else "Who?"
    with listening() as events:
        answer = getattr(LlamaIndexLLM(**settings), way)(asked, documents=[new_document()])
        list(answer) if way.startswith("stream") else None
    assert_counted(told_of(events))


@pytest.mark.parametrize("way", ["acomplete", "astream_complete", "achat", "astream_chat"])
async def test_llama_index_hears_of_it_where_it_awaits(settings: dict[str, Any], way: str) -> None:
    asked: Any = [ChatMessage(role="user", content="Who?")] if "chat" in way else "Who?"
    with listening() as events:
        answer = await getattr(LlamaIndexLLM(**settings), way)(asked, documents=[new_document()])
        _ = [piece async for piece in answer] if "stream" in way else None
    assert_counted(told_of(events))


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_query_engine_hears_of_it_inside_the_spans_of_its_query(
    settings: dict[str, Any], streaming: bool
) -> None:
    synthesizer = FocusSynthesizer(LlamaIndexLLM(**settings), streaming=streaming)
    with listening() as events:
        query_engine = RetrieverQueryEngine(Found(nodes_of(new_document())), response_synthesizer=synthesizer)
        str(query_engine.query("Who?"))
    assert_counted(told_of(events))
    query_engine = RetrieverQueryEngine(Found(nodes_of(new_document())), response_synthesizer=synthesizer)
    with listening() as events:
        response: Any = await query_engine.aquery("Who?")
        _ = [text async for text in response.response_gen] if streaming else None
    assert_counted(told_of(events))
    if not streaming:
        spans = {event.span_id for event in events.named("FocusReadingEvent")}
        assert spans <= {event.span_id for event in events.named("LLMChatStartEvent")}
        assert None not in spans
