"""Response caches: never one document's answer for another, always the same answer for the same call."""

from __future__ import annotations

from typing import Any

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document

from focus_integrations.langchain import ChatFocusLLM, FocusPromptValue
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall

A = "In the first story Ada keeps the lighthouse. " * 6
B = "In the second story Edith sells bread. " * 6
C = "In the third story nobody speaks. " * 6


@pytest.fixture
def cached(model_class: Any, tiny_settings: dict[str, Any]) -> Any:
    return model_class(**tiny_settings, cache=InMemoryCache())


def test_other_documents_are_another_call(cached: Any, asked: list[EngineCall]) -> None:
    """LangChain's key for a language model leaves the call's arguments out: A's answer came for B and C as well."""
    first = text_of(cached.invoke("Who?", documents=[A]))
    second = text_of(cached.invoke("Who?", documents=[B, C]))
    assert text_of(cached.invoke("Who?", documents=[A])) == first
    assert [call.documents for call in asked] == [[A], [B, C]]
    assert first != second
    cached.invoke("Who?", documents=[C, B])
    cached.invoke("Who?")
    assert [call.documents for call in asked[2:]] == [[C, B], []]


async def test_other_documents_are_another_call_when_awaited(cached: Any, asked: list[EngineCall]) -> None:
    first = text_of(await cached.ainvoke("Who?", documents=[A]))
    await cached.ainvoke("Who?", documents=[B, C])
    assert text_of(await cached.ainvoke("Who?", documents=[A])) == first
    assert text_of(cached.invoke("Who?", documents=[A])) == first
    assert [call.documents for call in asked] == [[A], [B, C]]


async def test_other_documents_are_another_call_in_batches(cached: Any, asked: list[EngineCall]) -> None:
    questions = ["Who?", "What?"]
    first = list(map(text_of, cached.batch(questions, documents=[A])))
    second = list(map(text_of, cached.batch(questions, documents=[B, C])))
    assert list(map(text_of, cached.batch(questions, documents=[A]))) == first
    assert list(map(text_of, await cached.abatch(questions, documents=[A]))) == first
    assert sum(len(call.questions) for call in asked) == 4
    assert [call.documents for call in asked if call.documents == [A]] == [[A]] * (len(asked) // 2)
    assert first != second


def test_the_same_text_is_the_same_call_whatever_carries_it(cached: Any, asked: list[EngineCall]) -> None:
    """A list or a tuple, a string or a document, with whatever id: what the model reads decides."""
    answers = [
        text_of(cached.invoke("Who?", documents=documents))
        for documents in ([A], (A,), A, [Document(A, id="7")], Document(A, metadata={"seen": 3}), [A, A])
    ]
    assert len(set(answers)) == 1
    assert len(asked) == 1


def test_documents_read_beforehand_are_told_apart(cached: Any, asked: list[EngineCall]) -> None:
    first, second = cached.engine.prepare([A]), cached.engine.prepare([B])
    cached.invoke("Who?", documents=first)
    cached.invoke("Who?", documents=second)
    cached.invoke("Who?", documents=[first])
    assert len(asked) == 2


@pytest.mark.parametrize(
    "setting",
    [{"temperature": 2.0, "seed": 1}, {"max_tokens": 3}, {"system_prompt": "Be brief."}, {"stop": ["e"]}],
    ids=str,
)
def test_other_settings_of_a_call_are_another_call(
    cached: Any, asked: list[EngineCall], setting: dict[str, Any]
) -> None:
    plain = text_of(cached.invoke("Who?"))
    changed = text_of(cached.invoke("Who?", **setting))
    assert text_of(cached.invoke("Who?")) == plain
    assert text_of(cached.invoke("Who?", **setting)) == changed
    assert len(asked) == 2


def test_models_that_share_a_cache_do_not_share_answers(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    shared = InMemoryCache()
    one = model_class(**tiny_settings, cache=shared)
    other = model_class(**tiny_settings, cache=shared, system_prompt="Be brief.")
    again = model_class(**tiny_settings, cache=shared)
    first = text_of(one.invoke("Who?"))
    assert text_of(other.invoke("Who?")) != first
    assert text_of(again.invoke("Who?")) == first
    assert len(asked) == 2


def test_prompt_values_with_the_same_documents_are_the_same_call(cached: Any, asked: list[EngineCall]) -> None:
    """LangChain gives each content block an id of its own, which would make every call a new one."""
    for documents in ([A], [A], [B]):
        cached.invoke(FocusPromptValue("Who?", documents))
    assert len(asked) == 2


def test_the_cache_key_of_a_chat_does_not_grow_with_the_documents(chat: ChatFocusLLM) -> None:
    """A book in every key would fill the cache."""
    long = "A book. " * 100_000
    assert len(chat._get_llm_string(documents=[long])) < len(chat._get_llm_string(documents=["short"])) + 100


def test_streams_neither_read_nor_fill_a_cache(cached: Any, asked: list[EngineCall]) -> None:
    """That is LangChain's rule."""
    list(cached.stream("Who?", max_tokens=2))
    list(cached.stream("Who?", max_tokens=2))
    assert len(asked) == 2
