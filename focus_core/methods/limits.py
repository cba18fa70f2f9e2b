"""What a question needs: plain model or chunks, which rows, how many new tokens. All limits are checked here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_core.text.chunking import TextLayout, TokenIds
from focus_core.config import DEFAULT_NEW_TOKENS, ResolvedConfig
from focus_core.errors import ContextOverflowError


@dataclass(frozen=True)
class Plan:
    """How one question is read.

    Attributes:
        chunks: token ids of every chunk; none where the plain model reads everything
        local: the local context, or the plain model's whole input
        prompt: the dynamic prompt; empty for the plain model
        new_tokens: how many tokens the answer may have
    """

    chunks: list[TokenIds]
    local: TokenIds
    prompt: TokenIds
    new_tokens: int


def make_plan(
    layout: TextLayout,
    local: TokenIds,
    documents: Sequence[TokenIds] = (),
    new_tokens: int | None = None,
    *,
    chunks: list[TokenIds] | None = None,
) -> Plan:
    """A plan for `documents` with a question, or without documents for one prompt of any length.

    Args:
        local: the question with its template, or the whole prompt
        new_tokens: `None` asks for 256, or what the window leaves
        chunks: those of the documents, where they have been cut already, as for another question

    Raises:
        ContextOverflowError: it does not fit, with both numbers and what to change
    """
    config = layout.config
    whole, context = layout.plain_length(documents, local), local
    if documents:
        chunks = layout.chunks_of(documents) if chunks is None else chunks
    else:
        chunks, context = layout.long_prompt(local)
    # Without a wish of the user's, the plain model is not used where it would leave no room to speak of.
    expected = config.expected_answer if new_tokens is None else new_tokens
    if not chunks or config.reads_plainly(whole, expected):
        new_tokens = wished_or_room(new_tokens, config.window - whole)
        check_plain_room(config, prompt=whole, new_tokens=new_tokens)
        return Plan([], layout.plain(documents, local), [], new_tokens)
    prompt = layout.dynamic_prompt(context)
    lengths = [len(chunk) for chunk in chunks]
    room = room_for_answer(config, chunks=len(chunks), longest=max(lengths), prompt=len(prompt), local=len(context))
    new_tokens = wished_or_room(new_tokens, room)
    check_room(config, chunk_lengths=lengths, prompt=len(prompt), local=len(context), new_tokens=new_tokens)
    return Plan(chunks, context, prompt, new_tokens)


def room_for_answer(config: ResolvedConfig, *, chunks: int, longest: int, prompt: int, local: int) -> int:
    """Positions that the window leaves: behind the longest chunk, and behind memory and local context."""
    return config.window - max(longest + prompt, chunks + local)


def wished_or_room(new_tokens: int | None, room: int) -> int:
    """How many tokens an answer may have: as many as the user says, else 256 or what there is room for."""
    return min(DEFAULT_NEW_TOKENS, max(room, 1)) if new_tokens is None else new_tokens


def check_room(
    config: ResolvedConfig, *, chunk_lengths: Sequence[int], prompt: int, local: int, new_tokens: int
) -> None:
    """Refuse what would run past the model's window, before any work.

    Args:
        chunk_lengths: tokens of every chunk
        prompt: tokens of the longest dynamic prompt
        local: tokens of the longest local context
        new_tokens: how many tokens may be generated

    Raises:
        ContextOverflowError: says which of the two limits is exceeded, by how much, and what to change
    """
    window, chunks, longest = config.window, len(chunk_lengths), max(chunk_lengths, default=0)
    row = longest + prompt + new_tokens
    if row > window:
        raise ContextOverflowError(
            f"A chunk of {longest} tokens, a dynamic prompt of {prompt} and max_new_tokens={new_tokens} need {row} "
            f"positions, but {config.usable_window}. Lower max_new_tokens to "
            f"{max(window - longest - prompt, 0)}, or choose a smaller chunk_size or dynamic_prompt."
        )
    behind = chunks + local + new_tokens
    if behind > window:
        fits = max(window - local - new_tokens, 0)
        if fits == 0:
            raise ContextOverflowError(
                f"A local context of {local} tokens (question, system prompt and chat) and max_new_tokens={new_tokens} "
                f"leave no room for a memory: {config.usable_window}. Shorten the question, or lower max_new_tokens."
            )
        raise ContextOverflowError(
            f"A memory of {chunks} chunks, a local context of {local} tokens and max_new_tokens={new_tokens} need "
            f"{behind} positions, but {config.usable_window}: {fits} chunks fit "
            f"(about {fits * config.chunk_size} tokens of documents). Hand over fewer documents, choose a larger "
            f"chunk_size (now {config.chunk_size}), or lower max_new_tokens or the local context."
        )


def check_plain_room(config: ResolvedConfig, *, prompt: int, new_tokens: int) -> None:
    """The same for the plain model.

    Raises:
        ContextOverflowError: with both numbers
    """
    window = config.window
    if prompt + new_tokens > window:
        ways_out = [f"Lower max_new_tokens to {window - prompt}."] if prompt < window else []
        if prompt >= window or new_tokens < window:
            ways_out.append("Hand the text over as documents, which are read in chunks.")
        raise ContextOverflowError(
            f"The prompt has {prompt} tokens and max_new_tokens={new_tokens}, together {prompt + new_tokens}, but "
            f"{config.usable_window}. {' '.join(ways_out)}"
        )
