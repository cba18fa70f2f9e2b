"""A batch is one call of the engine, and gives what single questions give."""

from __future__ import annotations

import asyncio
import os
from typing import Any, ClassVar

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompts import ChatPromptTemplate

from focus_core import ContextOverflowError, FocusEngine
from focus_core.errors import ConfigError
from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.langchain.conftest import EngineCall, text_of

DOCUMENT = "The gates were closed at noon, and nobody saw the keeper again. " * 6
MIXED = ["Who?", "What did the keeper of the northern gate say to the baker that morning?", "x", "Why? " * 9]


def about(document: str, question: str) -> list[HumanMessage]:
    return [HumanMessage([create_plaintext_block(text=document), create_text_block(question)])]  # type: ignore[list-item]


# --- both classes -----------------------------------------------------------------------------------------------------


async def test_a_batch_is_one_engine_call_and_equals_single_questions(model: Any, asked: list[EngineCall]) -> None:
    """Questions of different lengths stand side by side in it."""
    singles = [text_of(model.invoke(question, documents=[DOCUMENT])) for question in MIXED]
    asked.clear()
    assert [text_of(answer) for answer in model.batch(MIXED, documents=[DOCUMENT])] == singles
    assert [len(call.questions) for call in asked] == [len(MIXED)]
    assert [text_of(answer) for answer in await model.abatch(MIXED, documents=[DOCUMENT])] == singles
    assert [len(call.questions) for call in asked] == [len(MIXED)] * 2
    assert len(set(singles)) > 1


def test_max_concurrency_bounds_the_engine_call(model: Any, asked: list[EngineCall]) -> None:
    """Each question of a batch takes memory; this is LangChain's way to limit it."""
    singles = [text_of(model.invoke(question, max_tokens=3)) for question in MIXED]
    asked.clear()
    answers = model.batch(MIXED, {"max_concurrency": 3}, max_tokens=3)
    assert [text_of(answer) for answer in answers] == singles
    assert [len(call.questions) for call in asked] == [3, 1]


def test_a_batch_may_be_larger_than_the_thread_pool(model: Any, asked: list[EngineCall]) -> None:
    """LangChain gives a chat model a thread for each question, and by default few threads: they must not wait for
    each other for ever.
    """
    questions = [f"Who is number {number}?" for number in range(min(32, (os.cpu_count() or 1) + 4) + 9)]
    assert len(model.batch(questions, max_tokens=1)) == len(questions)
    assert [len(call.questions) for call in asked] == [len(questions)]


def test_an_empty_batch_has_no_answers(model: Any, asked: list[EngineCall]) -> None:
    assert model.batch([]) == []
    assert not asked


def test_every_member_of_a_batch_may_have_its_own_config(model: Any, asked: list[EngineCall]) -> None:
    configs: list[Any] = [{"run_name": "first", "tags": ["a"]}, {"metadata": {"n": 2}}]
    assert len(model.batch(["Who?", "What?"], configs, max_tokens=2)) == 2
    assert [len(call.questions) for call in asked] == [2]


async def test_a_batch_leaves_the_event_loop_running(
    model: Any, monkeypatch: pytest.MonkeyPatch, engine: FocusEngine
) -> None:
    import time

    original = FocusEngine._decoding

    def slow(self: FocusEngine, *args: Any) -> Any:
        time.sleep(0.5)
        return original(self, *args)

    monkeypatch.setattr(FocusEngine, "_decoding", slow)
    task, ticks = asyncio.ensure_future(model.abatch(MIXED[:2], max_tokens=2)), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    assert len(await task) == 2
    assert ticks > 10


def test_a_batch_through_a_chain_is_one_engine_call(model: Any, asked: list[EngineCall]) -> None:
    """LangChain runs a chain's batch step by step."""
    chain = ChatPromptTemplate.from_messages([("human", "{question}")]) | model
    chain.batch([{"question": question} for question in MIXED], max_tokens=2)
    assert [len(call.questions) for call in asked] == [len(MIXED)]


def test_an_error_of_a_batch_is_raised_or_returned(model: Any) -> None:
    huge = ["y " * 200_000]
    with pytest.raises(ContextOverflowError):
        model.batch(["Who?", "What?"], documents=huge)
    returned = model.batch(["Who?", "What?"], documents=huge, return_exceptions=True)
    assert [type(one) for one in returned] == [ContextOverflowError] * 2


