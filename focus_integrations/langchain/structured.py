"""Answers as objects: the model is asked for JSON, and its text is parsed and checked."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from operator import itemgetter
from typing import Any

from langchain_core.exceptions import OutputParserException
from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableGenerator, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from langchain_core.utils.json import parse_json_markdown
from langchain_core.utils.pydantic import is_basemodel_subclass

_REQUEST = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"


def structured_output(
    model: Runnable[LanguageModelInput, Any], schema: dict[str, Any] | type, *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """`model` asked for JSON; its answer as an instance of `schema` (Pydantic), else as a dict.

    Args:
        include_raw: give `{"raw", "parsed", "parsing_error"}` and raise nothing where the answer cannot be parsed

    Raises:
        OutputParserException: (when run) the answer is no JSON, or was cut off, or does not fit; the message holds it
    """
    request = _REQUEST.format(schema=json.dumps(convert_to_json_schema(schema)))
    requesting: Runnable[LanguageModelInput, Any]
    requesting = RunnableLambda(lambda given: [*_messages(given), HumanMessage(request)])
    asking = requesting | model
    parser: Runnable[Any, Any] = RunnableGenerator(_not_cut_off, _not_cut_off_async) | _parser(schema)
    if not include_raw:
        return asking | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asking) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _parser(schema: dict[str, Any] | type) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and is_basemodel_subclass(schema):  # of Pydantic 1 or 2
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _not_cut_off(messages: Iterator[AIMessage]) -> Iterator[AIMessage]:
    """LangChain's parsers close open brackets, so that half an answer looks whole: `{"age": 3` for 36."""
    ending = _Ending()
    for message in messages:
        ending.add(message)
        yield message
    ending.check()


async def _not_cut_off_async(messages: AsyncIterator[AIMessage]) -> AsyncIterator[AIMessage]:
    ending = _Ending()
    async for message in messages:
        ending.add(message)
        yield message
    ending.check()


class _Ending:
    def __init__(self) -> None:
        self._text = ""
        self._reason = ""

    def add(self, message: AIMessage) -> None:
        self._text += str(message.text)
        self._reason = message.response_metadata.get("finish_reason") or self._reason

    def check(self) -> None:
        if self._reason != "length":
            return
        try:
            parse_json_markdown(self._text, parser=json.loads)
        except json.JSONDecodeError as error:
            raise OutputParserException(
                f"The answer reached max_tokens before its JSON was complete: {self._text}", llm_output=self._text
            ) from error


def _messages(given: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(given, PromptValue):
        return given.to_messages()
    return [HumanMessage(given)] if isinstance(given, str) else convert_to_messages(given)
