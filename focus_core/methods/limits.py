"""What fits the window: the only place that adds positions up.

Everything here is arithmetic on lengths, so that the engine, `focusllm info`, the wrappers and training get the same
answer, with or without a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from focus_core.config import DEFAULT_NEW_TOKENS, ResolvedConfig
from focus_core.errors import ConfigError, ContextOverflowError
from focus_core.text.chunking import Layout

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
    """

    chunks: int
    longest_chunk: int
    chunk_tokens: int
    dynamic_prompt: int
    local: int
    whole: int

    @classmethod
    def of(cls, chunks: Sequence[int], dynamic_prompt: int, local: int, whole: int) -> Lengths:
        """From the length of every chunk."""
        return cls(len(chunks), max(chunks, default=0), sum(chunks), dynamic_prompt, local, whole)


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
        raise ContextOverflowError(
            f"A memory of {chunks} chunks, a local context of {self.lengths.local} tokens and max_new_tokens="
            f"{new_tokens} need {self.local_row + new_tokens} positions, but {config.usable_window}: {fits} chunks "
            f"fit (about {fits * config.chunk_size} tokens of documents). Hand over fewer documents, choose a larger "
            f"chunk_size (now {config.chunk_size}), or lower max_new_tokens or the local context."
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


def measure(layout: Layout, documents: Sequence[int], prompt: int, *, with_bos: bool | None = None) -> Lengths:
    """Lengths of what `layout` makes of documents and a prompt, from their numbers of tokens alone.

    Args:
        documents: tokens of each document; without any the prompt itself is chunked
        prompt: tokens of the question with its template, or of one long prompt, without BOS
        with_bos: whether a prompt without documents has a BOS of its own; by default if the layout has one
    """
    config, opening = layout.config, len(layout.opening)
    own = opening if with_bos is None else int(with_bos)
    if not documents:
        return _measure_long_prompt(config, opening, own, prompt)
    counts = [-(-document // config.chunk_size) for document in documents]
    longest = min(max(documents), config.chunk_size)
    separators = len(layout.separator) * (len(documents) - 1 + (opening == 0))
    return Lengths(
        chunks=sum(counts),
        longest_chunk=opening + longest,
        chunk_tokens=sum(documents) + sum(opening + _repeated(config, opening) * (count - 1) for count in counts),
        dynamic_prompt=opening + min(prompt, config.dynamic_prompt),
        local=opening + prompt,
        whole=opening + sum(documents) + separators + opening + prompt,
    )


def _measure_long_prompt(config: ResolvedConfig, opening: int, own: int, prompt: int) -> Lengths:
    whole = own + prompt
    border = max(whole - config.local_window, 0)
    chunks, size = -(-border // config.chunk_size), min(border, config.chunk_size)
    later = _repeated(config, opening)
    first = 0 if own else later
    second = later + min(border - size, size)
    local = prompt - (border - own) if border else prompt
    return Lengths(
        chunks=chunks,
        longest_chunk=max(first + size, second if chunks > 1 else 0) if chunks else 0,
        chunk_tokens=border + first + later * (chunks - 1) if chunks else 0,
        dynamic_prompt=opening + min(local, config.dynamic_prompt),
        local=opening + local,
        whole=whole,
    )


def _repeated(config: ResolvedConfig, opening: int) -> int:
    """Tokens of the opening of every chunk but the first."""
    return opening if config.bos_per_chunk else 0


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
