"""Answers as objects: the schema stands in the prompt, the answer is parsed, and a failure is an error of ours."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any

from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.llms import LLM, CustomLLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import LLMTextCompletionProgram
from llama_index.core.program.utils import get_program_for_llm, process_streaming_objects
from llama_index.core.prompts import BasePromptTemplate
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from pydantic import BaseModel, ValidationError

from focus_core.errors import AnswerError, ConfigError
from focus_integrations.llama_index.inputs import output_class
from focus_integrations.settings import kind_of

dispatcher = get_dispatcher(__name__)

_BY_PROMPTING = (PydanticProgramMode.DEFAULT, PydanticProgramMode.LLM)
_LONG = 200  # characters of an answer that a message shows


class ObjectParser(PydanticOutputParser[Any]):
    """LlamaIndex's parser with plain braces in the schema: it is added after templates are filled."""

    @property
    def format_string(self) -> str:
        return self.get_format_string(escape_json=False)

    def format(self, query: str) -> str:
        return f"{query}\n\n{self.format_string}"

    def parse(self, text: str) -> Any:
        """The object in `text`.

        Raises:
            AnswerError: there is none, or it does not fit the class
        """
        try:
            return super().parse(text)
        except ValueError as error:  # also pydantic's
            shown = text if len(text) < _LONG else f"{text[:_LONG]}…"
            raise AnswerError(
                f"The answer is no {self.output_cls.__name__} in JSON ({_reason(error)}): {shown!r}. Take a model that "
                "writes JSON, allow more max_tokens, or ask for text."
            ) from error


class AnswerProgram(LLMTextCompletionProgram[Any]):
    """Asks for JSON. The template that was given stays as it is: LlamaIndex would leave the schema in it."""

    def __init__(self, output_cls: type[BaseModel], prompt: BasePromptTemplate, llm: LLM) -> None:
        super().__init__(ObjectParser(output_cls), output_cls, prompt.model_copy(), llm)

    def stream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> Generator[Any, None, None]:
        """What is known of the object so far, and at the end the object itself.

        Raises:
            AnswerError: the answer is no such object
        """
        responses: Any
        if self._llm.metadata.is_chat_model:
            responses = self._llm.stream_chat(self._messages(kwargs), **(llm_kwargs or {}))
        else:
            responses = self._llm.stream_complete(self._prompt.format(llm=self._llm, **kwargs), **(llm_kwargs or {}))
        response: ChatResponse | CompletionResponse | None = None
        known: list[Any] = []
        with closing(responses):
            for response in responses:
                known = self._known(response, known)
                yield known[0]
        yield self._output_parser.parse(_text(response))

    async def astream_call(
        self, *args: Any, llm_kwargs: dict[str, Any] | None = None, **kwargs: Any
    ) -> AsyncGenerator[Any, None]:
        """`stream_call`, leaving the event loop free."""
        responses: Any
        if self._llm.metadata.is_chat_model:
            responses = await self._llm.astream_chat(self._messages(kwargs), **(llm_kwargs or {}))
        else:
            prompt = self._prompt.format(llm=self._llm, **kwargs)
            responses = await self._llm.astream_complete(prompt, **(llm_kwargs or {}))
        return self._aknown(responses)

    async def _aknown(self, responses: Any) -> AsyncGenerator[Any, None]:
        response: ChatResponse | CompletionResponse | None = None
        known: list[Any] = []
        async with aclosing(responses):
            async for response in responses:
                known = self._known(response, known)
                yield known[0]
        yield self._output_parser.parse(_text(response))

    def _messages(self, values: dict[str, Any]) -> Any:
        return self._llm._extend_messages(self._prompt.format_messages(llm=self._llm, **values))

    def _known(self, response: ChatResponse | CompletionResponse, before: list[Any]) -> list[Any]:
        found = process_streaming_objects(response, self._output_cls, cur_objects=before, flexible_mode=True)
        return found if isinstance(found, list) else [found]


class StructuredAnswers(CustomLLM):
    """`structured_predict` and its kin by prompting."""

    def _program(self, output_cls: Any, prompt: Any) -> BasePydanticProgram[Any]:
        output_cls = output_class(output_cls)
        if not isinstance(prompt, BasePromptTemplate):
            raise ConfigError(f"prompt is {kind_of(prompt)}. Give a template: PromptTemplate(…).")
        if self.pydantic_program_mode in _BY_PROMPTING:
            return AnswerProgram(output_cls, prompt, self)
        return get_program_for_llm(output_cls, prompt, self, pydantic_program_mode=self.pydantic_program_mode)

    @dispatcher.span
    def structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """An instance of `output_cls`, asked for in JSON.

        Raises:
            AnswerError: the answer is none
        """
        program = self._program(output_cls, prompt)
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        found = program(llm_kwargs=llm_kwargs, **prompt_args)
        dispatcher.event(LLMStructuredPredictEndEvent(output=found))
        return found

    @dispatcher.span
    async def astructured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """`structured_predict`, leaving the event loop free."""
        program = self._program(output_cls, prompt)
        dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        found = await program.acall(llm_kwargs=llm_kwargs, **prompt_args)
        dispatcher.event(LLMStructuredPredictEndEvent(output=found))
        return found

    def stream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """What is known of the object so far, and at the end the object itself; raises as `structured_predict`."""
        assert self._program(output_cls, prompt)  # before LlamaIndex's event refuses them
        return super().stream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    async def astream_structured_predict(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        """`stream_structured_predict`, leaving the event loop free."""
        assert self._program(output_cls, prompt)
        return await super().astream_structured_predict(output_cls, prompt, llm_kwargs, **prompt_args)

    def _structured_stream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        return self._program(output_cls, prompt).stream_call(llm_kwargs=llm_kwargs, **prompt_args)

    async def _structured_astream_call(
        self, output_cls: Any, prompt: Any, llm_kwargs: dict[str, Any] | None = None, **prompt_args: Any
    ) -> Any:
        return await self._program(output_cls, prompt).astream_call(llm_kwargs=llm_kwargs, **prompt_args)


def _reason(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return "there is no JSON in it"
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"


def _text(response: ChatResponse | CompletionResponse | None) -> str:
    if response is None:
        return ""
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""