async def test_several_questions_at_the_same_time_get_their_own_answers(model: Any) -> None:
    expected = [text_of(model.invoke(question, max_tokens=6)) for question in MIXED]
    answers = await asyncio.gather(*(model.ainvoke(question, max_tokens=6) for question in MIXED))
    assert list(map(text_of, answers)) == expected


# --- the chat class ---------------------------------------------------------------------------------------------------


def test_messages_with_their_own_documents_go_together_with_those_of_the_same(
    chat: ChatFocusLLM, asked: list[EngineCall]
) -> None:
    other = "Another story altogether, about the sea. " * 8
    inputs = [about(DOCUMENT, "Who?"), about(other, "Who?"), about(DOCUMENT, "What else?")]
    singles = [chat.invoke(messages).content for messages in inputs]
    asked.clear()
    assert [answer.content for answer in chat.batch(inputs)] == singles  # type: ignore[arg-type]
    assert sorted((len(call.questions), call.documents[0]) for call in asked) == sorted([(1, other), (2, DOCUMENT)])


@pytest.mark.parametrize("place", [0, 1, 2])
def test_one_bad_input_spoils_only_its_own_answer(chat: ChatFocusLLM, place: int, asked: list[EngineCall]) -> None:
    """It never asks the engine; the others must not wait for it."""
    inputs: list[Any] = ["Who?", "What?"]
    inputs.insert(place, [HumanMessage("Add."), ToolMessage("5", tool_call_id="1")])
    answers = chat.batch(inputs, return_exceptions=True, max_tokens=3)
    assert isinstance(answers.pop(place), ConfigError)
    assert [answer.content for answer in answers] == [
        chat.invoke(question, max_tokens=3).content for question in ("Who?", "What?")
    ]
    assert len(asked[0].questions) == 2
    with pytest.raises(ConfigError, match="ToolMessage"):
        chat.batch(inputs, max_tokens=3)


def test_what_does_not_fit_spoils_only_its_own_answer(chat: ChatFocusLLM) -> None:
    """Found by the engine, when all are asked together."""
    answers = chat.batch(["Who?", "y " * 400_000, "What?"], return_exceptions=True, max_tokens=3)
    assert isinstance(answers[1], ContextOverflowError)
    assert [answers[0].content, answers[2].content] == [
        chat.invoke(question, max_tokens=3).content for question in ("Who?", "What?")
    ]


def test_answers_from_a_response_cache_hold_nobody_up(tiny_settings: dict[str, Any], asked: list[EngineCall]) -> None:
    chat = ChatFocusLLM(**tiny_settings, cache=InMemoryCache())
    known = chat.invoke("Who?", max_tokens=3).content
    asked.clear()
    answers = chat.batch(["What?", "Who?", "Why?"], max_tokens=3)
    assert answers[1].content == known
    assert [len(call.questions) for call in asked] == [2]
    chat.batch(["Why?", "Who?"], max_tokens=3)
    assert len(asked) == 1


def test_a_callback_may_ask_another_model(chat: ChatFocusLLM, tiny_settings: dict[str, Any]) -> None:
    """A guard, for example, that looks at every question. It is no part of the batch."""
    guard = ChatFocusLLM(**tiny_settings, system_prompt="Is this allowed?")

    class Guarding(BaseCallbackHandler):
        seen: ClassVar[list[str]] = []

        def on_chat_model_start(self, serialized: Any, messages: Any, **kwargs: Any) -> None:
            self.seen.append(text_of(guard.invoke(messages[0], max_tokens=2)))

    expected = [answer.content for answer in chat.batch(["Who?", "What?"], max_tokens=3)]
    answers = chat.batch(["Who?", "What?"], {"callbacks": [Guarding()]}, max_tokens=3)
    assert [answer.content for answer in answers] == expected
    assert [len(text) for text in Guarding.seen] == [2, 2]


def test_streaming_models_answer_batches_too(tiny_settings: dict[str, Any]) -> None:
    """One by one then, since streams do not meet."""
    chat = ChatFocusLLM(**tiny_settings)
    expected = [answer.content for answer in chat.batch(["Who?", "What?"])]
    streaming = ChatFocusLLM(**tiny_settings, streaming=True)
    assert [answer.content for answer in streaming.batch(["Who?", "What?"])] == expected


def test_settings_of_a_batch_hold_for_all(chat: ChatFocusLLM, llm: FocusLLM) -> None:
    for model in (chat, llm):
        answers = model.batch(["Who?", "What?"], max_tokens=2, temperature=2.0, seed=1)
        single = model.invoke("What?", max_tokens=2, temperature=2.0, seed=1)
        assert text_of(answers[1]) == text_of(single)
