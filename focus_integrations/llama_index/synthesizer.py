"""FocusSynthesizer: one call to the engine with all documents whole, in the place of refine loops."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from functools import partial
from typing import Any

from llama_index.core import Settings
from llama_index.core.base.llms.types import ChatMessage, ChatResponse, LLMMetadata
from llama_index.core.base.response.schema import RESPONSE_TYPE
from llama_index.core.callbacks import CallbackManager
from llama_index.core.indices.prompt_helper import ChatPromptHelper, PromptHelper
from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events.synthesis import GetResponseEndEvent, GetResponseStartEvent
from llama_index.core.llms import LLM
from llama_index.core.llms.structured_llm import StructuredLLM
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate, SelectorPromptTemplate
from llama_index.core.prompts.default_prompt_selectors import DEFAULT_TEXT_QA_PROMPT_SEL
from llama_index.core.prompts.mixin import PromptDictType
from llama_index.core.response_synthesizers.base import BaseSynthesizer, QueryTextType
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.types import RESPONSE_TEXT_TYPE
from pydantic import BaseModel, PrivateAttr

from focus_core.engine.options import nearest
from focus_core.errors import ConfigError, DocumentError, shown
from focus_integrations.llama_index.inputs import (
    docstore_from,
    hits_from,
    model_from,
    output_class,
    query_from,
    template_from,
    warn_of_pictures,
)
from focus_integrations.llama_index.llm import FocusLLM
from focus_integrations.llama_index.numbered import numbered
from focus_integrations.llama_index.passages import ShownDocument, ShownDocuments
from focus_integrations.llama_index.structured import ObjectParser
from focus_integrations.llama_index.whole import WholeDocument, whole_documents
from focus_integrations.templates import through_template

dispatcher = get_dispatcher(__name__)

QUESTION = PromptTemplate("{query_str}")
DOCUMENT = PromptTemplate("{text}")

_PROMPTS = {"text_qa_template": "query_str", "document_template": "text"}  # and what each must hold
_WITHOUT_USE = {
    "response_mode": "There is one mode: all documents, whole, in one call. Leave it out.",
    "refine_template": "It asks once and refines nothing: give text_qa_template.",
    "summary_template": "It asks once and summarizes nothing in between: give text_qa_template.",
    "simple_template": "Give text_qa_template.",
    "prompt_helper": "No text is cut or packed. Leave it out.",
    "chat_prompt_helper": "No text is cut or packed. Leave it out.",
    "use_async": "There is one call, and aquery() leaves the event loop free. Leave it out.",
    "structured_answer_filtering": "There is one answer, so none to filter. Leave it out.",
    **dict.fromkeys(("store", "store_limit"), "Give it to the model: llm=FocusLLM(store=…)."),
    "documents": "Give them to the model: FocusLLM(documents=…), or as nodes to synthesize().",
}

_LIVE = "live_evidence"  # in the metadata of a streamed response, where it is asked for: an entry for each piece so far
_OF_SOURCES = ("sources", "documents", "supported", "support", "explained")  # in the metadata, where they are asked for
_FORMATTED = "string_to_format"  # the only name that LlamaIndex's formatter keeps for itself

UsageRecord = dict[str, Any]


class FocusSynthesizer(BaseSynthesizer):
    """Answers from the whole documents that the nodes belong to, in one call.

    Nodes are put together by document. The source nodes of the response are the nodes that came in, and its metadata
    hold the usage of the call under `"focus"` (once a stream has ended). With `FocusLLM(sources=True)` that record also
    has the sources of the answer, and the source nodes have the scores of the passages in them, the best first (unless
    the answer is streamed: they are handed over before it). Of a streamed answer with `FocusLLM(live_evidence=True)` it
    has an entry for each piece so far.

    Another model than `FocusLLM` works too, with a warning: it gets the documents joined in its prompt.
    """

    def __init__(
        self,
        llm: LLM | None = None,
        *,
        docstore: Any = None,
        streaming: bool = False,
        output_cls: type[BaseModel] | None = None,
        text_qa_template: BasePromptTemplate | str | None = None,
        document_template: BasePromptTemplate | str | None = None,
        numbered_sources: bool = False,
        empty_response: str | None = None,
        callback_manager: CallbackManager | None = None,
        **unknown: Any,
    ) -> None:
        """Args:
        llm: a `FocusLLM`; by default `Settings.llm`
        docstore: a docstore, or an index or storage context that has one. It may hold the originals, which are
            preferred to text put together from nodes
        streaming: the response holds a generator of its text; not with `output_cls`
        output_cls: answer with an instance of this class, by asking for JSON
        text_qa_template: the question as the model sees it, from `query_str`; `context_str` stays empty in it, because
            documents go beside the prompt
        document_template: a document as the model sees it, from `text` and its metadata; names that its metadata lack
            stay empty
        numbered_sources: the answer ends with the numbers of its sources, `[1][2]`, and the source nodes are these
            passages, the first one beginning "Source 1:"; needs `FocusLLM(sources=True)`, and the whole answer at once

        Raises:
            ConfigError: there is no model, or an argument cannot work
        """
        _refuse(unknown)
        for name, given, kind in (
            ("streaming", streaming, bool),
            ("numbered_sources", numbered_sources, bool),
            ("empty_response", empty_response, str | None),
            ("callback_manager", callback_manager, CallbackManager | None),
        ):
            if not isinstance(given, kind):
                raise ConfigError(f"{name}={given!r}: must be of the type {getattr(kind, '__name__', kind)}.")
        if llm is None:
            if Settings._llm is None:  # asking for Settings.llm would look for an OpenAI key
                raise ConfigError("No model: give FocusSynthesizer(llm=FocusLLM(…)), or set Settings.llm.")
            llm = Settings.llm
        llm = model_from(llm)
        output_cls = None if output_cls is None else output_class(output_cls)
        if isinstance(llm, StructuredLLM):
            output_cls = output_cls or llm.output_cls
            llm = llm.llm
        self._focus = llm if isinstance(llm, FocusLLM) else None
        self._numbered = numbered_sources
        if numbered_sources:
            self._require_numbers(streaming=streaming, output_cls=output_cls)
        if self._focus is None:
            warnings.warn(
                f"{type(llm).__name__} cannot take whole documents: they are joined in its prompt, and text beyond "
                "its window fails or is dropped there. Give a FocusLLM.",
                stacklevel=2,
            )
        self._docstore = docstore_from(docstore)
        self._question: BasePromptTemplate = QUESTION if self._focus else DEFAULT_TEXT_QA_PROMPT_SEL
        self._document: BasePromptTemplate = DOCUMENT
        templates = {"text_qa_template": text_qa_template, "document_template": document_template}
        self._update_prompts({name: given for name, given in templates.items() if given is not None})  # type: ignore[misc]
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

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what would change nothing: the arguments are read once.

        Raises:
            ConfigError: an argument, or a name that nothing reads
        """
        if not name.startswith("_") and not hasattr(type(self), name):
            raise ConfigError(
                f"{name}={shown(value)}: a FocusSynthesizer is not changed after it is made. Make another one, or "
                "change its model: settings of a FocusLLM hold from the next question on."
            )
        super().__setattr__(name, value)

    def _require_numbers(self, *, streaming: bool, output_cls: type[BaseModel] | None) -> None:
        """Refuse numbered sources where there can be none."""
        if self._focus is None or not self._focus.sources:
            raise ConfigError("numbered_sources=True needs a model that finds sources: llm=FocusLLM(…, sources=True).")
        for name, given in (("streaming", streaming), ("output_cls", output_cls is not None)):
            if given:
                raise ConfigError(
                    f"numbered_sources=True with {name}: the sources are known when the answer has ended, and stand in "
                    "its text. Leave one of the two out."
                )

    def _get_prompts(self) -> PromptDictType:
        return {"text_qa_template": self._question, "document_template": self._document}

    def _update_prompts(self, prompts: PromptDictType) -> None:
        unknown = [name for name in prompts if name not in _PROMPTS]
        if unknown:
            raise ConfigError(
                f"FocusSynthesizer has no prompt {', '.join(map(repr, unknown))}: it asks once, and refines nothing. "
                f"Its prompts are {' and '.join(_PROMPTS)}."
            )
        made = {name: template_from(prompts[name], called=name, variable=_PROMPTS[name]) for name in prompts}
        self._question = made.get("text_qa_template", self._question)
        self._document = made.get("document_template", self._document)

    # --- nodes to documents, and back ---------------------------------------------------------------------------------

    def synthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """LlamaIndex's `synthesize` on whole documents.

        Raises:
            FocusError: bad nodes or a bad question, and any error of the engine
        """
        usage: UsageRecord = {}
        query, hits = query_from(query), hits_from(nodes)
        more = hits_from(additional_source_nodes or [], called="additional_source_nodes")
        whole = self._whole(hits, usage)
        response = super().synthesize(
            query,
            _with_scores(whole),
            more,
            focus_usage=usage,
            focus_documents=[node._shown for node in whole],
            **response_kwargs,
        )
        return _with_usage(response, usage)

    async def asynthesize(
        self,
        query: QueryTextType,
        nodes: list[NodeWithScore],
        additional_source_nodes: Sequence[NodeWithScore] | None = None,
        **response_kwargs: Any,
    ) -> RESPONSE_TYPE:
        """LlamaIndex's `asynthesize` on whole documents."""
        usage: UsageRecord = {}
        query, hits = query_from(query), hits_from(nodes)
        more = hits_from(additional_source_nodes or [], called="additional_source_nodes")
        whole = await asyncio.to_thread(self._whole, hits, usage)  # a docstore may be a database
        response = await super().asynthesize(
            query,
            _with_scores(whole),
            more,
            focus_usage=usage,
            focus_documents=[node._shown for node in whole],
            **response_kwargs,
        )
        return _with_usage(response, usage)

    def _whole(self, nodes: list[NodeWithScore], usage: UsageRecord) -> list[_WholeNode]:
        documents = whole_documents(nodes, self._docstore)
        empty = [document.key for document in documents if not document.text.strip()]
        if documents and len(empty) == len(documents):
            raise DocumentError(f"None of the documents has any text: {', '.join(empty)}.")
        if empty:
            warnings.warn(f"Documents without text are left out: {', '.join(empty)}.", stacklevel=3)
        listed = [self._as_node(document) for document in documents if document.key not in empty]
        warn_of_pictures(hit.node for hit in nodes)
        for node in listed:
            node._found, node._usage = nodes, usage
        return listed

    def _as_node(self, document: WholeDocument) -> _WholeNode:
        text, own = through_template(partial(self._formatted, document), document.text)
        node = _WholeNode(id_=document.key, text=text)
        node._shown = ShownDocument(document, text, own)
        return node

    def _formatted(self, document: WholeDocument, text: str) -> str:
        """The document with this text as the document template has it."""
        template = self._document
        if isinstance(template, SelectorPromptTemplate):
            template = template.select(self._llm)
        absent = dict.fromkeys(template.template_vars, "")
        values = {**absent, **template.kwargs, **document.metadata, "text": text}
        # Not as arguments of `format`: metadata may have their names, such as "self" and "llm".
        values.pop(_FORMATTED, None)
        return template.model_copy(update={"kwargs": values}).format()

    def _prepare_response_output(
        self, response_str: RESPONSE_TEXT_TYPE | None, source_nodes: list[NodeWithScore]
    ) -> RESPONSE_TYPE:
        """The response with the nodes that came in for source nodes. Made here, so that events show it like that."""
        first = source_nodes[0].node
        assert isinstance(first, _WholeNode)
        additional = [source for source in source_nodes if not isinstance(source.node, _WholeNode)]
        shown = ShownDocuments([source.node._shown for source in source_nodes if isinstance(source.node, _WholeNode)])
        found, sources = first._found, first._usage.get("sources")
        if self._numbered and isinstance(response_str, str):
            response_str, found = numbered(response_str, sources or (), shown, found)
        elif sources is not None:
            found = shown.by_evidence(found, sources)
        response = super()._prepare_response_output(response_str, [*found, *additional])
        return _with_usage(response, first._usage)

    # --- answers ------------------------------------------------------------------------------------------------------

    @dispatcher.span
    def get_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        focus_usage: UsageRecord | None = None,
        focus_documents: Sequence[ShownDocument] | None = None,
        **prompt_args: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """The answer from `text_chunks`, each a whole document.

        Args:
            focus_usage: filled with the usage of the call
            focus_documents: the documents that have these texts

        Raises:
            FocusError: any error of the engine; none becomes an "Empty Response"
        """
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        usage: UsageRecord = {} if focus_usage is None else focus_usage
        answer: Any
        if self._focus is None:
            answer = self._joined(query_str, text_chunks, prompt_args)
        else:
            messages = self._asked(self._focus, query_str, prompt_args)
            shown = ShownDocuments(focus_documents or (), beside=self._focus.documents)
            documents: list[Any] = [one.for_engine for one in shown.documents] or list(text_chunks)
            if self._streaming and self._output_cls is None:
                answer = _deltas(self._focus.stream_chat(messages, documents=documents), usage, shown)
            else:
                answer = self._parsed(self._focus.chat(messages, documents=documents), usage, shown)
        dispatcher.event(GetResponseEndEvent())
        return answer  # type: ignore[no-any-return]

    @dispatcher.span
    async def aget_response(
        self,
        query_str: str,
        text_chunks: Sequence[str],
        focus_usage: UsageRecord | None = None,
        focus_documents: Sequence[ShownDocument] | None = None,
        **prompt_args: Any,
    ) -> RESPONSE_TEXT_TYPE:
        """`get_response`, leaving the event loop free."""
        dispatcher.event(GetResponseStartEvent(query_str=query_str, text_chunks=list(text_chunks)))
        usage: UsageRecord = {} if focus_usage is None else focus_usage
        answer: Any
        if self._focus is None:
            answer = await self._ajoined(query_str, text_chunks, prompt_args)
        else:
            messages = self._asked(self._focus, query_str, prompt_args)
            shown = ShownDocuments(focus_documents or (), beside=self._focus.documents)
            documents: list[Any] = [one.for_engine for one in shown.documents] or list(text_chunks)
            if self._streaming and self._output_cls is None:
                answer = _adeltas(await self._focus.astream_chat(messages, documents=documents), usage, shown)
            else:
                answer = self._parsed(await self._focus.achat(messages, documents=documents), usage, shown)
        dispatcher.event(GetResponseEndEvent())
        return answer  # type: ignore[no-any-return]

    def _asked(self, llm: FocusLLM, query_str: str, prompt_args: dict[str, Any]) -> list[ChatMessage]:
        if self._output_cls is not None:
            query_str = ObjectParser(self._output_cls).format(query_str)
        return llm._get_messages(self._question, query_str=query_str, context_str="", **prompt_args)

    def _parsed(self, response: ChatResponse, usage: UsageRecord, shown: ShownDocuments) -> str | BaseModel:
        _note_usage(response, usage, shown)
        text = response.message.content or ""
        if self._output_cls is None:
            return self._llm._parse_output(text)
        parsed: BaseModel = ObjectParser(self._output_cls).parse(text)
        return parsed

    # --- another model ------------------------------------------------------------------------------------------------

    def _joined(self, query_str: str, texts: Sequence[str], prompt_args: dict[str, Any]) -> Any:
        """As in LlamaIndex's simplest synthesizer: for a model that takes no documents."""
        given = self._joined_arguments(query_str, texts, prompt_args)
        if self._output_cls is not None:
            return self._llm.structured_predict(self._output_cls, self._question, **given)
        return (self._llm.stream if self._streaming else self._llm.predict)(self._question, **given)

    async def _ajoined(self, query_str: str, texts: Sequence[str], prompt_args: dict[str, Any]) -> Any:
        given = self._joined_arguments(query_str, texts, prompt_args)
        if self._output_cls is not None:
            asked = self._llm.astructured_predict(self._output_cls, self._question, **given)
            return await asked
        return await (self._llm.astream if self._streaming else self._llm.apredict)(self._question, **given)

    def _joined_arguments(self, query_str: str, texts: Sequence[str], prompt_args: dict[str, Any]) -> dict[str, Any]:
        context = "\n\n".join(texts)
        if "context_str" not in self._question.template_vars:
            query_str = f"{context}\n\n{query_str}"
        return {"query_str": query_str, "context_str": context, **prompt_args}


