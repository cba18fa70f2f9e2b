"""One training sample: chunks, and one or more questions about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from focus_core.errors import ConfigError
from focus_core.text.documents import TokenIds
from focus_core.text.layout import Layout, Prompt


@dataclass(frozen=True)
class SupervisedQuestion:
    """A local context and the answer that follows it.

    Attributes:
        local_context: token ids before generation starts, BOS included
        dynamic_prompt: the end of the local context as it is appended to every chunk, BOS included (paper eq. 1)
        answer: the tokens that follow; while they are generated, each is appended to both
        targets: which of the answer's tokens are supervised, rising; all of them if not given
        plain_prompt: what the plain model reads between a chunk and the answer, for a teacher; by default the dynamic
            prompt
        teachers: numbers of the chunks in which the answer stands; none if that is not known
    """

    local_context: TokenIds
    dynamic_prompt: TokenIds
    answer: TokenIds
    targets: tuple[int, ...] = ()
    plain_prompt: TokenIds = field(default_factory=list)
    teachers: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.local_context or not self.dynamic_prompt:
            raise ConfigError("A question needs at least one token before its answer: a BOS or some text.")
        if not self.answer:
            raise ConfigError("A question without an answer has nothing to learn from.")
        if not self.targets:
            object.__setattr__(self, "targets", tuple(range(len(self.answer))))
        if not self.plain_prompt:
            object.__setattr__(self, "plain_prompt", self.dynamic_prompt)
        if min(self.targets) < 0 or max(self.targets) >= len(self.answer):
            raise ConfigError(f"targets={self.targets}: the answer has {len(self.answer)} tokens.")

    @classmethod
    def of(
        cls,
        layout: Layout,
        context: Prompt,
        answer: Sequence[int],
        *,
        targets: Sequence[int] = (),
    ) -> SupervisedQuestion:
        """From a prompt, of which `layout` cuts the dynamic prompt."""
        prompt = layout.dynamic_prompt(context)
        return cls(context.row, prompt, list(answer), tuple(targets), plain_prompt=layout.after(context))


@dataclass(frozen=True)
class TrainingExample:
    """One set of chunks and all questions about it: the chunks are prefilled once.

    Attributes:
        chunks: token ids, BOS included where the BOS rule wants one
        questions: at least one
        objective: the column of the log that the loss goes to
        weight: of this example in the loss
    """

    chunks: list[TokenIds]
    questions: list[SupervisedQuestion]
    objective: str = "answering"
    weight: float = 1.0

    def __post_init__(self) -> None:
        if not self.chunks or not all(self.chunks):
            raise ConfigError("A training example needs at least one chunk, and no chunk may be empty.")
        if not self.questions:
            raise ConfigError("A training example needs at least one question.")

    @property
    def num_targets(self) -> int:
        return sum(len(question.targets) for question in self.questions)

    @property
    def tokens_read(self) -> int:
        """Tokens that pass the model: chunks, what follows each of them, and the rows of local context."""
        followed = sum(len(question.dynamic_prompt) + len(question.answer) for question in self.questions)
        local = sum((len(one.local_context) + len(one.answer)) * len(one.targets) for one in self.questions)
        return sum(map(len, self.chunks)) + len(self.chunks) * followed + local
