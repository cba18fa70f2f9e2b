"""Batches: questions that are asked together share the engine's passes, and get the answers of single questions."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from inspect import isawaitable
from typing import Any

import pytest
from langchain_core.caches import BaseCache, InMemoryCache
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompts import ChatPromptTemplate

from focus_core import ContextOverflowError, FocusEngine
from focus_core.errors import ConfigError
from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.conformance import TOKENS
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall, break_after, count_steps, delay_first_token, wait_until_idle

DOCUMENT = "The gates were closed at noon, and nobody saw the keeper again. " * 6
MIXED = ["Who?", "What did the keeper of the northern gate say to the baker that morning?", "x", "Why? " * 9]
EIGHT: list[Any] = [f"Who is number {number}?" for number in range(8)]


def about(document: str, question: str) -> list[HumanMessage]:
    return [HumanMessage([create_plaintext_block(text=document), create_text_block(question)])]  # type: ignore[list-item]


def in_time(work: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `work` returns; fails where it hangs."""
    results: list[Any] = []
    thread = threading.Thread(target=lambda: results.append(work()), daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "it hangs"
    return results[0]


# --- both classes -----------------------------------------------------------------------------------------------------


async def test_a_batch_equals_single_questions(model: Any) -> None:
    """Questions of different lengths stand side by side in it."""
    singles = [text_of(model.invoke(question, documents=[DOCUMENT])) for question in MIXED]
    assert [text_of(answer) for answer in model.batch(MIXED, documents=[DOCUMENT])] == singles
    assert [text_of(answer) for answer in await model.abatch(MIXED, documents=[DOCUMENT])] == singles
    assert len(set(singles)) > 1


async def test_a_batch_shares_the_engines_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight answers one after the other would take eight times the steps of one."""
    model.invoke(EIGHT[0], documents=[DOCUMENT])  # prefills
    steps = count_steps(monkeypatch, seconds=0.02)
    model.batch(EIGHT, documents=[DOCUMENT])
    assert sum(steps) == len(EIGHT) * (TOKENS - 1)
    assert len(steps) < 3 * TOKENS
    steps.clear()
    await model.abatch(EIGHT, documents=[DOCUMENT])
    assert sum(steps) == len(EIGHT) * (TOKENS - 1)
    assert len(steps) < 3 * TOKENS


def test_streams_share_them_too(chat: ChatFocusLLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a batch is made of streams, so that callbacks see every token."""
    streaming = chat.model_copy(update={"streaming": True})
    expected = [answer.content for answer in chat.batch(EIGHT, documents=[DOCUMENT])]
    steps = count_steps(monkeypatch, seconds=0.02)
    assert [answer.content for answer in streaming.batch(EIGHT, documents=[DOCUMENT])] == expected
    assert len(steps) < 3 * TOKENS


async def test_max_concurrency_bounds_how_many_run_together(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each question of a batch takes memory; this is LangChain's way to limit it."""
    singles = [text_of(model.invoke(question, documents=[DOCUMENT], max_tokens=5)) for question in MIXED]
    steps = count_steps(monkeypatch)
    answers = model.batch(MIXED, {"max_concurrency": 2}, documents=[DOCUMENT], max_tokens=5)
    answers += await model.abatch(MIXED, {"max_concurrency": 2}, documents=[DOCUMENT], max_tokens=5)
    assert [text_of(answer) for answer in answers] == singles * 2
    assert max(steps) == 2


async def test_a_batch_may_be_larger_than_the_thread_pool(model: Any) -> None:
    """By default LangChain and asyncio have few threads: questions must not wait for each other for ever."""
    questions = [f"Who is number {number}?" for number in range(min(32, (os.cpu_count() or 1) + 4) + 9)]
    assert len(in_time(lambda: model.batch(questions, max_tokens=1))) == len(questions)
    assert len(await asyncio.wait_for(model.abatch(questions, max_tokens=1), 60)) == len(questions)


def test_an_empty_batch_has_no_answers(model: Any, asked: list[EngineCall]) -> None:
    assert model.batch([]) == []
    assert not asked


def test_every_member_of_a_batch_may_have_its_own_config(model: Any) -> None:
    configs: list[Any] = [{"run_name": "first", "tags": ["a"]}, {"metadata": {"n": 2}}]
    assert len(model.batch(["Who?", "What?"], configs, max_tokens=2)) == 2


async def test_a_batch_leaves_the_event_loop_running(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    delay_first_token(monkeypatch, 0.5)
    task, ticks = asyncio.ensure_future(model.abatch(MIXED[:2], documents=[DOCUMENT], max_tokens=2)), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert len(await task) == 2
    assert ticks > 10


def test_a_batch_through_a_chain_shares_passes(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain runs a chain's batch step by step."""
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model.bind(documents=[DOCUMENT])
    chain.invoke({"question": "Who?"})
    steps = count_steps(monkeypatch, seconds=0.02)
    assert len(chain.batch([{"question": question} for question in EIGHT])) == len(EIGHT)
    assert len(steps) < 3 * TOKENS


def test_an_error_of_a_batch_is_raised_or_returned(model: Any) -> None:
    huge = ["y " * 200_000]
    with pytest.raises(ContextOverflowError):
        model.batch(["Who?", "What?"], documents=huge)
    returned = model.batch(["Who?", "What?"], documents=huge, return_exceptions=True)
    assert [type(one) for one in returned] == [ContextOverflowError] * 2


def test_an_error_in_mid_batch_reaches_the_caller(
    model: Any, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All questions of a pass that fails fail with it, and the next ones are answered."""
    with monkeypatch.context() as patch:
        break_after(patch, steps=3)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            model.batch(MIXED, documents=[DOCUMENT])
    wait_until_idle(engine)
    assert text_of(model.invoke("Who?", documents=[DOCUMENT]))


async def test_several_questions_at_the_same_time_get_their_own_answers(model: Any) -> None:
    expected = [text_of(model.invoke(question, max_tokens=6)) for question in MIXED]
    answers = await asyncio.gather(*(model.ainvoke(question, max_tokens=6) for question in MIXED))
    assert list(map(text_of, answers)) == expected


async def test_a_cancelled_batch_stops_the_work(
    model: Any, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.invoke("Who?", documents=[DOCUMENT], max_tokens=1)
    steps = count_steps(monkeypatch, seconds=0.05)
    task = asyncio.ensure_future(model.abatch(EIGHT, documents=[DOCUMENT], max_tokens=200))
    while len(steps) < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.to_thread(wait_until_idle, engine)
    assert len(steps) < 60


# --- callbacks that ask, too ------------------------------------------------------------------------------------------


class Asking(BaseCallbackHandler):
    """Asks a model when another answer begins, and when it ends: a guard, for example."""

    raise_error = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: list[str] = []

    def _ask(self) -> None:
        self.seen.append(text_of(self.model.invoke("Is this allowed?", documents=[DOCUMENT], max_tokens=2)))

    def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        self._ask()

    def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        self._ask()

    def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        self._ask()
        self._ask()


class AskingLater(AsyncCallbackHandler):
    """The same, awaited."""

    raise_error = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.seen: list[str] = []

    async def _ask(self) -> None:
        self.seen.append(text_of(await self.model.ainvoke("Is this allowed?", documents=[DOCUMENT], max_tokens=2)))

    async def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
        await self._ask()

    async def on_llm_start(self, serialized: Any, prompts: Any, **kwargs: Any) -> None:
        await self._ask()

    async def on_llm_end(self, response: Any, **kwargs: Any) -> None:
        await self._ask()
        await self._ask()


class Alike(BaseCache):
    """Asks a model whether two questions mean the same, before it answers and when it stores: a semantic cache."""

    _OWN = "Do these mean the same?"

    def __init__(self) -> None:
        self.model: Any = None
        self.seen: list[str] = []
        self.answers: dict[tuple[str, str], Any] = {}

    def _ask(self) -> None:
        self.seen.append(text_of(self.model.invoke(self._OWN, documents=[DOCUMENT], max_tokens=2)))

    def lookup(self, prompt: str, llm_string: str) -> Any:
        if self._OWN in prompt:  # it asks the model that it is the cache of
            return None
        self._ask()
        return self.answers.get((prompt, llm_string))

    def update(self, prompt: str, llm_string: str, return_val: Any) -> None:
        if self._OWN not in prompt:
            self._ask()
            self.answers[prompt, llm_string] = return_val

    def clear(self, **kwargs: Any) -> None:
        self.answers.clear()


@pytest.mark.parametrize("documents", [[DOCUMENT], None], ids=["chunks", "plain"])
async def test_a_callback_may_ask_the_same_model(model: Any, documents: Any) -> None:
    """Its question joins those of the batch, and neither waits for the other for ever."""
    expected = [text_of(answer) for answer in model.batch(EIGHT, documents=documents, max_tokens=3)]
    asking = Asking(model)
    config: Any = {"callbacks": [asking]}
    answers = in_time(lambda: model.batch(EIGHT, config, documents=documents, max_tokens=3))
    assert list(map(text_of, answers)) == expected
    answers = await asyncio.wait_for(model.abatch(EIGHT, config, documents=documents, max_tokens=3), 60)
    assert list(map(text_of, answers)) == expected
    assert len(asking.seen) == 6 * len(EIGHT)


async def test_a_callback_may_await_the_same_model(model: Any) -> None:
    options: Any = {"documents": [DOCUMENT], "max_tokens": 3}
    expected = [text_of(answer) for answer in model.batch(EIGHT, **options)]
    asking = AskingLater(model)
    config: Any = {"callbacks": [asking]}
    assert [text_of(one) for one in await asyncio.wait_for(model.abatch(EIGHT, config, **options), 60)] == expected

    async def collected() -> str:
        return "".join([text_of(piece) async for piece in model.astream(EIGHT[0], config, **options)])

    assert await asyncio.wait_for(collected(), 60) == expected[0]
    assert len(asking.seen) == 3 * (len(EIGHT) + 1)


def test_callbacks_in_threads_may_ask_the_same_model(model: Any) -> None:
    options: Any = {"documents": [DOCUMENT], "max_tokens": 3}
    expected = [text_of(answer) for answer in model.batch(EIGHT, **options)]
    asking = Asking(model)

    def ask(question: str) -> str:
        return text_of(model.invoke(question, {"callbacks": [asking]}, **options))

    def work() -> list[str]:
        with ThreadPoolExecutor(len(EIGHT)) as threads:
            return list(threads.map(ask, EIGHT))

    assert in_time(work) == expected
    assert len(asking.seen) == 3 * len(EIGHT)


async def test_a_cache_may_ask_the_model_that_it_is_the_cache_of(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    options: Any = {"documents": [DOCUMENT], "max_tokens": 3}
    expected = [text_of(answer) for answer in model_class(**tiny_settings).batch(EIGHT, **options)]
    for ask in (
        lambda model: in_time(lambda: model.batch(EIGHT, **options)),
        lambda model: asyncio.wait_for(model.abatch(EIGHT, **options), 60),
        lambda model: asyncio.wait_for(asyncio.gather(*(model.ainvoke(one, **options) for one in EIGHT)), 60),
    ):
        cache = Alike()
        cache.model = model_class(**tiny_settings, cache=cache)
        for _ in range(2):
            answers = ask(cache.model)
            answers = await answers if isawaitable(answers) else answers
            assert list(map(text_of, answers)) == expected
        assert len(cache.seen) == 3 * len(EIGHT)  # looked up twice, stored once
        assert len(cache.answers) == len(EIGHT)


async def test_a_callback_may_ask_while_an_answer_streams(model: Any) -> None:
    """Between two tokens of a stream the engine is free."""

    class PerToken(Asking):
        def on_llm_new_token(self, token: Any, **kwargs: Any) -> None:
            self._ask()

    expected = text_of(model.invoke("Who?", documents=[DOCUMENT], max_tokens=3))
    asking = PerToken(model)
    config: Any = {"callbacks": [asking]}
    options: Any = {"documents": [DOCUMENT], "max_tokens": 3}
    streamed = in_time(lambda: "".join(map(text_of, model.stream("Who?", config, **options))))
    assert streamed == expected

    async def collected() -> str:
        return "".join([text_of(piece) async for piece in model.astream("Who?", config, **options)])

    assert await asyncio.wait_for(collected(), 60) == expected
    assert len(asking.seen) > 6


def test_the_consumer_of_a_stream_may_ask_between_two_pieces(model: Any) -> None:
    """In the same thread, where a lock that a stream held would never be released."""
    options: Any = {"documents": [DOCUMENT], "max_tokens": 6}
    expected = text_of(model.invoke("Who?", **options))

    def work() -> tuple[str, list[str]]:
        pieces, others = [], []
        for piece in model.stream("Who?", **options):
            pieces.append(text_of(piece))
            others.append(text_of(model.invoke("Who?", **options)))
        return "".join(pieces), others

    streamed, others = in_time(work)
    assert streamed == expected
    assert set(others) == {expected}


# --- the chat class ---------------------------------------------------------------------------------------------------


def test_messages_with_their_own_documents_share_passes_with_those_of_the_same(
    chat: ChatFocusLLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = "Another story altogether, about the sea. " * 8
    inputs = [about(DOCUMENT, "Who?"), about(other, "Who?"), about(DOCUMENT, "What else?")]
    singles = [chat.invoke(messages).content for messages in inputs]
    steps = count_steps(monkeypatch, seconds=0.02)
    assert [answer.content for answer in chat.batch(inputs)] == singles  # type: ignore[arg-type]
    assert max(steps) == 2


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_input_spoils_only_its_own_answer(chat: ChatFocusLLM, place: int) -> None:
    """It never reaches the engine; the others must not wait for it."""
    inputs: list[Any] = ["Who?", "What?"]
    inputs.insert(place, [HumanMessage("Add."), ToolMessage("5", tool_call_id="1")])
    answers = in_time(lambda: chat.batch(inputs, return_exceptions=True, max_tokens=3))
    assert isinstance(answers.pop(place), ConfigError)
    assert [answer.content for answer in answers] == [
        chat.invoke(question, max_tokens=3).content for question in ("Who?", "What?")
    ]
    with pytest.raises(ConfigError, match="ToolMessage"):
        chat.batch(inputs, max_tokens=3)


async def test_a_question_that_does_not_fit_spoils_only_its_own_answer(chat: ChatFocusLLM) -> None:
    """Found by the engine, while others are under way."""
    inputs = ["Who?", "y " * 400_000, "What?"]
    expected = [chat.invoke(question, max_tokens=3).content for question in ("Who?", "What?")]
    for answers in (
        chat.batch(inputs, return_exceptions=True, max_tokens=3),  # type: ignore[arg-type]
        await chat.abatch(inputs, return_exceptions=True, max_tokens=3),  # type: ignore[arg-type]
    ):
        assert isinstance(answers[1], ContextOverflowError)
        assert [answers[0].content, answers[2].content] == expected


def test_a_response_cache_answers_its_part_of_a_batch(tiny_settings: dict[str, Any], asked: list[EngineCall]) -> None:
    chat = ChatFocusLLM(**tiny_settings, cache=InMemoryCache())
    known = chat.invoke("Who?", max_tokens=3).content
    asked.clear()
    answers = chat.batch(["What?", "Who?", "Why?"], max_tokens=3)
    assert answers[1].content == known
    assert sorted(call.question for call in asked) == ["What?", "Why?"]
    chat.batch(["Why?", "Who?"], max_tokens=3)
    assert len(asked) == 2


def test_settings_of_a_batch_hold_for_all(chat: ChatFocusLLM, llm: FocusLLM) -> None:
    for model in (chat, llm):
        answers = model.batch(["Who?", "What?"], max_tokens=2, temperature=2.0, seed=1)
        single = model.invoke("What?", max_tokens=2, temperature=2.0, seed=1)
        assert text_of(answers[1]) == text_of(single)
