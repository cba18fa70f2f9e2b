"""ChatFocusLLM: the chat model of LangChain, with whole documents beside the messages or in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, patch_config, run_in_executor
from pydantic import ConfigDict, model_validator

from focus_core.engine.engine import Answer, FinishReason, Piece
from focus_core.errors import ConfigError, FocusError
from focus_integrations.langchain.batching import Gathering
from focus_integrations.langchain.documents import texts_of
from focus_integrations.langchain.messages import Conversation, read_messages
from focus_integrations.langchain.shared import PROVIDER, LangChainSettings, usage_metadata
from focus_integrations.langchain.structured import structured_output
from focus_integrations.settings import Call, fingerprint, without_duplicates
from focus_integrations.streams import in_thread

# Names that LangChain passes to any chat model; a local one has no use for them.
_WITHOUT_EFFECT = {"api_key", "base_url", "max_retries", "timeout"}
_LARGEST_BATCH = 64  # threads that wait for one engine call


@dataclass(frozen=True)
class _Request:
    conversation: Conversation
    call: Call


_gathering: ContextVar[Gathering[_Request, Answer] | None] = ContextVar("focusllm_gathering", default=None)


class ChatFocusLLM(LangChainSettings, BaseChatModel):
    """A local chat model that answers from whole documents.

    Example:
        `ChatFocusLLM().invoke("Who signed the contract?", documents=documents)`

    Documents come as `text-plain` blocks in the messages, and per call as `documents` (LangChain's, strings, or
    prepared ones), in this order. A call also takes `stop`, `system_prompt` and everything in
    `focus_integrations.settings.PER_CALL`. A conversation may itself be longer than the window: all but its end
    is then read in chunks.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    streaming: bool = False
    """Stream under the surface of `invoke` too, so that callbacks see every token."""

    @model_validator(mode="before")
    @classmethod
    def _without_names_of_servers(cls, values: Any) -> Any:
        return {k: v for k, v in values.items() if k not in _WITHOUT_EFFECT} if isinstance(values, dict) else values

    @property
    def _llm_type(self) -> str:
        return "focusllm-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self.identifying

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        return self.with_names(super()._get_ls_params(stop=stop, **kwargs), kwargs)

    def _resolve_model_profile(self) -> ModelProfile | None:
        profile = ModelProfile(
            max_output_tokens=self.longest_answer,
            text_inputs=True,
            text_outputs=True,
            tool_calling=False,
            structured_output=False,
            open_weights=True,
        )
        longest = self.longest_input
        if longest is not None:
            profile["max_input_tokens"] = longest
        return profile

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        """The call in the key of a response cache: documents by their content, whatever carries them."""
        if kwargs.get("documents") is not None:
            kwargs["documents"] = fingerprint(without_duplicates(texts_of(kwargs["documents"])))
        return super()._get_llm_string(stop, **kwargs)

    # --- counting -----------------------------------------------------------------------------------------------------

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the conversation with its template, and of the documents in it.

        Raises:
            ConfigError: `tools` are given, which this model cannot take
        """
        if tools:
            raise ConfigError("This model takes no tools.")
        conversation = read_messages(messages, self.system_prompt)
        local = self.engine.count_question_tokens(conversation.messages, chat_template=self.chat_template)
        return local + sum(map(self.engine.count_tokens, conversation.documents))

    # --- answers ------------------------------------------------------------------------------------------------------

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any]) -> _Request:
        call = self.call_with(given, stop)
        conversation = read_messages(messages, call.system_prompt)
        return _Request(conversation, Call([*conversation.documents, *call.documents], call.options))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request, gathering = self._request(messages, stop, kwargs), self._meeting()
        if gathering is not None:
            answer = gathering.ask(request)
        else:
            answer = self.engine.generate(request.conversation.messages, **request.call.arguments)
        message = AIMessage(
            answer.text,
            usage_metadata=usage_metadata(answer.usage),
            response_metadata=self._last_words(answer.finish_reason),
        )
        return ChatResult(generations=[ChatGeneration(message=message, generation_info={})])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(self._request(messages, stop, kwargs)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async for chunk in in_thread(self._chunks(self._request(messages, stop, kwargs))):
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _chunks(self, request: _Request) -> Iterator[ChatGenerationChunk]:
        for piece in self.engine.stream(request.conversation.messages, **request.call.arguments):
            yield ChatGenerationChunk(message=self._message_chunk(piece))

    def _message_chunk(self, piece: Piece) -> AIMessageChunk:
        if piece.usage is None:
            return AIMessageChunk(content=piece.text)
        return AIMessageChunk(
            content=piece.text,
            usage_metadata=usage_metadata(piece.usage),
            response_metadata=self._last_words(piece.finish_reason),
            chunk_position="last",
        )

    def _last_words(self, finish_reason: FinishReason | None) -> dict[str, Any]:
        return {"model_name": self.model, "model_provider": PROVIDER, "finish_reason": finish_reason}

    # --- batches ------------------------------------------------------------------------------------------------------

    def invoke(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AIMessage:
        """LangChain's `invoke`; within `batch`, one of those that share an engine call."""
        gathering = self._meeting()
        if gathering is None:
            return super().invoke(input, config, stop=stop, **kwargs)
        with gathering.member():
            return super().invoke(input, config, stop=stop, **kwargs)

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """All inputs in one engine call for each set of documents; `max_concurrency` bounds how many at a time."""
        configs = get_config_list(config, len(inputs))
        size = min((configs[0].get("max_concurrency") if configs else None) or _LARGEST_BATCH, _LARGEST_BATCH)
        answers: list[AIMessage] = []
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            those = [patch_config(one, max_concurrency=len(part)) for one in configs[start : start + size]]
            token = _gathering.set(Gathering(self, len(part), self._answer_all) if len(part) > 1 else None)
            try:
                # Otherwise LangChain, at the first error, calls off threads for which the others wait.
                replies: list[Any] = super().batch(part, those, return_exceptions=True, **kwargs)
            finally:
                _gathering.reset(token)
            failed = next((reply for reply in replies if isinstance(reply, Exception)), None)
            if failed is not None and not return_exceptions:
                raise failed
            answers += replies
        return answers

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch` in a thread, so that the event loop runs on."""
        return await run_in_executor(None, self.batch, inputs, config, return_exceptions=return_exceptions, **kwargs)

    def _meeting(self) -> Gathering[_Request, Answer] | None:
        """The batch that this call belongs to; not that of another model, whose callbacks may have called this one."""
        gathering = _gathering.get()
        return gathering if gathering is not None and gathering.owner is self else None

    def _answer_all(self, requests: Sequence[_Request]) -> list[Answer | Exception]:
        """Those about the same documents together; where that fails, one by one, so that each has its own error."""
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(request.call.group, []).append(number)
        replies: dict[int, Answer | Exception] = {}
        for members in groups.values():
            questions: list[Any] = [requests[number].conversation.messages for number in members]
            try:
                answers: Sequence[Answer | Exception]
                answers = self.engine.generate(questions, **requests[members[0]].call.arguments)
            except FocusError:
                answers = [self._answer_or_error(requests[number]) for number in members]
            replies.update(zip(members, answers, strict=True))
        return [replies[number] for number in range(len(requests))]

    def _answer_or_error(self, request: _Request) -> Answer | Exception:
        try:
            return self.engine.generate(request.conversation.messages, **request.call.arguments)
        except FocusError as error:
            return error

    # --- objects ------------------------------------------------------------------------------------------------------

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: str = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Asks for JSON that fits `schema` and parses what comes. The prompt is all: nothing forces the model.

        Args:
            method: for tracing; all of LangChain's mean the same here
            include_raw: give `{"raw", "parsed", "parsing_error"}` and raise nothing where the answer cannot be parsed
            strict: accepted for LangChain's sake
            kwargs: settings of the call, such as `documents`

        Raises:
            OutputParserException: (when run) the answer is no JSON, or does not fit
        """
        tracing = {"kwargs": {"method": method}, "schema": schema}
        return structured_output(
            self.bind(ls_structured_output_format=tracing, **kwargs), schema, include_raw=include_raw
        )

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Refused.

        Raises:
            NotImplementedError: the model was not trained to call tools; accepting them would drop them in silence
        """
        raise NotImplementedError("ChatFocusLLM takes no tools. Use with_structured_output for JSON answers.")
