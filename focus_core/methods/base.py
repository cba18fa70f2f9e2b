"""What a method is: how chunks and a question become next-token logits.

A method says what fits (`limits`), prefills chunks (`prefill`), and decodes a batch of questions about the same chunks
(`decoding`), one token per step. `table.METHODS` names those there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.errors import UnsupportedModelError
from focus_core.methods.evidence import Evidence, ReadChunks
from focus_core.methods.limits import Lengths, Limits
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenIds, TokenizedDocument
from focus_core.text.layout import Layout, Prompt

# One pass of the model per item: keys and values of the chunks that it read, by their index.
Prefilling = Iterator[Mapping[int, ChunkRow]]


@dataclass(frozen=True, eq=False)
class TokenizedQuestion:
    """One question as methods take it.

    Attributes:
        layout: how rows are put together
        documents: what it is asked of; empty where one long prompt was chunked
        context: the question with its template, or what is left of a long prompt after its chunks
        chunks: of the documents or the long prompt, in order; none for a method that reads no chunks
        shared_words: of each chunk, BM25 with the question, for a method that goes by words too
        new_tokens: tokens that the answer may have
        generated: tokens of the answer so far
        live_evidence: whether `Decoding.shares` is wanted with every token
    """

    layout: Layout
    documents: tuple[TokenizedDocument, ...]
    context: Prompt
    chunks: tuple[Chunk, ...] = ()
    shared_words: tuple[float, ...] = ()
    new_tokens: int = 1
    generated: tuple[int, ...] = ()
    live_evidence: bool = False

    @property
    def local_context(self) -> TokenIds:
        """What follows the memory (paper §2.1), with the answer so far."""
        return [*self.context.row, *self.generated]

    @property
    def dynamic_prompt(self) -> TokenIds:
        """What is appended to every chunk (paper eq. 1), with the answer so far."""
        return [*self.layout.dynamic_prompt(self.context), *self.generated]

    @property
    def whole(self) -> TokenIds:
        """Documents and local context in one row, with the answer so far."""
        return [*self.layout.plain(self.documents, self.context), *self.generated]

    @property
    def asked(self) -> TokenizedQuestion:
        """The same question with nothing of its answer generated."""
        return replace(self, generated=())

    def with_chunks(self, chunks: Sequence[Chunk]) -> TokenizedQuestion:
        """The same question over other chunks."""
        return replace(self, chunks=tuple(chunks), shared_words=())

    def continued(self, tokens: Sequence[int]) -> TokenizedQuestion:
        """The same question with more of its answer generated."""
        return replace(self, generated=(*self.generated, *tokens))


@dataclass(frozen=True)
class Reading:
    """How documents are cut for a method.

    Attributes:
        boundaries: where chunks end, unless the configuration says
        pack: small documents share a chunk, unless the configuration says
        by_words: chunks that share words with the question count more, and of many chunks only those are read that
            share most
        own_opening: chunks begin with all that stands before documents in their conversation (system prompt, earlier
            turns), not with what every conversation begins with
    """

    boundaries: str = "tokens"
    pack: bool = False
    by_words: bool = False
    own_opening: bool = False


@dataclass(frozen=True)
class ChunkScore:
    """What a method made of one chunk.

    Attributes:
        score: how likely the chunk makes the question: the mean log-probability of a token of it (nats, at most 0)
        posterior: the chunk's probability by that and by the words that it shares with the question; of all chunks 1
        read: whether the answer comes from this chunk too
    """

    chunk: Chunk
    score: float
    posterior: float
    read: bool


class Decoding(Protocol):
    """A batch of answers in progress: next-token logits, one step per token."""

    def scores(self) -> Sequence[tuple[ChunkScore, ...]]:
        """Of each question its chunks in order, once it has started; nothing where the method does not score."""

    def shares(self) -> Sequence[Sequence[float] | None]:
        """Of each question a share for each of its chunks: how much the newest logits draw on it, by what their pass
        computed anyway. Shares sum to at most 1. `None` where the method does not know, or only computes them for
        questions with `live_evidence`. Asked before the next `keep` or `join`."""

    def start(self) -> Tensor:
        """Next-token logits `[questions, vocab]` before anything is generated."""

    def step(self, tokens: Tensor) -> Tensor:
        """Next-token logits after appending `tokens [questions]`."""

    def keep(self, questions: Sequence[int]) -> None:
        """Drop all questions but those with these indices."""

    def join(self, other: Any) -> None:
        """Add the questions of another decoding of the same method that has started, about the same chunks if they are
        still read."""


class Method(Protocol):
    """A way from chunks and questions to logits. One instance serves all requests of an engine, in any thread.

    Attributes:
        name: as in `table.METHODS` and `Answer.method`
        reading: how documents are cut for it
        cached_layers: layers of the model whose keys and values of chunks the method reads; 0 for a method that reads
            documents and question in one row, without chunks
        own_rows: once it has started, a question reads rows of its own and no chunks, so that questions about different
            chunks take their steps together
        bytes_per_token: of the keys and values of a token outside of chunks
        notice: a warning for the user before it reads chunks, if it needs one
    """

    name: ClassVar[str]
    reading: ClassVar[Reading]
    own_rows: ClassVar[bool]

    @property
    def cached_layers(self) -> int: ...

    @property
    def bytes_per_token(self) -> int: ...

    @property
    def notice(self) -> str | None: ...

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` in `chunks`, as they are kept; 0 without chunks."""

    def limits(self, lengths: Lengths) -> Limits:
        """What a question of these lengths takes."""

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        """Keys and values of chunks, each read alone; one pass of the model per item."""

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> Decoding:
        """A batch of questions about these chunks (or, with `cached_layers == 0`, about their own documents)."""

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> Evidence:
        """What the answer of a question owes to its chunks.

        Args:
            question: with its answer in `generated`, and with chunks that the method has read; of a method that reads
                no chunks, with parts of its documents that stand for them
            scores: of its decoding, where the method scores chunks
            chunks: called if their keys and values are needed
        """


