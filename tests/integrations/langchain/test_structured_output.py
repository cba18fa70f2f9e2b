"""Answers as objects: by asking for JSON, and checking what comes. The answers here are written beforehand."""

from __future__ import annotations

from typing import Any, TypedDict

import pytest
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import HumanMessage
from langchain_core.prompts import ChatPromptTemplate
from pydantic import BaseModel, Field

from focus_core.errors import ConfigError
from focus_integrations.langchain import ChatFocusLLM, FocusPromptValue
from tests.integrations.spies import Script

GOOD = '{"name": "Ada", "age": 36}'


class Person(BaseModel):
    """Somebody in the text."""

    name: str
    age: int = Field(ge=0)


class PersonDict(TypedDict):
    """Somebody in the text."""

    name: str
    age: int


SCHEMA = {
    "title": "Person",
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
}


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        (Person, Person(name="Ada", age=36)),
        (PersonDict, {"name": "Ada", "age": 36}),
        (SCHEMA, {"name": "Ada", "age": 36}),
    ],
    ids=["pydantic", "typed dict", "json schema"],
)
@pytest.mark.parametrize("text", [GOOD, f"```json\n{GOOD}\n```"], ids=["bare", "fenced"])
async def test_json_becomes_what_the_schema_asks_for(
    chat: ChatFocusLLM, script: Script, schema: Any, expected: Any, text: str
) -> None:
    script.text = text
    asking = chat.with_structured_output(schema)
    assert asking.invoke("Who?") == expected
    assert await asking.ainvoke("Who?") == expected
    assert list(asking.stream("Who?"))[-1] == expected
    assert asking.batch(["Who?", "Who else?"]) == [expected, expected]


def test_the_model_is_shown_the_schema(chat: ChatFocusLLM, script: Script) -> None:
    script.text = GOOD
    chat.with_structured_output(Person).invoke([HumanMessage("Who is it?")])
    request = script.calls[0].questions[0][-1]["content"]
    assert request.startswith("Who is it?")
    assert '"age"' in request
    assert "JSON schema" in request


def test_documents_can_be_bound_or_come_in_the_prompt_value(chat: ChatFocusLLM, script: Script) -> None:
    script.text = GOOD
    chat.with_structured_output(Person, documents=["About Ada."]).invoke("Who?")
    chat.with_structured_output(Person).invoke(FocusPromptValue("Who?", ["About Ada."]))
    (ChatPromptTemplate.from_messages([("human", "{q}")]) | chat.with_structured_output(Person)).invoke({"q": "Who?"})
    assert [call.documents for call in script.calls] == [["About Ada."], ["About Ada."], []]


@pytest.mark.parametrize("text", ["I do not know.", '{"name": "Ada"}', '{"name": "Ada", "age": -1}', ""])
def test_what_does_not_fit_is_an_error_that_shows_the_answer(chat: ChatFocusLLM, script: Script, text: str) -> None:
    """Not a half-filled object, and not None."""
    script.text = text
    with pytest.raises(OutputParserException) as caught:
        chat.with_structured_output(Person).invoke("Who?")
    assert text in str(caught.value)


@pytest.mark.parametrize("schema", [Person, SCHEMA], ids=["pydantic", "json schema"])
@pytest.mark.parametrize("text", ["I do not know.", '{"name": "Ada"}', "5", "[1]", '{"name": "Ada", "age": 3', ""])
async def test_what_does_not_fit_is_an_error_in_streams_too(
    chat: ChatFocusLLM, script: Script, schema: Any, text: str
) -> None:
    """A stream that ends without anything looks as if there were nothing to say."""
    script.text = text
    asking = chat.with_structured_output(schema)
    with pytest.raises(OutputParserException) as caught:
        list(asking.stream("Who?"))
    assert text in str(caught.value)
    with pytest.raises(OutputParserException):
        [part async for part in asking.astream("Who?")]
    with pytest.raises(OutputParserException):
        asking.invoke("Who?")
    with pytest.raises(OutputParserException):
        await asking.ainvoke("Who?")


@pytest.mark.parametrize("text", ["[" * 5000, "1" * 5000], ids=["brackets", "digits"])
def test_an_answer_without_end_is_an_error_like_any_other(chat: ChatFocusLLM, script: Script, text: str) -> None:
    """Small models fall into loops; Python's own parser raises other errors then."""
    script.text = text
    with pytest.raises(OutputParserException, match="is no complete JSON"):
        chat.with_structured_output(Person).invoke("Who?")


