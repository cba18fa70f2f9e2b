"""Hits in a vector store, made whole."""

from __future__ import annotations

from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.stores import BaseStore
from langchain_core.vectorstores import VectorStore
from pydantic import ConfigDict, Field, model_validator

from focus_core.errors import ConfigError, DocumentError


class WholeDocumentRetriever(BaseRetriever):
    """The documents in which passages were found: whole, in the order of their best passage, each once.

    Passages carry the key of their document in their metadata; `docstore` has the documents under these keys. That is
    the layout of LangChain's `ParentDocumentRetriever`, which can fill both.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    vectorstore: VectorStore
    docstore: BaseStore[str, Document]
    id_key: str = "doc_id"
    """Where a passage's metadata name its document."""
    k: int = Field(default=20, ge=1)
    """Passages to look for; several may come from one document."""
    search_kwargs: dict[str, Any] = Field(default_factory=dict)
    """For the vector store; a `k` in it is the same as `k`. Arguments of a call come on top."""

    @model_validator(mode="after")
    def _one_k(self) -> WholeDocumentRetriever:
        if "k" not in self.search_kwargs:
            return self
        k = self.search_kwargs["k"]
        if "k" in self.model_fields_set and k != self.k:
            raise ConfigError(f"k={self.k} and search_kwargs['k']={k!r}: give one of them.")
        if type(k) is not int or k < 1:
            raise ConfigError(f"search_kwargs['k']={k!r}: must be a whole number, and at least 1.")
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **of_the_call: Any
    ) -> list[Document]:
        hits = self.vectorstore.similarity_search(query, **self._search(of_the_call))
        keys = self._keys(hits)
        return self._found(keys, self.docstore.mget(keys))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **of_the_call: Any
    ) -> list[Document]:
        hits = await self.vectorstore.asimilarity_search(query, **self._search(of_the_call))
        keys = self._keys(hits)
        return self._found(keys, await self.docstore.amget(keys))

    def _search(self, of_the_call: dict[str, Any]) -> dict[str, Any]:
        return {"k": self.k, **self.search_kwargs, **of_the_call}

    def _keys(self, hits: list[Document]) -> list[str]:
        missing = next((hit for hit in hits if self.id_key not in hit.metadata), None)
        if missing is not None:
            raise DocumentError(
                f"A passage has no {self.id_key!r} in its metadata ({sorted(missing.metadata)}), so its document is "
                "not known. Store the document's key there, or name another id_key."
            )
        return list(dict.fromkeys(hit.metadata[self.id_key] for hit in hits))

    def _found(self, keys: list[str], documents: list[Document | None]) -> list[Document]:
        lost = [key for key, document in zip(keys, documents, strict=True) if document is None]
        if lost:
            raise DocumentError(f"The docstore has no document under {', '.join(map(repr, lost))}.")
        return [document for document in documents if document is not None]
