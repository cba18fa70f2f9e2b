"""ChatFocusLLM: the chat model of LangChain, with whole documents beside the messages or in them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel, LangSmithParams, LanguageModelInput, ModelProfile
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable, RunnableConfig
from langchain_core.runnables.config import get_config_list, patch_config
from pydantic import ConfigDict, model_validator

from focus_core import Answer, Document, Finished
from focus_core.engine.answers import Event
from focus_core.errors import ConfigError
from focus_integrations.langchain.base import PROVIDER, LangChainSettings, answer_metadata, cited_text, usage_metadata
from focus_integrations.langchain.bound import BoundChatModel
from focus_integrations.langchain.documents import CARRIERS, whole_documents_of
from focus_integrations.langchain.messages import Conversation, conversation_from, countable
from focus_integrations.langchain.readings import (
    begun_in,
    begun_later_in,
    present_run,
    relaying,
    run_of_stream,
    telling,
)
from focus_integrations.langchain.structured import structured_output
from focus_integrations.settings import Call, content_digest, without_duplicates
from focus_integrations.sources import live_metadata
from focus_integrations.streams import OnReading, answers_in_thread, in_thread

# Names that LangChain passes to any chat model; a local one has no use for them.
_WITHOUT_EFFECT = {"api_key", "base_url", "max_retries", "timeout"}
_LARGEST_BATCH = 64  # threads


@dataclass(frozen=True)
class _ChatRequest:
    conversation: Conversation
    call: Call


class ChatFocusLLM(LangChainSettings, BaseChatModel):
    """A local chat model that answers from whole documents.

    Example:
        `ChatFocusLLM().invoke("Who signed the contract?", documents=documents)`

    Documents come as `text-plain` blocks in the messages, and per call as `documents` (LangChain's, strings, or
    prepared ones), in this order. A call also takes `stop`, `system_prompt` and everything in
    `focus_integrations.settings.PER_CALL`. A conversation may itself be longer than the window: all but its end
    is then prefilled in chunks.
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
        for name in CARRIERS:
            if kwargs.get(name) is not None:
                kwargs[name] = content_digest(without_duplicates(whole_documents_of(kwargs[name])))
        return super()._get_llm_string(stop, **kwargs)

    # --- counting -----------------------------------------------------------------------------------------------------

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Tokens of the conversation with its template, and of the documents in it: as the answer's usage counts them.

        Counts whatever `trim_messages` tries: nothing, parts of a conversation, messages that this model cannot read
        (of tools, with images), of which it counts the text.

        Raises:
            ConfigError: `tools` are given, which this model cannot take
        """
        if tools:
            raise ConfigError("This model takes no tools.")
        if not messages:
            return 0
        conversation = countable(messages, self.system_prompt)
        documents = sum(map(self.engine.count_tokens, dict.fromkeys(one.text for one in conversation.documents)))
        try:
            spoken = self.engine.count_question_tokens(conversation.messages, chat_template=self.chat_template)
        except ConfigError:  # the template refuses it, or nothing is left to answer
            spoken = sum(self.engine.count_tokens(message["content"]) for message in conversation.messages)
        return spoken + documents

    # --- answers ------------------------------------------------------------------------------------------------------

    def _request(
        self, messages: list[BaseMessage], stop: list[str] | None, given: dict[str, Any], *, streamed: bool = False
    ) -> _ChatRequest:
        call = self.call_with(given, stop, streamed=streamed)
        conversation = conversation_from(messages, call.system_prompt)
        in_messages = [Document(one.text, name=one.name, own=one.own) for one in conversation.documents]
        return _ChatRequest(conversation, Call([*in_messages, *call.documents], call.options))

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        on_reading = telling(run_manager)
        answer = self.engine.generate(request.conversation.messages, **request.call.arguments, on_reading=on_reading)
        return self._result(answer)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        request = self._request(messages, stop, kwargs)
        relay = relaying(run_manager)
        events = self._events([request.conversation.messages], request.call, on_reading=relay)
        (answer,) = await answers_in_thread(events, 1, relay)
        return self._result(answer)

    def _result(self, answer: Answer) -> ChatResult:
        cited = cited_text(answer.text, answer.sources, length=len(answer.text))
        message = AIMessage(
            answer.text if answer.explanation is None else [cast(dict[str, Any], cited)],
            usage_metadata=usage_metadata(answer.usage),
            response_metadata=self._response_metadata(answer),
        )
        return ChatResult(generations=[ChatGeneration(message=message, generation_info={})])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in self._chunks(self._request(messages, stop, kwargs, streamed=True), telling(run_manager)):
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
        relay = relaying(run_manager)
        made = self._chunks(self._request(messages, stop, kwargs, streamed=True), relay)
        async with aclosing(in_thread(made, relay)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _chunks(self, request: _ChatRequest, on_reading: OnReading | None) -> Iterator[ChatGenerationChunk]:
        cited, length = bool(request.call.options["sources"]), 0
        with closing(self._events([request.conversation.messages], request.call, on_reading=on_reading)) as events:
            for _, event in events:
                length += len(event.text)
                yield ChatGenerationChunk(message=self._message_chunk(event, length if cited else None))

    def _message_chunk(self, event: Event, length: int | None) -> AIMessageChunk:
        """A piece of the answer.

        Args:
            length: characters so far, where citations are wanted: then all pieces are of one block
        """
        content: str | list[str | dict[str, Any]] = event.text
        if length is not None:
            sources = event.sources if isinstance(event, Finished) else ()
            content = [cast(dict[str, Any], cited_text(event.text, sources, length=length, index=0))]
        if not isinstance(event, Finished):
            return AIMessageChunk(content=content, response_metadata=live_metadata(event))
        return AIMessageChunk(
            content=content,
            usage_metadata=usage_metadata(event.usage),
            response_metadata={**self._response_metadata(event), **live_metadata(event)},
            chunk_position="last",
        )

    def _response_metadata(self, end: Answer | Finished) -> dict[str, Any]:
        return {"model_name": self.model, "model_provider": PROVIDER, **answer_metadata(end)}

    # --- runs ---------------------------------------------------------------------------------------------------------
    # LangChain names the run of a stream to nobody; those who read must know whom to tell.

    def stream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> Iterator[AIMessageChunk]:
        """LangChain's `stream`."""
        config, run = run_of_stream(self, config)
        yield from begun_in(run, super().stream(input, config, stop=stop, **kwargs))

    async def astream(
        self,
        input: LanguageModelInput,
        config: RunnableConfig | None = None,
        *,
        stop: list[str] | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[AIMessageChunk]:
        """LangChain's `astream`."""
        config, run = run_of_stream(self, config)
        async with aclosing(begun_later_in(run, super().astream(input, config, stop=stop, **kwargs))) as chunks:
            async for chunk in chunks:
                yield chunk

    def _generate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with present_run(run_manager):  # with `streaming` it streams
            return super()._generate_with_cache(messages, stop, run_manager, **kwargs)

    async def _agenerate_with_cache(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        with present_run(run_manager):
            return await super()._agenerate_with_cache(messages, stop, run_manager, **kwargs)

    # --- batches ------------------------------------------------------------------------------------------------------

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """LangChain's `batch`, one thread for each input, so that all of them share the engine's passes.

        `max_concurrency` bounds how many run at a time.
        """
        most = min(len(inputs), _LARGEST_BATCH)
        configs = [
            patch_config(one, max_concurrency=one.get("max_concurrency") or most)
            for one in get_config_list(config, len(inputs))
        ]
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

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
        """Asks for JSON that fits `schema` and parses the answer. The prompt alone asks: decoding is not constrained.

        Args:
            method: one of LangChain's, for tracing: all of them mean the same here. The engine's method is a setting of
                the model
            include_raw: give `{"raw", "parsed", "parsing_error"}` and raise nothing where the answer cannot be parsed
            strict: accepted for LangChain's sake
            kwargs: settings of the call, such as `documents`

        Raises:
            ConfigError: `method` is none of LangChain's
            OutputParserException: (when run) the answer is no JSON, or does not fit
        """
        return structured_output(self, schema, method=method, include_raw=include_raw, **kwargs)

    def bind(self, **kwargs: Any) -> BoundChatModel:  # type: ignore[override]  # LangChain's own type is private
        """Arguments for every call: `documents`, settings, `stop`. Those of the call replace those of the same name."""
        return BoundChatModel(bound=self, kwargs=kwargs, config={})

    def bind_tools(self, tools: Sequence[Any], **kwargs: Any) -> Runnable[LanguageModelInput, AIMessage]:
        """Refused.

        Raises:
            NotImplementedError: the model was not trained to call tools; accepting them would drop them in silence
        """
        raise NotImplementedError("ChatFocusLLM takes no tools. Use with_structured_output for JSON answers.")
