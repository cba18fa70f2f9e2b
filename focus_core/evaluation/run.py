"""The run: every contender answers every question, one after the other, with the clock beside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

from focus_core.engine.answers import Answer, AnswersFromEvents
from focus_core.engine.engine import FocusEngine
from focus_core.errors import ContextOverflowError
from focus_core.evaluation.contenders import Contender, Handed
from focus_core.evaluation.lengths import require_readable
from focus_core.evaluation.plan import Plan
from focus_core.evaluation.tasks.base import Question, Sheet, Task
from focus_core.evaluation.trials import Run, Trial
from focus_core.progress import Report


def evaluate(engine: FocusEngine, plan: Plan, path: Path | None = None, *, report: Report | None = None) -> Run:
    """Carry a plan out.

    Args:
        path: where every answer is written at once; answers that the file holds already are not made again
        report: called with the number of answers done and in all, after every answer

    Raises:
        ConfigError: impossible sizes, or the file holds something else than a run under these conditions
    """
    run = Run.start(plan.conditions(engine), path)
    carry_out(engine, plan, run, report=report)
    return run


def carry_out(engine: FocusEngine, plan: Plan, run: Run, *, report: Report | None = None) -> None:
    """Add to `run` what it lacks, so that an exception or Ctrl-C leaves it with all that was done.

    All contenders answer a question before the next one, and questions about the same documents follow each other, so
    that their chunks are prefilled once. What slows the machine down for a while slows all contenders.

    Raises:
        ConfigError: documents that are too long to make up
        ContextOverflowError: no contender can answer at one of the lengths
        OutOfMemoryError: nor does the device hold their keys and values
    """
    contenders = plan.rivals(engine)
    for tokens in () if plan.data else plan.lengths:
        require_readable(engine, tokens, [contender.name for contender in contenders])
    done = 0
    for task, material in plan.parts(engine):
        for sheet in task.sheets(material):
            for trial in _trials(engine, plan, task, material.tokens, sheet, contenders, run):
                if trial is not None:
                    run.add(trial)
                done += 1
                if report is not None:
                    report(done, plan.trials)


def _trials(
    engine: FocusEngine,
    plan: Plan,
    task: Task,
    tokens: int | None,
    sheet: Sheet,
    contenders: Sequence[Contender],
    run: Run,
) -> Iterator[Trial | None]:
    """Those of one sheet; `None` for each that the run has already."""
    asked: Counter[str] = Counter()
    for original in sheet.questions:
        question = replace(original, new_tokens=plan.max_new_tokens or original.new_tokens)
        prompt = plan.prompt(task, question)
        for contender in contenders:
            name = contender.name
            blank = Trial(task.name, tokens, question.name, name, asked[name], prompt, question.answers)
            if blank.key in run:
                yield None
            else:
                yield _answered(blank, engine, task, contender, sheet, question)
                asked[name] += 1


def _answered(
    blank: Trial, engine: FocusEngine, task: Task, contender: Contender, sheet: Sheet, question: Question
) -> Trial:
    started = time.perf_counter()
    try:
        handed = contender.hand(sheet, question, blank.prompt)
        answer, first = _ask(engine, blank.prompt, handed, question)
    except ContextOverflowError as error:
        return replace(blank, impossible=str(error))
    ended = time.perf_counter()
    return replace(
        blank,
        answer=answer.text,
        method=answer.method,
        scores=task.score(question, answer.text),
        tokens_read=handed.tokens_read(answer),
        gold_read=handed.gold_read(question, answer),
        first_token_seconds=round(first - started, 4),
        seconds=round(ended - started, 4),
        usage=asdict(answer.usage),
    )


def _ask(engine: FocusEngine, prompt: str, handed: Handed, question: Question) -> tuple[Answer, float]:
    """The answer, and the moment of its first text."""
    collected = AnswersFromEvents(1)
    moments: list[float] = []
    events = engine.stream(
        prompt,
        handed.documents,
        method=handed.method,
        chat_template=question.chat_template,
        max_new_tokens=question.new_tokens,
    )
    with closing(events):  # type: ignore[type-var]
        for event in events:
            moments.append(time.perf_counter())
            collected.add(0, event)
    (answer,) = collected.answers()
    return answer, moments[0]
