"""Answers as objects, by prompting: at once, streamed, through LlamaIndex's wrapper, and what happens if they fail."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core import get_response_synthesizer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from pydantic import BaseModel

from focus_core import AnswerError, ConfigError
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.llama_index.drivers import listening, nodes_of
from tests.integrations.spies import Script


class Person(BaseModel):
    """Somebody."""

    name: str
    born: int


ADA = Person(name="Ada", born=1815)
PROMPT = PromptTemplate("Who is {who}?")
USER = [ChatMessage(role="user", content="Who?")]


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    return Script(monkeypatch, '{"name": "Ada", "born": 1815}')


@pytest.mark.parametrize("chat_template", [True, False])
async def test_a_stream_ends_with_the_object(
    tiny_settings: dict[str, Any], script: Script, chat_template: bool
) -> None:
    """LlamaIndex's ends with what it has, in which everything may be None."""
    llm = FocusLLM(**tiny_settings, chat_template=chat_template)
    assert list(llm.stream_structured_predict(Person, PROMPT, who="she"))[-1] == ADA
    assert [one async for one in await llm.astream_structured_predict(Person, PROMPT, who="she")][-1] == ADA
    structured = llm.as_structured_llm(Person)
    assert list(structured.stream_chat(USER))[-1].raw == ADA
    assert [one async for one in await structured.astream_chat(USER)][-1].raw == ADA
    assert len(script.calls) == 4


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Ada, I think.", "there is no JSON in it"),
        ('{"name": "Ada"}', "born: Field required"),
        ('{"name": "Ada", "born": "long ago"}', "born: Input should be a valid integer"),
        ('{"name": "Ada", "born": 18', "there is no JSON in it"),
        ("", "there is no JSON in it"),
    ],
)
async def test_an_answer_that_is_no_such_object_is_an_error_of_ours(
    llm: FocusLLM, script: Script, text: str, reason: str
) -> None:
    """Everywhere the same, with the answer in it; no `ValueError`, which refine turns into "Empty Response"."""
    script.text = text
    structured, synthesizer = llm.as_structured_llm(Person), FocusSynthesizer(llm, output_cls=Person)
    ways: list[Any] = [
        lambda: llm.structured_predict(Person, PROMPT, who="she"),
        lambda: list(llm.stream_structured_predict(Person, PROMPT, who="she")),
        lambda: structured.chat(USER),
        lambda: structured.complete("Who?"),
        lambda: list(structured.stream_chat(USER)),
        lambda: synthesizer.synthesize("Who?", nodes_of("text")),
        lambda: get_response_synthesizer(llm=llm, output_cls=Person).synthesize("Who?", nodes_of("text")),
    ]
    for way in ways:
        with pytest.raises(AnswerError, match=f"The answer is no Person in JSON .{reason}") as caught:
            way()
        assert repr(text) in str(caught.value)
    for awaited in (
        llm.astructured_predict(Person, PROMPT, who="she"),
        structured.achat(USER),
        synthesizer.asynthesize("Who?", nodes_of("text")),
    ):
        with pytest.raises(AnswerError, match=reason):
            await awaited
    with pytest.raises(AnswerError, match=reason):
        async for _ in await llm.astream_structured_predict(Person, PROMPT, who="she"):
            pass


def test_the_template_that_was_given_stays_as_it_was(llm: FocusLLM, script: Script) -> None:
    """LlamaIndex would leave the schema in it, for all its later uses."""
    prompt = PromptTemplate("Who is {who}?")
    llm.structured_predict(Person, prompt, who="she")
    assert prompt.output_parser is None
    llm.predict(prompt, who="she")
    assert script.calls[1].question == "Who is she?"


def test_the_schema_stands_in_the_question_with_single_braces(llm: FocusLLM, script: Script) -> None:
    """A model that sees them doubled writes them doubled."""
    llm.structured_predict(Person, PROMPT, who="she {really}")
    question = script.calls[0].question
    assert question.startswith("Who is she {really}?\n\n")
    assert '{"description": "Somebody."' in question
    assert "{{" not in question


def test_events_are_fired_once(llm: FocusLLM, script: Script) -> None:
    with listening() as events:
        llm.structured_predict(Person, PROMPT, who="she")
    for name in ("LLMStructuredPredictStartEvent", "LLMStructuredPredictEndEvent", "LLMChatEndEvent"):
        assert len(events.named(name)) == 1
    assert events.named("LLMStructuredPredictEndEvent")[0].output == ADA


@pytest.mark.parametrize(
    ("output_cls", "prompt", "message"),
    [
        (ADA, PROMPT, "output_cls is a Person itself. Give its class"),
        (dict, PROMPT, "output_cls=<class 'dict'> is no class of pydantic"),
        (Person, "Who?", "prompt is a str. Give a template"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(llm: FocusLLM, output_cls: Any, prompt: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        llm.structured_predict(output_cls, prompt)
    with pytest.raises(ConfigError, match=message):
        list(llm.stream_structured_predict(output_cls, prompt))
