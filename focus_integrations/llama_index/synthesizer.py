"""FocusSynthesizer: one call to the engine with all documents whole, in the place of refine loops."""

from __future__ import annotations

import warnings
from collections.abc import AsyncGenerator, Generator, Sequence
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers.base import BaseSynthesizer, QueryTextType
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from llama_index.core.types import RESPONSE_TEXT_TYPE
from pydantic import BaseModel

from focus_core.errors import ConfigError
from focus_integrations.llama_index.llm import FocusLLM
from focus_integrations.llama_index.whole import WholeDocument, whole_documents

dispatcher = get_dispatcher(__name__)

QUESTION = PromptTemplate("{query_str}")
DOCUMENT = PromptTemplate("{text}")


class FocusSynthesizer(BaseSynthesizer):
    """Answers from the whole documents behind the nodes, in one call.

    Nodes are put together by document. The source nodes of the response are the nodes that came in, and its metadata
    hold the usage of the call under `"focus"` (once a stream has ended).

    Another model than `FocusLLM` works too, with a warning: it gets the documents joined in its prompt.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        docstore: BaseDocumentStore | None = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        text_qa_template: BasePromptTemplate | None = None,
        document_template: BasePromptTemplate | None = None,
        empty_response: str | None = None,
        callback_manager: CallbackManager | None = None,
    ) -> None:
        """Args:
        llm: a `FocusLLM`; by default `Settings.llm`
        docstore: where originals may be kept, preferred to what nodes say
        output_cls: answer with an instance of this class, by asking for JSON
        text_qa_template: the question as the model sees it, from `query_str`; `context_str` stays empty in it, because
            documents go beside the prompt
        document_template: a document as the model sees it, from `text` and its metadata

        Raises:
            ConfigError: there is no model
        """
        llm = llm or Settings._llm  # the property would look for an OpenAI key
        if llm is None:
            raise ConfigError("No model: give FocusSynthesizer(llm=FocusLLM(…)), or set Settings.llm.")
        if isinstance(llm, StructuredLLM):
            llm, output_cls = llm.llm, output_cls or llm.output_cls
        self._focus = llm if isinstance(llm, FocusLLM) else None
        if self._focus is None:
            warnings.warn(
                f"{type(llm).__name__} cannot take whole documents: they are joined in its prompt, and what does not "
                "fit its window fails or is lost there. Give a FocusLLM.",
                stacklevel=2,
            )
        self._docstore = docstore
        self._question = text_qa_template or (QUESTION if self._focus else DEFAULT_TEXT_QA_PROMPT_SEL)
        self._document = document_template or DOCUMENT
        super().__init__(
            llm=llm,
            callback_manager=callback_manager,
            streaming=streaming,
            output_cls=output_cls,
            empty_response=empty_response,
            # Never used here. LlamaIndex's own would set the tokenizer of the whole process.
            prompt_helper=PromptHelper.from_llm_metadata(LLMMetadata(), tokenizer=str.split),
            chat_prompt_helper=ChatPromptHelper.from_llm_metadata(LLMMetadata(), tokenizer=str.split),
        )

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._question, "document_template": self._document}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        self._question = prompts.get("text_qa_template", self._question)
        self._document = prompts.get("document_template", self._document)

    # --- nodes to documents, and back ---------------------------------------------------------------------------------

    def synthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """LlamaIndex's `synthesize` on whole documents."""
        usage: dict[str, Any] = {}
        response = super().synthesize(query, self._whole(nodes), focus_usage=usage, **response_kwargs)
        return self._with_sources(response, nodes, additional_source_nodes, usage)

    async def asynthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """LlamaIndex's `asynthesize` on whole documents."""
        usage: dict[str, Any] = {}
        response = await super().asynthesize(query, self._whole(nodes), focus_usage=usage, **response_kwargs)
        return self._with_sources(response, nodes, additional_source_nodes, usage)

    def _whole(self, nodes: list[NodeWithScore]) -> list[NodeWithScore]:
        return [self._as_node(document) for document in whole_documents(nodes, self._docstore)]

    def _as_node(self, document: WholeDocument) -> NodeWithScore:
        text = self._document.format(**{**document.metadata, "text": document.text})
        return NodeWithScore(node=TextNode(id_=document.key, text=text))

    def _with_sources(
        self,
        response: RESPONSE_TYPE,
        nodes: list[NodeWithScore],
        additional: Sequence[NodeWithScore] | None,
        usage: dict[str, Any],
    ) -> RESPONSE_TYPE:
        response.source_nodes = [*nodes, *(additional or [])]
        response.metadata = {**self._get_metadata_for_response([found.node for found in nodes]), "focus": usage}
        return response

    # --- answers ------------------------------------------------------------------------------------------------------

    @dispatcher.span
    def get_response(
        self, query_str: str, text_chunks: Sequence[str], focus_usage: dict[str, Any] | None = None, **prompt_args: Any
    ) -> RESPONSE_TEXT_TYPE:
        """The answer from `text_chunks`, each a whole document.

        Raises:
            FocusError: what the engine raises; nothing becomes an "Empty Response"
        """
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        usage = {} if focus_usage is None else focus_usage
        messages, documents = self._asked(query_str, text_chunks, prompt_args)
        answer: Any
        if self._streaming and self._output_cls is None:
            answer = _deltas(self._llm.stream_chat(messages, **documents), usage)
        else:
            response = self._llm.chat(messages, **documents)
            answer = self._read(response, usage)
        dispatcher.event(GetResponseEndEvent())
        return answer

    @dispatcher.span
    async def aget_response(
        self, query_str: str, text_chunks: Sequence[str], focus_usage: dict[str, Any] | None = None, **prompt_args: Any
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response`, leaving the event loop free."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        usage = {} if focus_usage is None else focus_usage
        messages, documents = self._asked(query_str, text_chunks, prompt_args)
        answer: Any
        if self._streaming and self._output_cls is None:
            answer = _adeltas(await self._llm.astream_chat(messages, **documents), usage)
        else:
            response = await self._llm.achat(messages, **documents)
            answer = self._read(response, usage)
        dispatcher.event(GetResponseEndEvent())
        return answer

    def _asked(
        self, query_str: str, texts: Sequence[str], prompt_args: dict[str, Any]
    ) -> tuple[list[ChatMessage], dict[str, Any]]:
        """Messages, and the arguments that carry the documents."""
        template = self._question
        context = "" if self._focus else "\n\n".join(texts)
        if self._output_cls is not None:
            query_str = PydanticOutputParser(self._output_cls).format(query_str)
        if not self._focus and "context_str" not in template.template_vars:
            query_str = f"{context}\n\n{query_str}"
        messages = template.format_messages(llm=self._llm, query_str=query_str, context_str=context, **prompt_args)
        messages = self._llm._extend_messages(messages)
        return messages, {"documents": list(texts)} if self._focus else {}

    def _read(self, response: ChatResponse, usage: dict[str, Any]) -> str | BaseModel:
        _note_usage(response, usage)
        text = response.message.content or ""
        return text if self._output_cls is None else PydanticOutputParser(self._output_cls).parse(text)


def _deltas(responses: Generator[ChatResponse, None, None], usage: dict[str, Any]) -> Generator[str, None, None]:
    for response in responses:
        _note_usage(response, usage)
        yield response.delta or ""


async def _adeltas(responses: AsyncGenerator[ChatResponse, None], usage: dict[str, Any]) -> AsyncGenerator[str, None]:
    async for response in responses:
        _note_usage(response, usage)
        yield response.delta or ""


def _note_usage(response: ChatResponse, usage: dict[str, Any]) -> None:
    if isinstance(response.raw, dict):
        usage.update(response.raw.get("usage", {}), finish_reason=response.raw.get("finish_reason"))
