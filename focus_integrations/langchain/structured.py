"""Answers as objects: the model is asked for JSON, and its text is parsed and checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda, RunnableMap
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass

from focus_core.errors import ConfigError

_METHODS = ("json_schema", "json_mode", "function_calling")  # LangChain's
_REQUEST = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"
_strictly = partial(json.loads, strict=False)  # line breaks in strings, as LangChain's parsers allow them


def structured_output(
    model: Runnable[LanguageModelInput, Any],
    schema: dict[str, Any] | type,
    *,
    method: str = "json_schema",
    include_raw: bool = False,
    **arguments: Any,
) -> Runnable[LanguageModelInput, Any]:
    """`model` asked for JSON; its answer as an instance of `schema` (Pydantic), else as a dict.

    Args:
        model: also with arguments bound, which hold
        method: LangChain's, for tracing
        include_raw: give `{"raw", "parsed", "parsing_error"}` and raise nothing where the answer cannot be parsed
        arguments: of the call

    Raises:
        ConfigError: `method` is none of LangChain's
        OutputParserException: (when run) the answer is no JSON, or was cut off, or does not fit; the message holds it
    """
    if method not in _METHODS:
        raise ConfigError(
            f"method={method!r}: here it is LangChain's, {', '.join(map(repr, _METHODS))}. "
            "Set the engine's method on the model: ChatFocusLLM(method=…)."
        )
    tracing = {"kwargs": {"method": method}, "schema": schema}
    request = _REQUEST.format(schema=json.dumps(convert_to_json_schema(schema)))
    requesting: Runnable[LanguageModelInput, Any]
    requesting = RunnableLambda(lambda given: [*_messages(given), HumanMessage(request)])
    asking = requesting | model.bind(ls_structured_output_format=tracing, **arguments)
    reader = _Reader(schema)
    if include_raw:
        return RunnableMap(raw=asking) | RunnableLambda(reader.with_error)
    return asking | RunnableGenerator(reader.checked, reader.checked_later) | reader.parser


class _Reader:
    """Reads answers, whole or while they are written.

    LangChain's parsers close open brackets, so that half an answer looks whole: `{"age": 3` for 36. In a stream they
    leave out what they cannot read. So the whole answer is checked at its end.
    """

    def __init__(self, schema: dict[str, Any] | type) -> None:
        self.parser: BaseOutputParser[Any] = _parser(schema)
        self._schema = convert_to_json_schema(schema)

    def with_error(self, given: dict[str, AIMessage]) -> dict[str, Any]:
        """The answer under `raw`, with what was read, or why it could not be."""
        try:
            (whole,) = self.checked(iter([given["raw"]]))
            return {**given, "parsed": self.parser.invoke(whole), "parsing_error": None}
        except OutputParserException as error:
            return {**given, "parsed": None, "parsing_error": error}

    def checked(self, messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
        """The same messages.

        Raises:
            OutputParserException: at the end, if they do not add up to what the schema requires
        """
        text, reason = "", ""
        for message in messages:
            text, reason = text + str(message.text), _finish_reason(message) or reason
            yield message
        self._check(text, reason)

    async def checked_later(self, messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
        """`checked`, awaited."""
        text, reason = "", ""
        async for message in messages:
            text, reason = text + str(message.text), _finish_reason(message) or reason
            yield message
        self._check(text, reason)

    def _check(self, text: str, reason: str) -> None:
        try:
            answer = parse_json_markdown(text, parser=_strictly)
        except (ValueError, RecursionError) as error:  # no JSON, a number of thousands of digits, brackets without end
            problem = "reached max_tokens before its JSON was complete" if reason == "length" else "is no complete JSON"
            raise _refused(problem, text) from error
        if isinstance(self.parser, PydanticOutputParser):
            self.parser.parse(text)
        elif self._schema.get("type") == "object":
            if not isinstance(answer, dict):
                raise _refused("is no JSON object", text)
            missing = [name for name in self._schema.get("required", []) if name not in answer]
            if missing:
                raise _refused(f"lacks {', '.join(map(repr, missing))}", text)


def _refused(problem: str, text: str) -> OutputParserException:
    return OutputParserException(f"The answer {problem}: {text}", llm_output=text)


def _finish_reason(message: AIMessage) -> str:
    return str(message.response_metadata.get("finish_reason") or "")


def _parser(schema: dict[str, Any] | type) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):  # of Pydantic 1 or 2
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _messages(given: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(given, PromptValue):
        return given.to_messages()
    return [HumanMessage(given)] if isinstance(given, str) else convert_to_messages(given)
