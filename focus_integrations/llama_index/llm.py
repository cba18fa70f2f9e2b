"""FocusLLM: the language model of LlamaIndex, with whole documents beside the prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from llama_index.core.base.llms.generic_utils import messages_to_prompt as any_messages_to_prompt
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import default_completion_to_prompt
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from pydantic import ConfigDict, Field, field_validator
from pydantic.json_schema import SkipJsonSchema

from focus_core import Answer, Document, Finished, PreparedDocuments
from focus_core.engine.engine import Question
from focus_core.errors import ConfigError, DocumentError
from focus_integrations.conversations import merged
from focus_integrations.llama_index.events import relaying, tell
from focus_integrations.llama_index.inputs import of_messages, warn_of_pictures
from focus_integrations.llama_index.structured import StructuredAnswers
from focus_integrations.settings import Call, FocusSettings, WholeText, documents_from, kind_of
from focus_integrations.sources import live_metadata, sources_metadata
from focus_integrations.streams import OnReading, answers_in_thread, in_thread

_ROLES = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
}


@dataclass(frozen=True)
class _LlamaRequest:
    question: Question
    call: Call


class FocusLLM(FocusSettings, StructuredAnswers):
    """A local model that answers from whole documents.

    Example:
        `FocusLLM().complete("Who signed the contract?", documents=documents)`

    All eight endpoints take `documents` (nodes, documents, strings, or prepared ones), `stop`, `system_prompt` and
    everything in `focus_integrations.settings.PER_CALL`. Without `documents` a prompt may itself be longer than the
    window: all but its end is then prefilled in chunks. Prompts go through the model's chat template, except those that
    LlamaIndex has formatted already, or that `completion_to_prompt` and `messages_to_prompt` format if they are given.
    """

    model_config = ConfigDict(extra="forbid", populate_by_name=True, protected_namespaces=())

    _streaming_calls: ClassVar[str] = "stream_complete() or stream_chat()"

    documents: SkipJsonSchema[Any] = Field(default=(), exclude=True, repr=False)
    """Read with every question, before those of a call. For chat engines, agents and others that hand over none."""

    @field_validator("documents", mode="before")
    @classmethod
    def _as_documents(cls, documents: Any) -> tuple[WholeText, ...]:
        return () if documents is None else tuple(whole_documents_of(documents))

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._as_documents(value) if name == "documents" else value)

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> FocusLLM:
        memo = {} if memo is None else memo
        memo.update({id(document): document for document in self.documents})  # they never change
        return super().__deepcopy__(memo)

    def __getstate__(self) -> dict[Any, Any]:
        """Without the engine, and with the documents.

        Raises:
            ConfigError: documents are prepared, or the wrapper was made `from_engine`
        """
        if any(isinstance(document, PreparedDocuments) for document in self.documents):
            raise ConfigError("Prepared documents exist in this process only. Give FocusLLM(documents=…) their texts.")
        return super().__getstate__()

    @classmethod
    def class_name(cls) -> str:
        return "FocusLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """`context_window` is the length of documents that fit in chunks, not the window of the model."""
        longest = self.longest_input
        if longest is None:  # a model that is on no disk yet: it will be needed in any case
            assert self.engine
            longest = self.longest_input
        assert longest is not None
        return LLMMetadata(
            context_window=longest,
            num_output=self.longest_answer,
            is_chat_model=self.chat_template,
            model_name=self.model,
        )

    def tokenize(self, text: str) -> list[int]:
        """The model's own tokens, for `set_global_tokenizer` and prompt helpers."""
        return self.engine.tokenize(text)

    # --- eight endpoints ----------------------------------------------------------------------------------------------
    # No endpoint calls another: each fires callbacks, so one answer would be counted twice.

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _completion(self._answer(self._prompt_request(prompt, formatted, kwargs)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        return self._completions(self._prompt_request(prompt, formatted, kwargs, streamed=True))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        return _completion(await self._aanswer(self._prompt_request(prompt, formatted, kwargs)))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        relay = relaying()
        request = self._prompt_request(prompt, formatted, kwargs, streamed=True)
        return in_thread(self._completions(request, relay), relay)

    @of_messages
    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _chat(self._answer(self._chat_request(messages, kwargs)))

    @of_messages
    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        return self._chats(self._chat_request(messages, kwargs, streamed=True))

    @of_messages
    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        return _chat(await self._aanswer(self._chat_request(messages, kwargs)))

    @of_messages
    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        relay = relaying()
        return in_thread(self._chats(self._chat_request(messages, kwargs, streamed=True), relay), relay)

    # --- requests -----------------------------------------------------------------------------------------------------

    def _call_with(self, given: dict[str, Any], streamed: bool) -> Call:
        stop = given.pop("stop", None)
        documents = given.pop("documents", None)
        of_call = whole_documents_of(documents) if documents is not None else []
        return self.call({**given, "documents": [*self.documents, *of_call]}, stop, streamed=streamed)

    def _prompt_request(
        self, prompt: str, formatted: bool, given: dict[str, Any], *, streamed: bool = False
    ) -> _LlamaRequest:
        if not isinstance(prompt, str):
            raise ConfigError(f"prompt is {kind_of(prompt)}. Give a string; messages go to chat().")
        call = self._call_with(dict(given), streamed)
        if formatted:  # by LlamaIndex: system prompt and templates are in it
            if "system_prompt" in given:
                raise ConfigError("system_prompt with formatted=True: such a prompt holds it already. Leave one out.")
            return _as_it_stands(prompt, call)
        if self.completion_to_prompt in (None, default_completion_to_prompt):
            return _LlamaRequest(merged([("user", prompt)], call.system_prompt), call)
        prompt = self.completion_to_prompt(prompt)
        return _as_it_stands(f"{call.system_prompt}\n\n{prompt}" if call.system_prompt else prompt, call)

    def _chat_request(
        self, messages: Sequence[ChatMessage], given: dict[str, Any], *, streamed: bool = False
    ) -> _LlamaRequest:
        call = self._call_with(dict(given), streamed)
        conversation = merged([(_role(m), _text(m)) for m in messages], call.system_prompt)
        if self.messages_to_prompt in (None, any_messages_to_prompt):
            return _LlamaRequest(conversation, call)
        return _as_it_stands(self.messages_to_prompt([ChatMessage(**message) for message in conversation]), call)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _answer(self, request: _LlamaRequest) -> Answer:
        return self.engine.generate(request.question, **request.call.arguments, on_reading=tell)

    async def _aanswer(self, request: _LlamaRequest) -> Answer:
        relay = relaying()
        events = self._events([request.question], request.call, on_reading=relay)
        (answer,) = await answers_in_thread(events, 1, relay)
        return answer

    def _completions(self, request: _LlamaRequest, on_reading: OnReading = tell) -> CompletionResponseGen:
        for text, delta, raw in self._pieces(request, on_reading):
            yield CompletionResponse(text=text, delta=delta, raw=raw)

    def _chats(self, request: _LlamaRequest, on_reading: OnReading = tell) -> ChatResponseGen:
        for text, delta, raw in self._pieces(request, on_reading):
            yield ChatResponse(message=_message(text), delta=delta, raw=raw)

    def _pieces(
        self, request: _LlamaRequest, on_reading: OnReading
    ) -> Iterator[tuple[str, str, dict[str, Any] | None]]:
        """Text so far, its newest part, and the content of `raw`: of that part, and at the end of the answer."""
        text = ""
        with closing(self._events([request.question], request.call, on_reading=on_reading)) as events:
            for _, event in events:
                text += event.text
                raw = {**live_metadata(event), **(_raw(event) if isinstance(event, Finished) else {})}
                yield text, event.text, raw or None


def _as_it_stands(prompt: str, call: Call) -> _LlamaRequest:
    return _LlamaRequest(prompt, Call(call.documents, {**call.options, "chat_template": False}))


def whole_documents_of(
    documents: str | Document | PreparedDocuments | BaseNode | NodeWithScore | Sequence[Any],
) -> list[WholeText]:
    """LlamaIndex's documents and nodes as the engine's: the text as it stands.

    Name and metadata stay with a document; the model does not see them.

    Raises:
        DocumentError: something that is neither a node nor text, or a generator
    """
    return documents_from(documents, BaseNode | NodeWithScore, _from_node, called="LlamaIndex Document or node")


def named_document(text: str, metadata: dict[str, Any], key: str, own: tuple[int, int] | None = None) -> Document:
    """A core document under its file's name, where its metadata have one, else under its id."""
    return Document(text, name=str(metadata.get("file_name") or key), metadata=metadata, own=own)


def _from_node(found: BaseNode | NodeWithScore) -> Document:
    node = found.node if isinstance(found, NodeWithScore) else found
    text = node.get_content(MetadataMode.NONE)
    if not text.strip():
        raise DocumentError(
            f"{type(node).__name__} {node.node_id!r} holds no text, and this model reads nothing else. Leave it out or "
            "give its text."
        )
    warn_of_pictures([node])
    return named_document(text, node.metadata, node.node_id)


def _role(message: ChatMessage) -> str:
    if message.role not in _ROLES:
        raise ConfigError(f"A message of the role {message.role.value!r} cannot be read: this model takes no tools.")
    return _ROLES[message.role]


def _text(message: ChatMessage) -> str:
    foreign = next((block for block in message.blocks if not isinstance(block, TextBlock)), None)
    if foreign is not None:
        raise ConfigError(f"A {type(foreign).__name__} cannot be read: this model reads text only.")
    return message.content or ""


def _message(text: str) -> ChatMessage:
    return ChatMessage(role=MessageRole.ASSISTANT, content=text)


def _raw(end: Answer | Finished) -> dict[str, Any]:
    """Usage as LlamaIndex's token counters read it, and everything that the engine tells about the answer."""
    usage = end.usage
    counts = {"prompt_tokens": usage.input_tokens, "completion_tokens": usage.output_tokens}
    total = {"total_tokens": usage.input_tokens + usage.output_tokens}
    return {
        "usage": {**counts, **total, **asdict(usage)},
        "finish_reason": end.finish_reason,
        "method": end.method,
        **sources_metadata(end),
    }


def _completion(answer: Answer) -> CompletionResponse:
    return CompletionResponse(text=answer.text, raw=_raw(answer))


def _chat(answer: Answer) -> ChatResponse:
    return ChatResponse(message=_message(answer.text), raw=_raw(answer))
