"""How a question is answered: which method, which chunks, how many new tokens. Decided before any work."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from focus_core.config import DEFAULT_SHORTLIST
from focus_core.methods.base import Method, Plan, TokenizedQuestion
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import (
    Lengths,
    Limits,
    expected_answer,
    measure,
    reads_plainly,
    resolve_max_new_tokens,
)
from focus_core.methods.table import AUTO, METHODS, WITHOUT_ADAPTER, checked_method
from focus_core.text.chunking import Chunk
from focus_core.text.cuts import Cuts
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout, Prompt
from focus_core.text.shortlist import shared_words, shortlist

_NOTICE = (
    f"no adapter is loaded, so method {WITHOUT_ADAPTER!r} answers about texts beyond the window: only the chunks that "
    "make the question likeliest are read together. For an answer from all chunks name an adapter, or train one with "
    "`focusllm train`."
)


@dataclass(frozen=True, eq=False)
class Outline:
    """A plan by lengths alone.

    Attributes:
        new_tokens: tokens that the answer may have
        reason: why this method
        notice: a warning for the user, if there is one
    """

    method: Method
    lengths: Lengths
    limits: Limits
    new_tokens: int
    reason: str
    notice: str | None = None

    @property
    def chunks(self) -> int:
        """Chunks that are prefilled."""
        return self.lengths.chunks if self.method.cached_layers else 0


Decode = Callable[[Sequence[int]], str]


class Planner:
    """Plans for one engine.

    Args:
        method: the method of questions that name none
        decode: the text of tokens

    Raises:
        ConfigError: an unknown method
    """

    def __init__(self, focus: FocusModel, layout: Layout, method: str, decode: Decode) -> None:
        self._focus, self._layout, self._decode = focus, layout, decode
        self._default = checked_method(method)
        self._methods: dict[str, Method] = {}
        self._cuts = Cuts()

    def method(self, name: str) -> Method:
        """The method of this name, made once."""
        if name not in self._methods:
            self._methods.setdefault(name, METHODS[checked_method(name)](self._focus))
        return self._methods[name]

    def outline(
        self, documents: Sequence[int], prompt: int, max_new_tokens: int | None = None, method: str | None = None
    ) -> Outline:
        """How a question of `prompt` tokens about documents of these numbers of tokens is answered.

        Without documents, the prompt itself may be longer than the window. Where borders of the text end chunks, or
        small documents share one, their number is known only from the texts: this is the number without that.
        """
        lengths = measure(self._layout, documents, self._layout.expected_lengths(prompt))
        return self._outline(lengths, max_new_tokens, method)

    def plan(
        self,
        documents: Sequence[TokenizedDocument],
        prompt: Prompt,
        max_new_tokens: int | None = None,
        method: str | None = None,
    ) -> Plan:
        """The plan for one question.

        Raises:
            ContextOverflowError: it does not fit, with both numbers and what to change
        """
        plan = self.draft(documents, prompt, max_new_tokens, method)
        plan.limits.check(plan.new_tokens)
        return plan

    def draft(
        self,
        documents: Sequence[TokenizedDocument],
        prompt: Prompt,
        max_new_tokens: int | None = None,
        method: str | None = None,
    ) -> Plan:
        """Like `plan`, whether it fits or not."""
        layout = self._layout if prompt.turn is not None else replace(self._layout, turn_opening=None)
        lengths = measure(layout, [len(document) for document in documents], layout.lengths(prompt))
        outline = self._outline(lengths, max_new_tokens, method)
        cut, context = tuple[Chunk, ...](), prompt
        if outline.chunks and documents:
            cut = self._cut(outline.method, self._within(layout, prompt, outline.method), documents)
        elif outline.chunks:
            listed, context = self._within(layout, prompt, outline.method).long_prompt(prompt)
            cut = tuple(listed)
        shared = self._shared_words(cut, layout, context, outline.method)
        cut, shared, outline = self._shortlisted(cut, shared, outline)
        if cut:
            outline = self._with_chunks(outline, [len(chunk) for chunk in cut], max_new_tokens)
        question = TokenizedQuestion(layout, tuple(documents), context, cut, shared, outline.new_tokens)
        return Plan(
            outline.method, cut, question, outline.limits, outline.new_tokens, outline.reason, notice=outline.notice
        )

    def positions_left(self, documents: Sequence[int], method: Method, chunks: Sequence[Chunk] = ()) -> int:
        """Positions that the window leaves for question and answer; negative where there is no room for a question.

        Args:
            documents: tokens of each document
            chunks: of them, where they are known
        """
        lengths = measure(self._layout, documents, self._layout.expected_lengths(0))
        if chunks:
            lengths = lengths.with_chunks([len(chunk) for chunk in chunks])
        return method.limits(lengths).positions_left

    def cut(self, method: Method, documents: Sequence[TokenizedDocument]) -> tuple[Chunk, ...]:
        """The chunks that a method reads of documents."""
        return self._cut(method, self._layout, documents)

    def _cut(self, method: Method, layout: Layout, documents: Sequence[TokenizedDocument]) -> tuple[Chunk, ...]:
        cutting = layout.cutting(boundaries=method.reading.boundaries, pack=method.reading.pack)
        return self._cuts.chunks_of(documents, layout, cutting)

    def _shared_words(
        self, chunks: Sequence[Chunk], layout: Layout, context: Prompt, method: Method
    ) -> tuple[float, ...]:
        """Of each chunk, for a method that asks for it where there is a choice among chunks."""
        if not method.reading.by_words or len(chunks) < 2:
            return ()
        question = self._decode(layout.after(context)[slice(*layout.words(context))])
        return tuple(shared_words(question, [self._text(chunk) for chunk in chunks]))

    def _shortlisted(
        self, chunks: tuple[Chunk, ...], shared: tuple[float, ...], outline: Outline
    ) -> tuple[tuple[Chunk, ...], tuple[float, ...], Outline]:
        """Of many chunks those that share most words with the question, where the method reads no more."""
        size = self._shortlist(outline.method)
        if size is None or len(chunks) <= size:
            return chunks, shared, outline
        kept = shortlist(shared, size)
        reason = f"{outline.reason}; of {len(chunks):,} chunks the {size:,} that share most words with the question"
        return tuple(chunks[index] for index in kept), tuple(shared[i] for i in kept), replace(outline, reason=reason)

    def _shortlist(self, method: Method) -> int | None:
        """How many chunks a method reads at most; `None`: all."""
        config = self._focus.config
        size = DEFAULT_SHORTLIST if config.shortlist is None else config.shortlist
        return size if method.reading.by_words and size else None

    def _text(self, chunk: Chunk) -> str:
        return self._decode(chunk.token_ids) if chunk.text is None else chunk.text

    @staticmethod
    def _within(layout: Layout, prompt: Prompt, method: Method) -> Layout:
        return layout.within(prompt.turn) if method.reading.own_opening and prompt.turn is not None else layout

    def _outline(self, lengths: Lengths, max_new_tokens: int | None, method: str | None) -> Outline:
        asked = checked_method(method or self._default)
        name, reason = self._choose(asked, lengths, max_new_tokens)
        chosen = self.method(name)
        lengths = lengths.shortened(self._shortlist(chosen) or lengths.chunks)
        limits = chosen.limits(lengths)
        unasked = asked == AUTO and name == WITHOUT_ADAPTER and not self._focus.trained
        notice = _NOTICE if unasked else chosen.notice
        new_tokens = resolve_max_new_tokens(max_new_tokens, limits.positions_left)
        return Outline(chosen, lengths, limits, new_tokens, reason, notice)

    @staticmethod
    def _with_chunks(outline: Outline, chunks: Sequence[int], max_new_tokens: int | None) -> Outline:
        """The same with chunks of these lengths."""
        lengths = outline.lengths.with_chunks(chunks)
        limits = outline.method.limits(lengths)
        new_tokens = resolve_max_new_tokens(max_new_tokens, limits.positions_left)
        return replace(outline, lengths=lengths, limits=limits, new_tokens=new_tokens)

    def _choose(self, asked: str, lengths: Lengths, max_new_tokens: int | None) -> tuple[str, str]:
        """A method's name, and why this one."""
        if not lengths.chunks:
            return "plain", "nothing is read in chunks, so every method is the plain model"
        if asked != AUTO:
            return asked, "as asked"
        config = self._focus.config
        # If `max_new_tokens` is unset, the plain model runs only when an answer of the expected length fits.
        expected = expected_answer(config) if max_new_tokens is None else max_new_tokens
        if reads_plainly(config, lengths, expected):
            return "plain", f"documents, question and answer fit the window of {config.window:,} positions"
        limit = config.window if config.plain_up_to is None else min(config.plain_up_to, config.window)
        too_long = f"a row of {lengths.whole:,} tokens and the answer is more than the plain model reads ({limit:,})"
        if not self._focus.trained:
            return WITHOUT_ADAPTER, f"{too_long}, and there is no adapter"
        if config.focus_up_to is not None and lengths.chunks > config.focus_up_to:
            return WITHOUT_ADAPTER, f"{too_long}, in more than {config.focus_up_to:,} chunks (focus_up_to)"
        return "focus", f"{too_long}, and there is an adapter"
