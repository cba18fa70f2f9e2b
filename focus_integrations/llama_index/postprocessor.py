"""Hits of a retriever, made whole."""

from __future__ import annotations

import warnings
from typing import Any, Literal

from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.schema import NodeWithScore, QueryBundle, TextNode
from llama_index.core.storage.docstore.types import BaseDocumentStore
from pydantic import (
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    ValidationError,
    field_validator,
    model_validator,
)

from focus_core.errors import ConfigError, ContextOverflowError
from focus_integrations.llama_index.inputs import docstore_from, hits_from
from focus_integrations.llama_index.llm import FocusLLM
from focus_integrations.llama_index.whole import WholeDocument, whole_documents
from focus_integrations.settings import assigned, kind_of, refusal, unknown_setting


class WholeDocumentPostprocessor(BaseNodePostprocessor):
    """Puts the document in the place of its passages: each document once, where its first passage was."""

    model_config = ConfigDict(extra="forbid")

    docstore: BaseDocumentStore = Field(exclude=True)
    """Where the originals are kept (`docstore.add_documents(documents)`), or at least all nodes; or an index or storage
    context that has such a store."""
    llm: FocusLLM | None = None
    """Counts tokens; needed with `max_document_tokens`."""
    max_document_tokens: int | None = Field(default=None, ge=1)
    """How many tokens all documents together may have, such as `llm.metadata.context_window`."""
    on_overflow: Literal["raise", "drop"] = "raise"
    """What happens beyond `max_document_tokens`: an error, or a warning and the last documents left out."""

    @classmethod
    def class_name(cls) -> str:
        return "WholeDocumentPostprocessor"

    def __setattr__(self, name: str, value: Any) -> None:
        """Checked as at construction.

        Raises:
            ConfigError: a name that is no setting, or an impossible value
        """
        if name in type(self).model_fields:
            value = assigned(self, type(self), name, value)
        elif not name.startswith("_"):
            raise unknown_setting(name, type(self))
        super().__setattr__(name, value)

    @model_validator(mode="wrap")
    @classmethod
    def _with_our_errors(
        cls, values: Any, handler: ModelWrapValidatorHandler[WholeDocumentPostprocessor]
    ) -> WholeDocumentPostprocessor:
        if isinstance(values, dict) and "max_tokens" in values:
            raise ConfigError(
                "max_tokens is the length of an answer. Give max_document_tokens for that of all documents."
            )
        try:
            return handler(values)
        except ValidationError as error:
            if not isinstance(values, dict):
                raise
            raise refusal(error, cls) from error

    @field_validator("docstore", mode="before")
    @classmethod
    def _docstore_of(cls, given: Any) -> Any:
        if given is None:
            raise ConfigError("docstore is None. Give a docstore, an index or a storage context.")
        return docstore_from(given)

    @field_validator("llm", mode="before")
    @classmethod
    def _counts(cls, given: Any) -> Any:
        if given is not None and not isinstance(given, FocusLLM):
            raise ConfigError(f"llm is {kind_of(given)}, which does not count tokens. Give llm=FocusLLM(…).")
        return given

    @model_validator(mode="after")
    def _can_count(self) -> WholeDocumentPostprocessor:
        if self.max_document_tokens is not None and self.llm is None:
            raise ConfigError("max_document_tokens needs the model whose tokens are counted: give llm=FocusLLM(…).")
        return self

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        documents = whole_documents(hits_from(nodes), self.docstore)
        return [_as_node(document) for document in self._within_budget(documents)]

    def _within_budget(self, documents: list[WholeDocument]) -> list[WholeDocument]:
        if self.max_document_tokens is None or self.llm is None:
            return documents
        total = 0
        for number, document in enumerate(documents):
            total += len(self.llm.tokenize(document.text))
            if total > self.max_document_tokens:
                return self._overflow(documents, number, total)
        return documents

    def _overflow(self, documents: list[WholeDocument], fitting: int, total: int) -> list[WholeDocument]:
        message = (
            f"{fitting + 1} of {len(documents)} documents have {total} tokens, and "
            f"max_document_tokens={self.max_document_tokens}"
        )
        if not fitting:
            raise ContextOverflowError(
                f"{message}: the first document, {documents[0].key}, is too long by itself. Raise max_document_tokens, "
                "or leave this document out of the index."
            )
        if self.on_overflow == "raise":
            raise ContextOverflowError(
                f'{message}. Retrieve fewer passages, raise max_document_tokens, or set on_overflow="drop".'
            )
        left_out = ", ".join(document.key for document in documents[fitting:])
        warnings.warn(f"{message}. Left out, because they came last: {left_out}.", stacklevel=4)
        return documents[:fitting]


def _as_node(document: WholeDocument) -> NodeWithScore:
    """The document, or a node of its id, with the score of its best hit."""
    scores = [hit.score for hit in document.hits if hit.score is not None]
    node = document.original or TextNode(id_=document.key, text=document.text, metadata=document.metadata)
    return NodeWithScore(node=node, score=max(scores, default=None))
