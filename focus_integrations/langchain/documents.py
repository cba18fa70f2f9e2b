"""Whole documents on their way to the engine: as an argument, in a prompt value, in messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages import BaseMessage, HumanMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block
from langchain_core.prompt_values import PromptValue
from langchain_core.prompts import BasePromptTemplate, format_document

from focus_core import PreparedDocuments
from focus_integrations.settings import Text, fingerprint, read_each, without_duplicates

FocusDocument = Document | str | PreparedDocuments


def texts_of(
    documents: FocusDocument | Iterable[FocusDocument], document_prompt: BasePromptTemplate[str] | None = None
) -> list[Text]:
    """What the model reads of each document: its content as it stands, or what `document_prompt` makes of it.

    Metadata reach the model through `document_prompt` only.

    Raises:
        DocumentError: something that is neither a document nor text, or a generator
    """

    def read(document: Document) -> str:
        return format_document(document, document_prompt) if document_prompt else document.page_content

    return read_each(documents, Document, read, called="LangChain Document")


class FocusPromptValue(PromptValue):
    """A question about whole documents, for the input of either model."""

    question: str
    documents: list[Document | str]

    def __init__(self, question: str, documents: Sequence[Document | str], **more: Any) -> None:
        super().__init__(question=question, documents=list(documents), **more)  # type: ignore[call-arg]

    def to_string(self) -> str:
        """One long prompt: the documents, then the question."""
        return "\n\n".join([*map(str, self._texts), self.question])

    def to_messages(self) -> list[BaseMessage]:
        """One message with a block per document; equal documents give equal blocks, so that response caches hit."""
        blocks: list[Any] = [create_plaintext_block(text=str(text), id=fingerprint(text)[:32]) for text in self._texts]
        blocks.append(create_text_block(self.question, id=fingerprint(self.question)[:32]))
        return [HumanMessage(blocks)]

    @property
    def _texts(self) -> list[Text]:
        return without_duplicates(texts_of(self.documents))