class _WholeNode(TextNode):
    """A document on its way through LlamaIndex's `synthesize`, which passes on its text and its id only."""

    _shown: ShownDocument = PrivateAttr()
    _found: list[NodeWithScore] = PrivateAttr(default_factory=list)
    _usage: UsageRecord = PrivateAttr(default_factory=dict)


def _refuse(unknown: dict[str, Any]) -> None:
    """Arguments that other synthesizers take, and slips of the pen."""
    for name in unknown:
        known = (
            *("llm", "docstore", "streaming", "output_cls", *_PROMPTS, "numbered_sources", "empty_response"),
            "callback_manager",
        )
        near = nearest(name, known)
        hint = _WITHOUT_USE.get(name) or (f"Did you mean {near!r}?" if near else f"It takes: {', '.join(known)}.")
        raise ConfigError(f"FocusSynthesizer takes no {name!r}. {hint}")


def _with_scores(nodes: Sequence[TextNode]) -> list[NodeWithScore]:
    return [NodeWithScore(node=node) for node in nodes]


def _with_usage(response: RESPONSE_TYPE, usage: UsageRecord) -> RESPONSE_TYPE:
    response.metadata = {**(response.metadata or {}), "focus": usage}
    return response


def _deltas(
    responses: Generator[ChatResponse, None, None], usage: UsageRecord, shown: ShownDocuments
) -> Generator[str, None, None]:
    """The new text of each response; closing this stops the work."""
    with closing(responses):
        for response in responses:
            _note_usage(response, usage, shown)
            yield response.delta or ""


async def _adeltas(
    responses: AsyncGenerator[ChatResponse, None], usage: UsageRecord, shown: ShownDocuments
) -> AsyncGenerator[str, None]:
    async with aclosing(responses):
        async for response in responses:
            _note_usage(response, usage, shown)
            yield response.delta or ""


def _note_usage(response: ChatResponse, usage: UsageRecord, shown: ShownDocuments) -> None:
    """Adds what a response tells: a piece of a stream its live evidence, the last one and a whole answer the rest."""
    raw = response.raw
    if isinstance(raw, dict) and _LIVE in raw:
        usage[_LIVE] = [*usage.get(_LIVE, ()), *raw[_LIVE]]
    if isinstance(raw, dict) and "usage" in raw:
        usage.update(
            raw["usage"],
            finish_reason=raw.get("finish_reason"),
            method=raw.get("method"),
        )
        usage.update({name: raw[name] for name in _OF_SOURCES if name in raw})
    if isinstance(raw, dict) and "sources" in raw:
        usage["sources"] = shown.placed(raw["sources"])
