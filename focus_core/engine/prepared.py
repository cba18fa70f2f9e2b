"""The handle of documents that have been prefilled."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape

from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenizedDocument


@dataclass(frozen=True, eq=False, repr=False)
class PreparedDocuments:
    """What `FocusEngine.prepare` returns; goes wherever `documents=` goes, alone or in a list, in any order.

    The handle remembers the tokens; keys and values lie in the engine's store. If they have been evicted there, they
    are prefilled again, and the usage of the answer says so.

    Attributes:
        model: key of the model whose tokens these are
        chunks: that were prefilled; none if the plain model will read the documents with each question
        tokens_read: tokens that had to be read for this handle; the others were there
    """

    documents: tuple[TokenizedDocument, ...]
    model: str
    chunks: tuple[Chunk, ...] = ()
    tokens_read: int = 0

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def tokens(self) -> int:
        """Tokens of all documents."""
        return sum(map(len, self.documents))

    @property
    def key(self) -> str:
        """Digest of the documents' content and their order."""
        return "".join(document.document.key.hex() for document in self.documents)

    def __repr__(self) -> str:
        plural = "s" if len(self) != 1 else ""
        return f"<PreparedDocuments: {len(self)} document{plural}, {self.tokens:,} tokens, {self._held}>"

    def _repr_html_(self) -> str:
        """A table for notebooks."""
        rows = "".join(
            f"<tr><td>{escape(document.document.name or f'document {number}')}</td><td>{len(document):,}</td>"
            f"<td>{sum(chunk.document is document.document for chunk in self.chunks):,}</td></tr>"
            for number, document in enumerate(self.documents, 1)
        )
        head = "<tr><th>document</th><th>tokens</th><th>chunks</th></tr>"
        return f"<table>{head}{rows}</table><p>{self.tokens:,} tokens, {self._held}</p>"

    @property
    def _held(self) -> str:
        return f"{len(self.chunks):,} chunks" if self.chunks else "nothing kept: they fit the window with a question"
