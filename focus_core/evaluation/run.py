"""How often a model answers right, at a length: by chunks, and as a control by the plain model on a cut text."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from focus_core.engine.engine import FocusEngine
from focus_core.errors import ConfigError
from focus_core.evaluation.tasks.base import Haystack, Sheet
from focus_core.evaluation.tasks.table import task_named
from focus_core.progress import Report

_SLACK = 16  # tokens that decoding and encoding a text again may add


@dataclass(frozen=True)
class Result:
    """Outcome of one task at one length.

    Attributes:
        tokens: median length of the documents
        contender: "focus", or "cut": the plain model on the end of the text
        low: lower end of the 95 % Wilson interval of the accuracy
        high: its upper end
        seconds: median per document, all its questions included
    """

    task: str
    contender: str
    tokens: int
    trials: int
    right: int
    low: float
    high: float
    seconds: float
    seed: int

    @property
    def accuracy(self) -> float:
        return self.right / self.trials

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the accuracy."""
        return {**asdict(self), "accuracy": self.accuracy}


def evaluate(
    engine: FocusEngine,
    task: str,
    tokens: int,
    *,
    trials: int = 100,
    seed: int = 0,
    haystack: Haystack | None = None,
    cut: bool = False,
    report: Report | None = None,
) -> Result:
    """Ask `trials` questions about seeded documents of about `tokens` tokens.

    Args:
        haystack: where the text around the facts comes from; generated sentences by default
        cut: the control: the plain model, on as much of the end of the text as its window holds
        report: called with the number of trials done and in all, after every document

    Raises:
        ConfigError: an unknown task or an impossible size
    """
    if trials < 1:
        raise ConfigError(f"trials={trials}: must be at least 1.")
    if tokens < 256:
        raise ConfigError(f"tokens={tokens}: a task needs at least 256 tokens of text.")
    sheets = _sheets(engine, task, tokens, trials, seed, haystack or Haystack(engine))
    sizes: list[int] = []
    seconds: list[float] = []
    right = asked = 0
    for sheet in sheets:
        sizes.append(engine.count_tokens(sheet.document))
        started = time.perf_counter()
        right += sum(_ask(engine, sheet, cut))
        seconds.append(time.perf_counter() - started)
        asked += len(sheet.trials)
        if report is not None:
            report(asked, trials)
    low, high = wilson(right, asked)
    middle = round(statistics.median(sizes))
    return Result(task, "cut" if cut else "focus", middle, asked, right, low, high, statistics.median(seconds), seed)


def wilson(right: int, trials: int) -> tuple[float, float]:
    """95 % interval of a share: (0.70, 0.85) for 78 of 100."""
    z, share = 1.96, right / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((middle + side) / (1 + z * z / trials) for side in (-spread, spread))
    return max(low, 0.0), min(high, 1.0)  # rounding may lead beyond


def _sheets(engine: FocusEngine, task: str, tokens: int, trials: int, seed: int, haystack: Haystack) -> Iterator[Sheet]:
    make = task_named(task)
    number = asked = 0
    while asked < trials:
        sheet = make(engine, haystack, random.Random(f"{seed} {task} {tokens} {number}"), tokens)
        sheet = Sheet(sheet.document, sheet.trials[: trials - asked])
        asked += len(sheet.trials)
        number += 1
        yield sheet


def _ask(engine: FocusEngine, sheet: Sheet, cut: bool) -> list[bool]:
    document = _end_of(engine, sheet) if cut else sheet.document
    first = sheet.trials[0]
    answers = engine.generate(
        [trial.question for trial in sheet.trials],
        [document],
        chat_template=first.chat_template,
        max_new_tokens=first.new_tokens,
        method="plain" if cut else None,
    )
    return [trial.is_right(answer.text) for trial, answer in zip(sheet.trials, answers, strict=True)]


def _end_of(engine: FocusEngine, sheet: Sheet) -> str:
    """As much of the end of the text as the plain model can read with a question and an answer.

    Raises:
        ConfigError: that is nothing
    """
    needed = max(engine.count_question_tokens(t.question, chat_template=t.chat_template) for t in sheet.trials)
    answer = max(trial.new_tokens for trial in sheet.trials)
    # Positions for the document: those left beside one token of it, and that one.
    left = 1 + engine.outline([1], needed, answer, method="plain").limits.positions_left - answer - _SLACK
    if left < 1:
        raise ConfigError(
            f"Question and answer take up to {needed + answer} tokens, and the window has {engine.config.window}: no "
            "control."
        )
    text: str = engine.tokenizer.decode(engine.tokenize(sheet.document)[-left:])
    return text
