"""How a question is answered: which method, which chunks, how many new tokens. Decided before any work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_core.errors import ConfigError
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
from focus_core.methods.table import AUTO, METHODS
from focus_core.text.chunking import Chunk, Layout, Prompt
from focus_core.text.documents import TokenizedDocument


@dataclass(frozen=True, eq=False)
class Outline:
    """A plan by lengths alone.

    Attributes:
        new_tokens: tokens that the answer may have
    """

    method: Method
    lengths: Lengths
    limits: Limits
    new_tokens: int

    @property
    def chunks(self) -> int:
        """Chunks that are prefilled."""
        return self.lengths.chunks if self.method.cached_layers else 0


class Planner:
    """Plans for one engine.

    Args:
        method: the method of questions that name none

    Raises:
        ConfigError: an unknown method
    """

    def __init__(self, focus: FocusModel, layout: Layout, method: str) -> None:
        self._focus, self._layout = focus, layout
        self._default = checked_method(method)
        self._methods: dict[str, Method] = {}

    def method(self, name: str) -> Method:
        """The method of this name, made once."""
        if name not in self._methods:
            self._methods.setdefault(name, METHODS[checked_method(name)](self._focus))
        return self._methods[name]

    def outline(
        self, documents: Sequence[int], prompt: int, max_new_tokens: int | None = None, method: str | None = None
    ) -> Outline:
        """How a question of `prompt` tokens about documents of these numbers of tokens is answered.

        Without documents, the prompt itself may be longer than the window.
        """
        lengths = measure(self._layout, documents, prompt)
        chosen = self.method(self._choose(lengths, max_new_tokens, method))
        limits = chosen.limits(lengths)
        return Outline(chosen, lengths, limits, resolve_max_new_tokens(max_new_tokens, limits.positions_left))

    def plan(
        self,
        documents: Sequence[TokenizedDocument],
        prompt: Prompt,
        max_new_tokens: int | None = None,
        method: str | None = None,
        *,
        chunks: Sequence[Chunk] | None = None,
    ) -> Plan:
        """The plan for one question.

        Args:
            chunks: those of the documents, where they have been cut already, as for another question

        Raises:
            ContextOverflowError: it does not fit, with both numbers and what to change
        """
        outline = self.outline([len(document) for document in documents], len(prompt.tokens), max_new_tokens, method)
        outline.limits.check(outline.new_tokens)
        cut, context = tuple(chunks or ()), prompt
        if not outline.chunks:
            cut = ()
        elif not documents:
            listed, context = self._layout.long_prompt(prompt)
            cut = tuple(listed)
        elif chunks is None:
            cut = tuple(self._layout.chunks_of(documents))
        question = TokenizedQuestion(self._layout, tuple(documents), context)
        return Plan(outline.method, cut, question, outline.limits, outline.new_tokens)

    def _choose(self, lengths: Lengths, max_new_tokens: int | None, asked: str | None) -> str:
        name = checked_method(asked or self._default)
        if name != AUTO:
            return name if lengths.chunks else "plain"  # without chunks every method is the plain model
        # If `max_new_tokens` is unset, the plain model runs only when an answer of the expected length fits.
        expected = expected_answer(self._focus.config) if max_new_tokens is None else max_new_tokens
        return "plain" if reads_plainly(self._focus.config, lengths, expected) else "focus"


def checked_method(name: str) -> str:
    """`name`, if there is such a method.

    Raises:
        ConfigError: naming those there are
    """
    if name != AUTO and name not in METHODS:
        raise ConfigError(f"method={name!r}: choose from {', '.join(map(repr, (AUTO, *METHODS)))}.")
    return name