PlanKey = tuple[int, tuple[bytes, ...]]  # a method's instance and the keys of its chunks


@dataclass(frozen=True, eq=False)
class Plan:
    """How one question is answered.

    Attributes:
        chunks: to be prefilled; none for a method that reads no chunks
        new_tokens: tokens that the answer may have
        reason: why this method
        notice: a warning for the user, if there is one
    """

    method: Method
    chunks: tuple[Chunk, ...]
    question: TokenizedQuestion
    limits: Limits
    new_tokens: int
    reason: str
    notice: str | None = None

    @cached_property
    def key(self) -> PlanKey:
        """Equal for questions that can be prefilled and decoded together."""
        return id(self.method), tuple(chunk.key for chunk in self.chunks)


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, list[int]]:
    """Token ids `[rows, longest]` with zeros at the left, and how many zeros each row has."""
    longest = max(len(row) for row in rows)
    padding = [longest - len(row) for row in rows]
    ids = [[0] * missing + list(row) for missing, row in zip(padding, rows, strict=True)]
    return torch.tensor(ids, dtype=torch.long), padding


def without_unused(padding: Sequence[int]) -> tuple[list[int], int]:
    """Padding without the columns that are unused in every row, and their number."""
    unused = min(padding)
    return [columns - unused for columns in padding], unused


def likeliest(logits: Tensor) -> list[int | UnsupportedModelError]:
    """The token with the highest of the logits `[questions, vocab]`, in one wait for the device.

    Where no number is the highest, because some are NaN or infinite, the error takes the token's place.
    """
    tokens = logits.argmax(-1)  # of a NaN, if there is one
    highest = logits.gather(-1, tokens[:, None])[:, 0]
    found: list[int] = torch.where(highest.isfinite(), tokens, -1).tolist()
    return [token if token >= 0 else not_finite() for token in found]


def not_finite() -> UnsupportedModelError:
    """The error for logits from which no token can be chosen."""
    return UnsupportedModelError(
        "The model's logits are not finite numbers: its weights are damaged, or too large for their dtype. Download it "
        "again, or use dtype='float32' or 'bfloat16'."
    )
