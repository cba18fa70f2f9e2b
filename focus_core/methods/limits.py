"""What fits the window: the only place that adds positions up.

Everything here is arithmetic on lengths, so that the engine, `focusllm info`, the wrappers and training get the same
answer, with or without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from focus_core.config import DEFAULT_NEW_TOKENS, DEFAULT_SELECTED, ResolvedConfig
from focus_core.errors import ConfigError, ContextOverflowError
from focus_core.text.layout import Layout, PromptLengths

_OPENINGS = 2  # a BOS before the chunk and one before the dynamic prompt


@dataclass(frozen=True)
class Lengths:
    """How long everything is that a question is asked of: tokens, with openings and separators.

    Attributes:
        chunks: number of chunks
        longest_chunk: tokens of the longest one; 0 without chunks
        chunk_tokens: tokens of all chunks
        dynamic_prompt: what is appended to every chunk
        local: the local context
        whole: documents and local context in one row, as the plain model reads them
        before: what stands before the documents in that row
        after: what stands after them
    """

    chunks: int
    longest_chunk: int
    chunk_tokens: int
    dynamic_prompt: int
    local: int
    whole: int
    before: int = 0
    after: int = 0

    @classmethod
    def of(cls, chunks: Sequence[int], dynamic_prompt: int, local: int, whole: int) -> Lengths:
        """From the length of every chunk."""
        return cls(len(chunks), max(chunks, default=0), sum(chunks), dynamic_prompt, local, whole)

    def with_chunks(self, chunks: Sequence[int]) -> Lengths:
        """The same with chunks of these lengths, where documents are not cut after a fixed number of tokens."""
        return replace(self, chunks=len(chunks), longest_chunk=max(chunks), chunk_tokens=sum(chunks))

    def shortened(self, chunks: int) -> Lengths:
        """The same with at most so many of the chunks, as long as they may be."""
        if self.chunks <= chunks:
            return self
        tokens = min(self.chunk_tokens, chunks * self.longest_chunk)
        return replace(self, chunks=chunks, chunk_tokens=tokens)


class Limits(Protocol):
    """What a question takes with one method."""

    @property
    def positions_left(self) -> int:
        """Positions of the window that are left for the answer; negative where nothing fits."""

    @property
    def chunk_tokens(self) -> int:
        """Tokens of chunks whose keys and values are held, for all questions together."""

    def appended_tokens(self, new_tokens: int) -> int:
        """Further tokens whose keys and values are held for this question, with an answer of `new_tokens`."""

    def check(self, new_tokens: int) -> None:
        """Refuse an answer of `new_tokens`, before any work.

        Raises:
            ContextOverflowError: which limit is exceeded, with both numbers, and what to change
        """


@dataclass(frozen=True)
class FocusLimits:
    """Chunk + dynamic prompt + answer ≤ window, and memory + local context + answer ≤ window."""

    config: ResolvedConfig
    lengths: Lengths

    @property
    def chunk_row(self) -> int:
        """Positions of the longest chunk with its dynamic prompt."""
        return self.lengths.longest_chunk + self.lengths.dynamic_prompt

    @property
    def local_row(self) -> int:
        """Positions of memory and local context."""
        return self.lengths.chunks + self.lengths.local

    @property
    def positions_left(self) -> int:
        return self.config.window - max(self.chunk_row, self.local_row)

    @property
    def chunk_tokens(self) -> int:
        return self.lengths.chunk_tokens

    def appended_tokens(self, new_tokens: int) -> int:
        return self.lengths.chunks * (self.lengths.dynamic_prompt + new_tokens)

    def check(self, new_tokens: int) -> None:
        config, window, chunks = self.config, self.config.window, self.lengths.chunks
        if self.chunk_row + new_tokens > window:
            raise ContextOverflowError(
                f"A chunk of {self.lengths.longest_chunk} tokens, a dynamic prompt of "
                f"{self.lengths.dynamic_prompt} and max_new_tokens={new_tokens} need {self.chunk_row + new_tokens} "
                f"positions, but {config.usable_window}. Lower max_new_tokens to "
                f"{max(window - self.chunk_row, 0)}, or choose a smaller chunk_size or dynamic_prompt."
            )
        if self.local_row + new_tokens <= window:
            return
        fits = max(window - self.lengths.local - new_tokens, 0)
        if fits == 0:
            raise ContextOverflowError(
                f"A local context of {self.lengths.local} tokens (question, system prompt and chat) and "
                f"max_new_tokens={new_tokens} leave no positions for a memory: {config.usable_window}. Shorten the "
                "question, or lower max_new_tokens."
            )
        small = self.lengths.chunk_tokens < chunks * config.chunk_size // 2 and not config.pack
        raise ContextOverflowError(
            f"A memory of {chunks} chunks, a local context of {self.lengths.local} tokens and max_new_tokens="
            f"{new_tokens} need {self.local_row + new_tokens} positions, but {config.usable_window}: {fits} chunks "
            f"fit (about {fits * config.chunk_size} tokens of documents). "
            + ("Let small documents share chunks (pack=True), hand" if small else "Hand")
            + f" over fewer documents, choose a larger chunk_size (now {config.chunk_size}), or lower max_new_tokens "
            "or the local context."
        )


@dataclass(frozen=True)
class PlainLimits:
    """Documents + local context + answer ≤ window."""

    config: ResolvedConfig
    lengths: Lengths

    @property
    def positions_left(self) -> int:
        return self.config.window - self.lengths.whole

    @property
    def chunk_tokens(self) -> int:
        return 0

    def appended_tokens(self, new_tokens: int) -> int:
        return self.lengths.whole + new_tokens

    def check(self, new_tokens: int) -> None:
        prompt, window = self.lengths.whole, self.config.window
        if prompt + new_tokens <= window:
            return
        ways_out = [f"Lower max_new_tokens to {window - prompt}."] if prompt < window else []
        if prompt >= window or new_tokens < window:
            ways_out.append("Hand the text over as documents, which are read in chunks unless method='plain'.")
        raise ContextOverflowError(
            f"The prompt has {prompt} tokens and max_new_tokens={new_tokens}, together {prompt + new_tokens}, but "
            f"{self.config.usable_window}. {' '.join(ways_out)}"
        )


@dataclass(frozen=True)
class RowLimits:
    """For methods that put chunks into the plain model's row: chunk + all that stands around it + answer ≤ window.

    Attributes:
        rows: chunks that decode together, each in a row of its own; 0 where some of them share one row
    """

    config: ResolvedConfig
    lengths: Lengths
    rows: int = 0

    @property
    def row(self) -> int:
        """Positions of the longest chunk with all that stands around it."""
        openings = max(self.lengths.before, self.lengths.longest_chunk - self.config.chunk_size)
        return openings + min(self.lengths.longest_chunk, self.config.chunk_size) + self.lengths.after

    @property
    def positions_left(self) -> int:
        return self.config.window - max(self.row, self.lengths.local if self.rows else 0)

    @property
    def chunk_tokens(self) -> int:
        return self.lengths.chunk_tokens

    def appended_tokens(self, new_tokens: int) -> int:
        if self.rows:
            rows = min(self.rows, self.lengths.chunks)
            rows += rows > 1  # the row without documents is as long as the others, by padding
            return rows * (self.row + new_tokens)
        wanted = self.config.select_tokens or DEFAULT_SELECTED
        read = max(self.lengths.longest_chunk, min(wanted, self.lengths.chunk_tokens))
        return min(self.config.window, self.lengths.before + read + self.lengths.after + new_tokens)

    def check(self, new_tokens: int) -> None:
        if new_tokens <= self.positions_left:
            return
        raise ContextOverflowError(
            f"A chunk of {self.lengths.longest_chunk} tokens, {self.lengths.before + self.lengths.after} of question, "
            f"system prompt and chat, and max_new_tokens={new_tokens} need {self.row + new_tokens} positions, but "
            f"{self.config.usable_window}. Lower max_new_tokens to {max(self.positions_left, 0)}, or choose a smaller "
            "chunk_size."
        )


def measure(layout: Layout, documents: Sequence[int], prompt: PromptLengths) -> Lengths:
    """Lengths of what `layout` makes of documents and a prompt, from their numbers of tokens alone.

    Args:
        documents: tokens of each document, cut after a fixed number of tokens; without any the prompt itself is chunked
    """
    if not documents:
        return _measure_long_turn(layout, prompt) if layout.in_turn else _measure_long_prompt(layout, prompt)
    size, separators = layout.config.chunk_size, len(layout.separator) * (len(documents) - 1)
    counts = [-(-document // size) for document in documents]
    first, later = len(layout.chunk_opening), len(layout.next_opening)
    return Lengths(
        chunks=sum(counts),
        longest_chunk=first + min(max(documents), size),
        chunk_tokens=sum(documents) + sum(first + later * (count - 1) for count in counts),
        dynamic_prompt=_dynamic_prompt(layout, prompt.after if layout.in_turn else prompt.local - prompt.own),
        local=prompt.local,
        whole=prompt.before + sum(documents) + separators + prompt.after,
        before=prompt.before,
        after=prompt.after,
    )


def _measure_long_prompt(layout: Layout, prompt: PromptLengths) -> Lengths:
    """Layout "raw": a BOS of its own counts as one of the prompt's tokens."""
    own, config, later = prompt.own, layout.config, len(layout.next_opening)
    border = max(prompt.local - config.local_window, 0)
    local = prompt.local - max(border, own)
    if border and 0 < prompt.question < local:  # a BOS stands between
        border, local = prompt.local - prompt.question - 1, prompt.question
    chunks, size = -(-border // config.chunk_size), min(border, config.chunk_size)
    first = 0 if own else later
    second = later + min(border - size, size)
    return Lengths(
        chunks=chunks,
        longest_chunk=max(first + size, second if chunks > 1 else 0) if chunks else 0,
        chunk_tokens=border + first + later * (chunks - 1) if chunks else 0,
        dynamic_prompt=_dynamic_prompt(layout, local),
        local=len(layout.opening) + local,
        whole=prompt.local,
        before=len(layout.opening),
        after=len(layout.opening) + local + (0 if layout.opening else len(layout.separator)),
    )


def _measure_long_turn(layout: Layout, prompt: PromptLengths) -> Lengths:
    """Layout "chat": the user's words are chunked."""
    config, opening = layout.config, len(layout.chunk_opening)
    border = max(prompt.after - config.local_window, 0)
    chunks, after = -(-border // config.chunk_size), prompt.after - border
    return Lengths(
        chunks=chunks,
        longest_chunk=opening + min(border, config.chunk_size) if chunks else 0,
        chunk_tokens=border + opening * chunks,
        dynamic_prompt=_dynamic_prompt(layout, after),
        local=prompt.before + after if chunks else prompt.local,
        whole=prompt.local,
        before=prompt.before,
        after=after,
    )


def _dynamic_prompt(layout: Layout, tokens: int) -> int:
    """Of so many tokens in question, those that are appended to every chunk."""
    return min(tokens, layout.config.dynamic_prompt) + (0 if layout.in_turn else len(layout.opening))


def resolve_max_new_tokens(asked: int | None, positions_left: int) -> int:
    """Tokens that an answer may have: `asked`, else 256 or as many as there are positions left (at least one)."""
    return min(DEFAULT_NEW_TOKENS, max(positions_left, 1)) if asked is None else asked


def fits_window(config: ResolvedConfig, whole: int, new_tokens: int) -> bool:
    """Whether the plain model reads a row of `whole` tokens by default: up to its window, as in the paper (§4.1)."""
    return whole + new_tokens <= config.window and (config.plain_up_to is None or whole <= config.plain_up_to)


def reads_plainly(config: ResolvedConfig, lengths: Lengths, new_tokens: int) -> bool:
    """Whether the plain model answers by default: there are no chunks, or everything fits its window."""
    return not lengths.chunks or fits_window(config, lengths.whole, new_tokens)


def longest_documents(config: ResolvedConfig, new_tokens: int) -> int:
    """About how many tokens of documents fit, with a full local window and `new_tokens` left for the answer."""
    plain = config.window - new_tokens
    return max(plain, (plain - config.local_window) * config.chunk_size, 1)


def expected_answer(config: ResolvedConfig) -> int:
    """Tokens that an answer is expected to take if `max_new_tokens` is unset."""
    return min(DEFAULT_NEW_TOKENS, config.window // 4)


def check_sizes(config: ResolvedConfig) -> ResolvedConfig:
    """`config`, unless its sizes cannot hold even one new token.

    Raises:
        ConfigError: a chunk with its dynamic prompt, or the local window, leaves no positions for an answer
    """
    row = config.chunk_size + config.dynamic_prompt + _OPENINGS
    if row >= config.window:
        raise ConfigError(
            f"chunk_size={config.chunk_size} and dynamic_prompt={config.dynamic_prompt} need {row + 1} positions with "
            f"one new token, but {config.usable_window}. Lower one of the two."
        )
    if config.local_window + _OPENINGS >= config.window:
        raise ConfigError(
            f"local_window={config.local_window} leaves no positions for memory and answer, for "
            f"{config.usable_window}. Lower it."
        )
    return config
