"""Answers as objects: the model is asked for JSON, and what it writes is parsed and checked."""

from __future__ import annotations

import json
from operator import itemgetter
from typing import Any

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage, HumanMessage, convert_to_messages
from langchain_core.output_parsers import BaseOutputParser, JsonOutputParser, PydanticOutputParser
from langchain_core.prompt_values import PromptValue
from langchain_core.runnables import Runnable, RunnableLambda, RunnableMap, RunnablePassthrough
from langchain_core.utils.function_calling import convert_to_json_schema
from pydantic import BaseModel

_REQUEST = "Answer with one JSON object that fits this JSON schema, and with nothing else:\n{schema}"


def structured_output(
    model: Runnable[LanguageModelInput, Any], schema: dict[str, Any] | type, *, include_raw: bool
) -> Runnable[LanguageModelInput, Any]:
    """`model` asked for JSON; what it answers as an instance of `schema` (Pydantic), else as a dict.

    Args:
        include_raw: give `{"raw", "parsed", "parsing_error"}` and raise nothing where the answer cannot be parsed

    Raises:
        OutputParserException: (when run) the answer is no JSON, or does not fit; the message holds the answer
    """
    request = _REQUEST.format(schema=json.dumps(convert_to_json_schema(schema)))
    asking = RunnableLambda(lambda given: [*_messages(given), HumanMessage(request)]) | model
    parser = _parser(schema)
    if not include_raw:
        return asking | parser
    parsed = RunnablePassthrough.assign(parsed=itemgetter("raw") | parser, parsing_error=lambda _: None)
    failed = RunnablePassthrough.assign(parsed=lambda _: None)
    return RunnableMap(raw=asking) | parsed.with_fallbacks([failed], exception_key="parsing_error")


def _parser(schema: dict[str, Any] | type) -> BaseOutputParser[Any]:
    if isinstance(schema, type) and issubclass(schema, BaseModel):
        return PydanticOutputParser(pydantic_object=schema)
    return JsonOutputParser()


def _messages(given: LanguageModelInput) -> list[BaseMessage]:
    if isinstance(given, PromptValue):
        return given.to_messages()
    return [HumanMessage(given)] if isinstance(given, str) else convert_to_messages(given)
