"""Whole documents on their way to the engine: as an argument, in a prompt value, in messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, format_document

from focus_core import Document as WholeDocument
from focus_core import PreparedDocuments
from focus_integrations.settings import WholeText, content_digest, documents_from, without_duplicates
from focus_integrations.templates import through_template

CONTEXT_DOCUMENTS = "context_documents"  # the argument of a call in which a chain hands over its documents
CARRIERS = ("documents", CONTEXT_DOCUMENTS)  # read in this order

FocusDocument = Document | WholeDocument | str | PreparedDocuments


def whole_documents_of(
    documents: FocusDocument | Iterable[FocusDocument], document_prompt: BasePromptTemplate[str] | None = None
) -> list[WholeText]:
    """LangChain's documents as the engine's: the content as it stands, or as `document_prompt` formats it.

    Name and metadata stay with a document; the model sees them through `document_prompt` only. LangChain documents
    without text, such as loaders make of empty pages, are skipped with a warning.

    Raises:
        DocumentError: something that is neither a document nor text, a generator, or nothing but empty documents
    """

    def convert(document: Document) -> WholeDocument | None:
        text, own = document.page_content, None
        if document_prompt is not None:
            text, own = through_template(partial(_formatted, document, document_prompt), text)
        if not text.strip():
            return None
        name = document.metadata.get("source") or document.id
        return WholeDocument(text, name=None if name is None else str(name), metadata=document.metadata, own=own)

    return documents_from(documents, Document, convert, called="LangChain Document")


def _formatted(document: Document, prompt: BasePromptTemplate[str], text: str) -> str:
    """The document with this text as `prompt` formats it."""
    return format_document(document.model_copy(update={"page_content": text}), prompt)


class FocusPromptValue(PromptValue):
    """A question about whole documents, for the input of either model."""

    question: str
    documents: list[Document | str]

    def __init__(self, question: str, documents: Sequence[Document | str], **more: Any) -> None:
        super().__init__(question=question, documents=list(documents), **more)  # type: ignore[call-arg]

    def to_string(self) -> str:
        """One long prompt: the documents, then the question."""
        return "\n\n".join([*self._texts, self.question])

    def to_messages(self) -> list[BaseMessage]:
        """One message with a block per document; equal documents give equal blocks, so that response caches hit."""
        blocks: list[Any] = [create_plaintext_block(text=text, id=content_digest(text)[:32]) for text in self._texts]
        blocks.append(create_text_block(self.question, id=content_digest(self.question)[:32]))
        return [HumanMessage(blocks)]

    @property
    def _texts(self) -> list[str]:
        documents = without_duplicates(whole_documents_of(self.documents))
        return [document.text or "" for document in documents if isinstance(document, WholeDocument)]
