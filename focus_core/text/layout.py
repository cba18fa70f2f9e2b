"""What stands where in the rows that a model reads: chunks, prompts, documents of the plain model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from focus_core.config import ResolvedConfig
from focus_core.text.chat import Turn
from focus_core.text.chunking import Chunk, Cutting
from focus_core.text.documents import TokenIds, TokenizedDocument


@dataclass(frozen=True, eq=False)
class Prompt:
    """What the model continues: a question with its template, or a text of any length.

    Attributes:
        opening: a BOS, or nothing
        tokens: the rest
        turn: the same conversation as documents join it, in layout "chat"
        question: first token after the last BOS that a chat template wrote in the middle; all before it is then read
            like a document, if the prompt is too long to be read at once
    """

    opening: tuple[int, ...]
    tokens: TokenizedDocument
    turn: Turn | None = None
    question: int | None = None

    def __len__(self) -> int:
        return len(self.opening) + len(self.tokens)

    @property
    def row(self) -> TokenIds:
        """The tokens that the model reads."""
        return [*self.opening, *self.tokens.token_ids]


@dataclass(frozen=True)
class PromptLengths:
    """Numbers of tokens of a prompt.

    Attributes:
        own: its BOS
        local: all of it, as local context
        before: what stands before documents in the plain model's row
        after: what stands after them
        question: what follows a BOS in the middle; 0 if there is none
    """

    own: int
    local: int
    before: int
    after: int
    question: int = 0


@dataclass(frozen=True)
class Layout:
    """The rows that the model reads.

    Layout "raw": a chunk begins with a BOS and is followed by the end of the local context. With `bos_per_chunk` (the
    default) every chunk starts with a BOS, so that it is the same at any place in its document. The authors' rule has a
    BOS only at the start of a text. Under both rules one stands before the local context and before the dynamic prompt.
    A tokenizer that writes no BOS has none (`TextTokenizer.bos`).

    Layout "chat": documents stand in the user's turn, in front of the user's last words. A chunk begins with what the
    chat template writes before them, and is followed by what it writes from there on. So a row is what the plain model
    would get if the chunk were the whole document.

    Attributes:
        separator: between texts that the plain model reads one after the other
        turn_opening: what a chat template writes before the words of a user, BOS included; `None` in layout "raw"
    """

    config: ResolvedConfig
    bos: int | None
    separator: tuple[int, ...] = ()
    turn_opening: tuple[int, ...] | None = None

    @property
    def in_turn(self) -> bool:
        """Layout "chat"."""
        return self.turn_opening is not None

    @property
    def opening(self) -> tuple[int, ...]:
        """The BOS, or nothing."""
        return () if self.bos is None else (self.bos,)

    @property
    def chunk_opening(self) -> tuple[int, ...]:
        """What the first chunk of a document begins with."""
        return self.opening if self.turn_opening is None else self.turn_opening

    @property
    def next_opening(self) -> tuple[int, ...]:
        """What the further chunks of a document begin with."""
        return self.chunk_opening if self.config.bos_per_chunk or self.in_turn else ()

    def within(self, conversation: Turn) -> Layout:
        """The layout of chunks that begin with all that stands before the documents in this conversation."""
        return replace(self, turn_opening=conversation.opening)

    def prompt(self, token_ids: Sequence[int]) -> Prompt:
        """A prompt of tokens that have no BOS of their own."""
        return Prompt(self.opening, TokenizedDocument.of_tokens(token_ids))

    # --- chunks -------------------------------------------------------------------------------------------------------

    def document_chunks(
        self, document: TokenizedDocument, cutting: Cutting | None = None, *, index: int = 0
    ) -> list[Chunk]:
        """Chunks of one document, which has this index among those that are cut together."""
        found = list[Chunk]()
        for start, stop in (cutting or self.cutting()).spans(document):
            opening = self.next_opening if start else self.chunk_opening
            found.append(self._cut(document, start, stop, opening, index))
        return found

    def chunks_of(self, documents: Sequence[TokenizedDocument], cutting: Cutting | None = None) -> list[Chunk]:
        """Chunks of all documents, in order. A chunk never spans two, unless small ones are packed."""
        cutting, found = cutting or self.cutting(), list[Chunk]()
        for first, stop in cutting.packs([len(document) for document in documents], len(self.separator)):
            if stop - first == 1:
                found += self.document_chunks(documents[first], cutting, index=first)
            else:
                found.append(self._packed(documents, range(first, stop)))
        return found

    def cutting(self, *, boundaries: str = "tokens", pack: bool = False) -> Cutting:
        """Chunks of the configured size; what the configuration leaves open is as given."""
        config = self.config
        return Cutting(
            config.chunk_size,
            boundaries=config.boundaries or boundaries,
            pack=pack if config.pack is None else config.pack,
        )

    def long_prompt(self, prompt: Prompt) -> tuple[list[Chunk], Prompt]:
        """Chunks of all but the prompt's last `local_window` tokens, and those as local context.

        As in the authors' code, a BOS that the prompt has itself counts as one of its tokens. In layout "chat" the
        user's words are chunked, and what the template writes before them is not. A question that begins with a BOS of
        its own within the local window is the local context.
        """
        if prompt.turn is not None:
            return self._long_turn(prompt, prompt.turn)
        own, size, tokens = len(prompt.opening), self.config.chunk_size, prompt.tokens
        border = max(len(prompt) - self.config.local_window, 0)
        if border == 0:
            return [], Prompt(prompt.opening or self.opening, tokens)
        first = border - own  # token of the local context
        if prompt.question is not None and prompt.question - 1 >= first:
            border, first = own + prompt.question - 1, prompt.question
        starts = [max(start - own, 0) for start in range(0, border, size)]
        stops = [*starts[1:], border - own]
        openings = [prompt.opening or self.next_opening, *[self.next_opening] * (len(starts) - 1)]
        chunks = [self._cut(tokens, *chunk) for chunk in zip(starts, stops, openings, strict=True)]
        return chunks, Prompt(self.opening, TokenizedDocument.of_tokens(tokens.token_ids[first:]))

    def _long_turn(self, prompt: Prompt, turn: Turn) -> tuple[list[Chunk], Prompt]:
        border = max(len(turn.suffix) - self.config.local_window, 0)
        if border == 0:
            return [], prompt
        first, last = (max(word - border, 0) for word in turn.words)
        rest = Turn(turn.opening, turn.suffix[border:], (first, last))
        context = TokenizedDocument.of_tokens([*turn.opening, *rest.suffix][len(self.opening) :])
        chunks = self.document_chunks(TokenizedDocument.of_tokens(turn.suffix[:border]))
        return chunks, Prompt(self.opening, context, rest)

    def _packed(self, documents: Sequence[TokenizedDocument], indices: range) -> Chunk:
        parts = tuple(self._cut(documents[index], 0, len(documents[index]), (), index) for index in indices)
        token_ids = list(parts[0].token_ids)
        for part in parts[1:]:
            token_ids += [*self.separator, *part.token_ids]
        opening, kv_dtype = self.chunk_opening, self.config.kv_dtype
        return Chunk(parts[0].document, 0, parts[0].stop, None, token_ids, opening, parts, kv_dtype, indices.start)

    def _cut(
        self, document: TokenizedDocument, start: int, stop: int, opening: tuple[int, ...], index: int = 0
    ) -> Chunk:
        ids, characters = list(document.token_ids[start:stop]), document.characters(start, stop)
        return Chunk(document.document, start, stop, characters, ids, opening, (), self.config.kv_dtype, index)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def dynamic_prompt(self, local_context: Prompt) -> TokenIds:
        """What is appended to every chunk: the end of the local context (paper eq. 1)."""
        if local_context.turn is not None:
            return list(local_context.turn.suffix[-self.config.dynamic_prompt :])
        return [*self.opening, *local_context.tokens.token_ids[-self.config.dynamic_prompt :]]

    def before(self, local_context: Prompt) -> TokenIds:
        """What stands before documents in the plain model's row."""
        return list(self.opening if local_context.turn is None else local_context.turn.opening)

    def after(self, local_context: Prompt) -> TokenIds:
        """What stands after documents in the plain model's row. A BOS, where there is one, separates them."""
        if local_context.turn is not None:
            return list(local_context.turn.suffix)
        return [*(() if local_context.opening else self.separator), *local_context.row]

    def words(self, local_context: Prompt) -> tuple[int, int]:
        """The user's words in `after`: first token, and the token after the last. In layout "raw" all of the prompt."""
        if local_context.turn is not None:
            return local_context.turn.words
        stop = len(self.after(local_context))
        return stop - len(local_context.tokens), stop

    def plain(self, documents: Sequence[TokenizedDocument], local_context: Prompt) -> TokenIds:
        """All documents in one row, for the plain model: the row of a single large chunk."""
        if not documents:
            return local_context.row
        row = [*self.before(local_context), *documents[0].token_ids]
        for document in documents[1:]:
            row += [*self.separator, *document.token_ids]
        return [*row, *self.after(local_context)]

    def selection(self, chunks: Sequence[Chunk], local_context: Prompt) -> TokenIds:
        """Some chunks in one row, for the plain model; with all chunks of some documents it is `plain`."""
        if not chunks:
            return local_context.row
        row = [*self.before(local_context), *chunks[0].token_ids]
        for before, chunk in pairwise(chunks):
            row += [*(() if chunk.continues(before) else self.separator), *chunk.token_ids]
        return [*row, *self.after(local_context)]

    def selection_starts(self, chunks: Sequence[Chunk], local_context: Prompt) -> list[int]:
        """Where in `selection` each of the chunks begins, its opening not counted."""
        starts, place = list[int](), len(self.before(local_context))
        for number, chunk in enumerate(chunks):
            place += 0 if number == 0 or chunk.continues(chunks[number - 1]) else len(self.separator)
            starts.append(place)
            place += len(chunk.token_ids)
        return starts

    # --- lengths ------------------------------------------------------------------------------------------------------

    def lengths(self, prompt: Prompt) -> PromptLengths:
        """Numbers of tokens of a prompt."""
        question = 0 if prompt.question is None else len(prompt.tokens) - prompt.question
        before, after = len(self.before(prompt)), len(self.after(prompt))
        return PromptLengths(len(prompt.opening), len(prompt), before, after, question)

    def expected_lengths(self, tokens: int) -> PromptLengths:
        """The same for a prompt of which only the number of tokens is known, without its BOS."""
        bos, separator = len(self.opening), len(self.separator)
        if self.turn_opening is None:
            return PromptLengths(bos, bos + tokens, bos, bos + tokens + (0 if bos else separator))
        before = len(self.turn_opening)
        return PromptLengths(bos, bos + tokens, before, max(bos + tokens - before, 0) + separator)
