"""What an answer is: pieces while it is made, and the whole of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length"]

_SHOWN = 60  # characters of an answer that its repr shows


@dataclass(frozen=True)
class Usage:
    """What an answer took, in tokens.

    Attributes:
        input_tokens: question with its template, and documents
        output_tokens: generated tokens, the end-of-sequence token included
        document_tokens: the part of the input that came as documents, or was chunked from one long prompt
        cache_read: the part of `document_tokens` whose keys and values were there already
        cache_creation: the part of `document_tokens` that was read for this answer; of questions that are asked
            together, the first one's
        chunks: number of chunks; 0 where documents and question were read in one row
    """

    input_tokens: int
    output_tokens: int = 0
    document_tokens: int = 0
    cache_read: int = 0
    cache_creation: int = 0
    chunks: int = 0


@dataclass(frozen=True)
class Piece:
    """Text of an answer that is certain."""

    text: str


@dataclass(frozen=True)
class Finished:
    """The end of an answer.

    Attributes:
        text: what was held back to the end, often nothing
        finish_reason: `"stop"` (end of sequence, or a stop string) or `"length"` (`max_new_tokens` reached)
        method: the method that answered, as in `methods.table.METHODS`
        tokens: all generated tokens
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    method: str
    tokens: tuple[int, ...] = field(default=(), repr=False)


Event = Piece | Finished


@dataclass(frozen=True, repr=False)
class Answer:
    """A whole answer.

    Attributes:
        finish_reason: `"stop"` (end of sequence, or a stop string) or `"length"` (`max_new_tokens` reached)
        method: the method that answered, as in `methods.table.METHODS`
        tokens: all generated tokens
    """

    text: str
    finish_reason: FinishReason
    usage: Usage
    method: str
    tokens: tuple[int, ...] = ()

    def __repr__(self) -> str:
        shown = self.text if len(self.text) <= _SHOWN else f"{self.text[: _SHOWN - 1]}…"
        read = f"{self.usage.chunks:,} chunks" if self.usage.chunks else f"{self.usage.input_tokens:,} tokens"
        return f"<Answer {shown!r}: {self.finish_reason}, {len(self.tokens)} tokens, {self.method} over {read}>"