def test_arguments_bound_before_hold(chat: ChatFocusLLM, script: Script) -> None:
    """LangChain's own way loses them in silence, and the model makes something up."""
    script.text = GOOD
    bound = chat.bind(documents=["About Ada."], method="focus").bind(stop=["!"])
    for model in (bound, bound.with_config(tags=["a"]), bound.with_fallbacks([bound])):
        assert model.with_structured_output(Person, max_tokens=9).invoke("Who?") == Person(name="Ada", age=36)
        assert script.calls[-1].documents == ["About Ada."]
        given = script.calls[-1].options
        assert (given["method"], given["stop"], given["max_new_tokens"]) == ("focus", ("!",), 9)
    with pytest.raises(ConfigError, match=r"method='focus'.*'json_schema'"):
        bound.with_structured_output(Person, method="focus")


async def test_half_an_answer_is_an_error(chat: ChatFocusLLM, script: Script) -> None:
    """LangChain's parsers close open brackets, and an age of 36 that was cut off would be 3."""
    script.text, script.finish_reason = GOOD[:-2], "length"
    for schema in (Person, SCHEMA):
        asking = chat.with_structured_output(schema)
        with pytest.raises(OutputParserException, match="reached max_tokens"):
            asking.invoke("Who?")
        with pytest.raises(OutputParserException, match="reached max_tokens"):
            await asking.ainvoke("Who?")
        with pytest.raises(OutputParserException, match="reached max_tokens"):
            list(asking.stream("Who?"))
    raw = chat.with_structured_output(Person, include_raw=True).invoke("Who?")
    assert raw["parsed"] is None
    assert "reached max_tokens" in str(raw["parsing_error"])
    script.text = GOOD  # whole, although nothing more would have fitted
    assert chat.with_structured_output(Person).invoke("Who?") == Person(name="Ada", age=36)


async def test_objects_come_in_parts_while_they_are_written(chat: ChatFocusLLM, script: Script) -> None:
    script.text = GOOD
    asking = chat.with_structured_output(SCHEMA)
    assert list(asking.stream("Who?")) == [part async for part in asking.astream("Who?")]
    assert len(list(asking.stream("Who?"))) > 1


async def test_with_the_raw_answer_nothing_is_raised(chat: ChatFocusLLM, script: Script) -> None:
    asking = chat.with_structured_output(Person, include_raw=True)
    script.text = GOOD
    good = asking.invoke("Who?")
    assert good["parsed"] == Person(name="Ada", age=36)
    assert good["parsing_error"] is None
    assert good["raw"].content == GOOD
    script.text = "I do not know."
    bad = asking.invoke("Who?")
    assert bad["parsed"] is None
    assert isinstance(bad["parsing_error"], OutputParserException)
    assert bad["raw"].content == "I do not know."
    (streamed,) = asking.stream("Who?")
    (later,) = [part async for part in asking.astream("Who?")]
    for part in (streamed, later, await asking.ainvoke("Who?")):
        assert (part["raw"].content, part["parsed"]) == ("I do not know.", None)
        assert str(part["parsing_error"]) == str(bad["parsing_error"])
    script.text = GOOD
    assert list(asking.stream("Who?"))[-1]["parsed"] == Person(name="Ada", age=36)


@pytest.mark.parametrize("method", ["json_schema", "json_mode", "function_calling"])
def test_every_method_of_langchain_is_accepted(chat: ChatFocusLLM, script: Script, method: str) -> None:
    script.text = GOOD
    assert chat.with_structured_output(Person, method=method, strict=True).invoke("Who?") == Person(name="Ada", age=36)


def test_the_engines_method_is_not_taken_for_langchains(chat: ChatFocusLLM) -> None:
    """Both are called `method`; the wrong one would change nothing, in silence."""
    with pytest.raises(ConfigError, match=r"method='focus'.*'json_schema'.*ChatFocusLLM\(method="):
        chat.with_structured_output(Person, method="focus")


def test_the_engines_method_is_the_models(tiny_settings: dict[str, Any], script: Script) -> None:
    script.text = GOOD
    ChatFocusLLM(**tiny_settings, method="plain").with_structured_output(Person).invoke("Who?")
    assert script.calls[0].options["method"] == "plain"
