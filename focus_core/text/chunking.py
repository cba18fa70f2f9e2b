"""Where a text is cut: chunks (paper §2.1), their borders, and small documents that share one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from focus_core.cache.keys import chunk_key
from focus_core.text.borders import Borders
from focus_core.text.documents import Document, TokenIds, TokenizedDocument

_PACKED_SHARE = 4  # a document of at most a quarter of a chunk may share one


@dataclass(frozen=True, eq=False, repr=False)
class Chunk:
    """A part of one document, or several small documents together, as the model reads it.

    Attributes:
        start: first token in the document
        stop: token after the last
        characters: the same span in the document's text, where that is known
        token_ids: the document's tokens from `start` to `stop`
        opening: tokens that the layout puts in front: a BOS, the start of the user's turn, or nothing
        parts: where small documents share a chunk, a chunk for each of them; `document` is then the first one, and
            `token_ids` has separators between them
        kv_dtype: in what its keys and values are kept, as in `FocusConfig`
        document_index: of its document (of the first one), among those that were cut together
    """

    document: Document
    start: int
    stop: int
    characters: tuple[int, int] | None
    token_ids: TokenIds
    opening: tuple[int, ...] = ()
    parts: tuple[Chunk, ...] = ()
    kv_dtype: str | None = None
    document_index: int = 0

    def __len__(self) -> int:
        """Positions that the chunk takes, its opening included."""
        return len(self.opening) + len(self.token_ids)

    def __repr__(self) -> str:
        if self.parts:
            return f"<Chunk of {len(self.parts)} documents: {len(self.token_ids):,} tokens>"
        name = f" of {self.document.name!r}" if self.document.name else ""
        return f"<Chunk{name}: tokens {self.start:,} to {self.stop:,}>"

    @property
    def row(self) -> TokenIds:
        """The tokens that the model reads."""
        return [*self.opening, *self.token_ids]

    @cached_property
    def key(self) -> bytes:
        """Digest of `row` and `kv_dtype`: with the model's key, everything that keys and values depend on."""
        return chunk_key(self.row, self.kv_dtype)

    @property
    def document_parts(self) -> tuple[Chunk, ...]:
        """One chunk for each document in this one."""
        return self.parts or (self,)

    @property
    def text(self) -> str | None:
        """The characters of the chunk, where they are known and of one document."""
        if self.parts or self.characters is None or self.document.text is None:
            return None
        return self.document.text[slice(*self.characters)]

    def continues(self, before: Chunk) -> bool:
        """Whether this chunk begins where `before` ends, in the same document."""
        return not (self.parts or before.parts) and self.document is before.document and self.start == before.stop


@dataclass(frozen=True)
class Cutting:
    """How documents are cut.

    Attributes:
        size: tokens of a chunk, at most
        boundaries: "tokens": a chunk ends after exactly `size` tokens, as in the authors' code. "paragraph": it ends at
            the last paragraph of its second half, else at the last line, else at the last sentence, else as "tokens".
            "content": at that paragraph (line, sentence, token) of its second half whose neighbouring tokens have the
            smallest digest, so that the text there decides and not where the chunk began: after an edit, chunks soon
            end where they ended before
        pack: small documents that follow each other share a chunk
    """

    size: int
    boundaries: str = "tokens"
    pack: bool = False

    def spans(self, document: TokenizedDocument) -> Iterator[tuple[int, int]]:
        """First token of each chunk, and the token after its last."""
        start, tokens, borders = 0, len(document), Borders(document)
        while start < tokens:
            stop = min(start + self.size, tokens)
            if stop < tokens:
                stop = self._end(borders, start + self.size // 2, stop)
            yield start, stop
            start = stop

    def packs(self, sizes: Sequence[int], separator: int) -> Iterator[tuple[int, int]]:
        """Documents that share a chunk, as first and one after the last; the others alone."""
        first = 0
        while first < len(sizes):
            stop, tokens = first + 1, sizes[first]
            while self.pack and stop < len(sizes) and max(sizes[stop], sizes[first]) <= self.size // _PACKED_SHARE:
                if tokens + separator + sizes[stop] > self.size:
                    break
                tokens, stop = tokens + separator + sizes[stop], stop + 1
            yield first, stop
            first = stop

    def _end(self, borders: Borders, first: int, stop: int) -> int:
        if self.boundaries == "content":
            return borders.steady(first, stop)
        return borders.last(first, stop) if self.boundaries == "paragraph" else stop
