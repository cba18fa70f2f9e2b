"""Documents: texts that questions are asked of, hashed once, and their tokens."""

from __future__ import annotations

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from io import IOBase
from os import PathLike
from typing import Any

from focus_core.errors import DocumentError

TokenIds = list[int]
PAGE_BREAK = "\f"  # a form feed, as programs that turn pages into text write it

_SHOWN = 40  # characters of a document without a name
_RANDOM_NAME = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")  # another one each time a program runs


@dataclass(frozen=True, eq=False, repr=False)
class Document:
    """A text, or tokens of the model's own tokenizer. Documents are equal if their content is.

    Attributes:
        text: what the model reads
        name: for people: a file name, a title
        metadata: passed through to sources and frameworks; the model does not read it
        token_ids: instead of `text`, without special tokens; such a document has no characters
        own: which characters of `text` are the document's own, where a template has put others around them; sources
            count from the first of these

    Raises:
        DocumentError: neither or both are given, there is no text, or it holds half of a character
    """

    text: str | None = None
    name: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    token_ids: Sequence[int] | None = None
    own: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        called = f"Document {self.name!r}" if self.name else "A document"
        if (self.text is None) == (self.token_ids is None):
            raise DocumentError(f"{called} needs either text or token_ids.")
        if self.text is not None and not isinstance(self.text, str):
            raise DocumentError(f"{called} is a {type(self.text).__name__}, not a string. Give its text.")
        if self.text is not None:
            if not self.text.strip():
                raise DocumentError(f"{called} is empty. Leave it out or give its text.")
            require_whole_characters(self.text)

    @property
    def called(self) -> str:
        """Its name, or how it begins where it has none or one that was drawn."""
        if self.name and not _RANDOM_NAME.fullmatch(self.name):
            return self.name
        return f"“{' '.join((self.text or 'tokens')[:_SHOWN].split())}…”"

    @property
    def own_span(self) -> tuple[int, int]:
        """Which characters of `text` are the document's own: all, unless `own` says otherwise."""
        return self.own or (0, len(self.text or ""))

    def own_characters(self, start: int, stop: int) -> tuple[int, int] | None:
        """Those of some characters of `text` that are the document's own, counted as in `text`; `None` if none is."""
        first, last = self.own_span
        start, stop = max(start, first), min(stop, last)
        return (start, stop) if start < stop else None

    def page_at(self, character: int) -> int | None:
        """The page that a character is on, counted from 1; `None` where no form feed ends a page of the document."""
        first, last = self.own_span
        if self.text is None or PAGE_BREAK not in self.text[first:last].rstrip():
            return None
        return self.text.count(PAGE_BREAK, first, character) + 1

    @cached_property
    def key(self) -> bytes:
        """Digest of the content: equal content has an equal key, whatever its name."""
        if self.text is not None:
            return sha256(self.text.encode()).digest()
        return sha256(b"tokens" + array("q", self.token_ids or ()).tobytes()).digest()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Document) and other.key == self.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __repr__(self) -> str:
        size = f"{len(self.token_ids or ()):,} tokens" if self.text is None else f"{len(self.text):,} characters"
        return f"<Document{f' {self.name!r}' if self.name else ''}: {size}>"


@dataclass(frozen=True, eq=False, repr=False)
class TokenizedDocument:
    """A document and its tokens.

    Attributes:
        token_ids: without special tokens
        starts: for each token the index of its first character, and at the end the number of characters; `None` where
            the document has no characters or its tokenizer does not tell
    """

    document: Document
    token_ids: Sequence[int]
    starts: Sequence[int] | None = None

    def __len__(self) -> int:
        return len(self.token_ids)

    def __repr__(self) -> str:
        return f"<Tokenized {self.document!r}: {len(self):,} tokens>"

    @classmethod
    def of_tokens(cls, token_ids: Sequence[int]) -> TokenizedDocument:
        """A document that is given as tokens."""
        return cls(Document(token_ids=token_ids), token_ids)

    def characters(self, start: int, stop: int) -> tuple[int, int] | None:
        """Span in the document's text of the tokens `start` to `stop - 1`; neighbouring spans touch."""
        if self.starts is None:
            return None
        return self.starts[start] if start else 0, self.starts[stop]


def require_whole_characters(text: str) -> None:
    """Refuse text that no tokenizer can encode.

    Raises:
        DocumentError: with the index of the first half of a character
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DocumentError(
            f"A text holds half of a character at place {error.start} ({text[error.start]!r}): it was decoded wrongly. "
            "Read it again with the right encoding."
        ) from error


def require_sequence(documents: Any) -> None:
    """Refuse containers that would be taken apart where whole documents are meant.

    Raises:
        DocumentError: the type, and what to give instead
    """
    hint = way_out(documents)
    if hint is not None:
        raise DocumentError(f"documents is a {type(documents).__name__}, not a text or a list of texts. {hint}")


def way_out(value: Any) -> str | None:
    """What to do with a thing that holds text and is none; `None` for all others."""
    hints = {
        Mapping: "Hand over its texts: list(documents.values()).",
        bytes: "Decode it, or read the file with read_file.",
        bytearray: "Decode it, or read the file with read_file.",
        IOBase: "Read it with read_file, or hand over what its read() returns.",
        PathLike: "Read it with read_file.",
    }
    return next((hint for kind, hint in hints.items() if isinstance(value, kind)), None)
