"""What a run is to measure: tasks, contenders, sizes. Checked before a model is loaded."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation.contenders import (
    OTHER_NEEDS,
    Contender,
    Setting,
    checked_contenders,
    contenders_named,
    required_embedder,
)
from focus_core.evaluation.tasks.base import Haystack, Material, Question, Task
from focus_core.evaluation.tasks.reading import ReadingTask
from focus_core.evaluation.tasks.records import ARRANGEMENTS, Record, read_records
from focus_core.evaluation.tasks.table import LOOK_UPS, task_named
from focus_core.evaluation.trials import conditions_of, file_conditions
from focus_core.methods.table import AUTO

DEFAULT_LENGTHS = (1_000, 4_000, 16_000)  # tokens of look-ups' documents
DEFAULT_PASSAGE = 256  # tokens


@dataclass(frozen=True)
class Plan:
    """What is asked of whom.

    Attributes:
        tasks: names; all look-ups by default
        contenders: names; the others are compared with the first
        questions: how many in each task and length
        lengths: about how many tokens the documents of look-ups have
        texts: where the text around hidden facts comes from; generated sentences by default
        data: file of texts and questions, for the tasks that need one
        arrange: how its texts become documents (`tasks.records.ARRANGEMENTS`); by default the task's own way
        budget: tokens of documents that rivals hand over; by default what the window leaves
        passage_tokens: longest passage of retrieval
        embedder: folder of a sentence encoder, for `minilm`
        instruction: words after every question; by default the task's own
        max_new_tokens: longest answer; by default the task's own
        at_once: questions about the same documents that are asked together: sooner done, and the seconds of an answer
            are then those of all
        loss: also tell how likely the first reference is, token by token, in place of the answer

    Raises:
        ConfigError: an unknown name, an impossible size, or data that are missing, unreadable or not needed
    """

    tasks: tuple[str, ...] = tuple(LOOK_UPS)
    contenders: tuple[str, ...] = (AUTO,)
    questions: int = 20
    seed: int = 0
    lengths: tuple[int, ...] = DEFAULT_LENGTHS
    texts: tuple[str, ...] = ()
    data: Path | None = None
    arrange: str | None = None
    budget: int | None = None
    passage_tokens: int = DEFAULT_PASSAGE
    embedder: Path | None = None
    instruction: str | None = None
    max_new_tokens: int | None = None
    at_once: int = 1
    loss: bool = False

    def __post_init__(self) -> None:
        checked_contenders(self.contenders)
        for name in ("questions", "budget", "passage_tokens", "max_new_tokens", "at_once"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}: must be at least 1.")
        if self.arrange is not None and self.arrange not in ARRANGEMENTS:
            raise ConfigError(f"arrange={self.arrange!r}: choose from {', '.join(ARRANGEMENTS)}.")
        needing = [task.name for task in self.chosen if task.needs_data]
        if needing and self.data is None:
            raise ConfigError(f"Task {needing[0]} needs a file of texts and questions: --data FILE.")
        if self.data is not None and not needing:
            raise ConfigError("A file of data is given, and no task reads one. Choose --task fairytale or squad.")
        if "minilm" in self.contenders:
            required_embedder(self.embedder)
        self.records  # noqa: B018  # read now, so that a bad file is refused now
        if "other" in self.contenders and not all(self._has_other_texts(task) for task in self.chosen):
            raise ConfigError(OTHER_NEEDS)

    @cached_property
    def chosen(self) -> list[Task]:
        """The tasks."""
        return [task_named(name) for name in dict.fromkeys(self.tasks)]

    @cached_property
    def records(self) -> list[Record]:
        """The data."""
        return [] if self.data is None else read_records(self.data)

    def _has_other_texts(self, task: Task) -> bool:
        single = isinstance(task, ReadingTask) and (self.arrange or task.arrange) == "single"
        return single and len({record.text for record in self.records}) > 1

    @property
    def trials(self) -> int:
        """How many answers there will be."""
        parts = sum(1 if task.needs_data else len(self.lengths) for task in self.chosen)
        return parts * self.questions * len(checked_contenders(self.contenders))

    def parts(self, engine: FocusEngine) -> Iterator[tuple[Task, Material]]:
        """Each task at each of its lengths."""
        material = Material(engine, self.questions, self.seed, Haystack(engine, self.texts))
        for task in self.chosen:
            if task.needs_data:
                yield task, replace(material, records=self.records, arrange=self.arrange)
            else:
                yield from ((task, replace(material, tokens=tokens)) for tokens in self.lengths)

    def rivals(self, engine: FocusEngine) -> list[Contender]:
        """The contenders."""
        setting = Setting(
            engine, self.budget, self.passage_tokens, self.embedder, [record.text for record in self.records]
        )
        return contenders_named(self.contenders, setting)

    def require_score(self, score: str) -> None:
        """Refuse a score that a task does not have.

        Raises:
            ConfigError: naming those it has
        """
        for task in self.chosen:
            if score not in task.scores:
                raise ConfigError(f"score={score!r}: task {task.name} has {', '.join(task.scores)}.")

    def prompt(self, task: Task, question: Question) -> str:
        """What the engine is asked; a text that is only continued stands as it is."""
        words = task.instruction if self.instruction is None else self.instruction
        return f"{question.text} {words}" if words and question.chat_template else question.text

    def conditions(self, engine: FocusEngine) -> dict[str, Any]:
        """All that an answer depends on, as JSON. Further contenders and further questions change no answer."""
        texts = hashlib.sha256("\0".join(self.texts).encode()).hexdigest() if self.texts else None
        return {
            "tasks": [task.name for task in self.chosen],
            "lengths": None if self.data else list(self.lengths),
            "texts": texts,
            "data": None if self.data is None else file_conditions(self.data),
            "arrange": self.arrange,
            "seed": self.seed,
            "budget": self.budget,
            "passage_tokens": self.passage_tokens,
            "embedder": None if self.embedder is None else self.embedder.name,
            "instruction": self.instruction,
            "max_new_tokens": self.max_new_tokens,
            "at_once": self.at_once,
            **conditions_of(engine),
        }
