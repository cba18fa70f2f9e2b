"""Where a text is cut and where a BOS stands: chunks, local context and dynamic prompt (paper §2.1)."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from focus_core.config import ResolvedConfig
from focus_core.text.documents import Document, TokenIds, TokenizedDocument


@dataclass(frozen=True, eq=False, repr=False)
class Chunk:
    """A part of one document, as the model reads it.

    Attributes:
        start: first token in the document
        stop: token after the last
        characters: the same span in the document's text, where that is known
        token_ids: the document's tokens from `start` to `stop`
        opening: tokens that the layout puts in front: a BOS, or nothing
    """

    document: Document
    start: int
    stop: int
    characters: tuple[int, int] | None
    token_ids: TokenIds
    opening: tuple[int, ...] = ()

    def __len__(self) -> int:
        """Positions that the chunk takes, its opening included."""
        return len(self.opening) + len(self.token_ids)

    def __repr__(self) -> str:
        name = f" of {self.document.name!r}" if self.document.name else ""
        return f"<Chunk{name}: tokens {self.start:,} to {self.stop:,}>"

    @property
    def row(self) -> TokenIds:
        """The tokens that the model reads."""
        return [*self.opening, *self.token_ids]

    @cached_property
    def key(self) -> bytes:
        """Digest of `row`: with the model's key, everything that keys and values depend on."""
        return sha256(array("q", self.row).tobytes()).digest()

    @property
    def text(self) -> str | None:
        """The characters of the chunk, where they are known."""
        if self.characters is None or self.document.text is None:
            return None
        return self.document.text[slice(*self.characters)]


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the model continues: a question with its template, or a text of any length.

    Attributes:
        opening: a BOS, or nothing
        tokens: the rest
    """

    opening: tuple[int, ...]
    tokens: TokenizedDocument

    def __len__(self) -> int:
        return len(self.opening) + len(self.tokens)

    @property
    def row(self) -> TokenIds:
        """The tokens that the model reads."""
        return [*self.opening, *self.tokens.token_ids]


@dataclass(frozen=True)
class Layout:
    """The rows that the model reads. Layout "raw": a chunk is followed by the end of the local context.

    With `bos_per_chunk` (the default) every chunk starts with a BOS, so that it is the same at any place in its
    document. The authors' rule has a BOS only at the start of a text. Under both rules one stands before the local
    context and before the dynamic prompt. A tokenizer that writes no BOS has none (`TextTokenizer.bos`).
    """

    config: ResolvedConfig
    bos: int | None
    separator: tuple[int, ...] = ()  # between texts that the plain model reads one after the other

    @property
    def opening(self) -> tuple[int, ...]:
        """The BOS, or nothing."""
        return () if self.bos is None else (self.bos,)

    def prompt(self, token_ids: Sequence[int]) -> Prompt:
        """A prompt of tokens that have no BOS of their own."""
        return Prompt(self.opening, TokenizedDocument.of_tokens(token_ids))

    def document_chunks(self, document: TokenizedDocument) -> list[Chunk]:
        """Chunks of one document; a chunk never spans two."""
        size = self.config.chunk_size
        starts = range(0, len(document), size)
        return [
            self._cut(document, start, min(start + size, len(document)), self._repeated if start else self.opening)
            for start in starts
        ]

    def chunks_of(self, documents: Sequence[TokenizedDocument]) -> list[Chunk]:
        """Chunks of all documents, in order."""
        return [chunk for document in documents for chunk in self.document_chunks(document)]

    def long_prompt(self, prompt: Prompt) -> tuple[list[Chunk], Prompt]:
        """Chunks of all but the prompt's last `local_window` tokens, and those as local context.

        As in the authors' code, a BOS that the prompt has itself counts as one of its tokens.
        """
        own, size, tokens = len(prompt.opening), self.config.chunk_size, prompt.tokens
        border = max(len(prompt) - self.config.local_window, 0)
        if border == 0:
            return [], Prompt(prompt.opening or self.opening, tokens)
        starts = [max(start - own, 0) for start in range(0, border, size)]
        stops = [*starts[1:], border - own]
        openings = [prompt.opening or self._repeated, *[self._repeated] * (len(starts) - 1)]
        chunks = [self._cut(tokens, *chunk) for chunk in zip(starts, stops, openings, strict=True)]
        return chunks, Prompt(self.opening, TokenizedDocument.of_tokens(tokens.token_ids[border - own :]))

    def dynamic_prompt(self, local_context: Prompt) -> TokenIds:
        """What is appended to every chunk: the end of the local context (paper eq. 1)."""
        return [*self.opening, *local_context.tokens.token_ids[-self.config.dynamic_prompt :]]

    def plain(self, documents: Sequence[TokenizedDocument], local_context: Prompt) -> TokenIds:
        """All documents in front of the local context, for the plain model: the row of a single large chunk.

        A separator stands between two documents, and before the local context unless a BOS does.
        """
        if not documents:
            return local_context.row
        row = [*self.opening, *documents[0].token_ids]
        for document in documents[1:]:
            row += [*self.separator, *document.token_ids]
        return [*row, *(() if local_context.opening else self.separator), *local_context.row]

    @property
    def _repeated(self) -> tuple[int, ...]:
        """The opening of every chunk but the first."""
        return self.opening if self.config.bos_per_chunk else ()

    @staticmethod
    def _cut(document: TokenizedDocument, start: int, stop: int, opening: tuple[int, ...]) -> Chunk:
        ids = list(document.token_ids[start:stop])
        return Chunk(document.document, start, stop, document.characters(start, stop), ids, opening)
