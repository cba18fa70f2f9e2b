"""The run: every contender answers every question, one after the other, with the clock beside it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean

from focus_core.engine.answers import Answer, AnswersFromEvents, Finished
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

    All contenders answer a question (or those of `plan.at_once`) before the next, and questions about the same
    documents follow each other, so that their chunks are prefilled once. What slows the machine down for a while slows
    all contenders.

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
    questions = [replace(one, new_tokens=plan.max_new_tokens or one.new_tokens) for one in sheet.questions]
    for together in _groups(questions, plan.at_once):
        for contender in contenders:
            name, missing = contender.name, []
            for question in together:
                prompt = plan.prompt(task, question)
                blank = Trial(task.name, tokens, question.name, name, asked[name], prompt, question.answers)
                if blank.key in run:
                    yield None
                else:
                    missing.append(_Asked(blank, question))
                    asked[name] += 1
            found = _answered(missing, engine, task, contender, sheet)
            yield from _with_losses(list(found), engine) if plan.loss else (trial for trial, _ in found)


def _groups(questions: Sequence[Question], size: int) -> Iterator[list[Question]]:
    """Questions that one call can ask: in order, at most `size`, with the same options."""
    for _, alike in groupby(questions, key=lambda question: (question.new_tokens, question.chat_template)):
        listed = list(alike)
        yield from (listed[start : start + size] for start in range(0, len(listed), size))


Answered = tuple[Trial, Answer | None]  # none, where there could be no answer


@dataclass(frozen=True)
class _Asked:
    """A question, and its trial as far as it is known."""

    trial: Trial
    question: Question


def _answered(
    asked: Sequence[_Asked], engine: FocusEngine, task: Task, contender: Contender, sheet: Sheet
) -> Iterator[Answered]:
    """The trials of questions that are asked together, as their answers end, and the answers."""
    started = time.perf_counter()
    possible: list[tuple[_Asked, Handed]] = []
    for one in asked:
        try:
            possible.append((one, contender.hand(sheet, one.question, one.trial.prompt)))
        except ContextOverflowError as error:
            yield replace(one.trial, impossible=str(error)), None
    try:
        yield from _asked_together(possible, engine, task, started)
    except ContextOverflowError as error:  # found before any work
        if len(possible) == 1:
            yield replace(possible[0][0].trial, impossible=str(error)), None
        else:
            for one, _ in possible:
                yield from _answered([one], engine, task, contender, sheet)


def _asked_together(
    handed: Sequence[tuple[_Asked, Handed]], engine: FocusEngine, task: Task, started: float
) -> Iterator[Answered]:
    if not handed:
        return
    of_each = [of_one.documents for _, of_one in handed]
    alike = all(documents == of_each[0] for documents in of_each)  # is tokenized once
    question = handed[0][0].question
    collected, first_text = AnswersFromEvents(len(handed)), dict[int, float]()
    events = engine.stream_batch(
        [one.trial.prompt for one, _ in handed],
        of_each[0] if alike else of_each,
        method=handed[0][1].method,
        chat_template=question.chat_template,
        max_new_tokens=question.new_tokens,
    )
    with closing(events):  # type: ignore[type-var]
        for index, event in events:
            collected.add(index, event)
            now = time.perf_counter() - started
            first_text.setdefault(index, now)
            if isinstance(event, Finished):
                one, of_one = handed[index]
                answer = collected.answer(index)
                yield _trial(one, of_one, task, answer, first_text[index], now), answer


def _with_losses(answered: Sequence[Answered], engine: FocusEngine) -> Iterator[Trial]:
    """The trials with the loss of their first references, computed when all seconds have been taken."""
    for trial, answer in answered:
        if answer is None or not answer.tokens:
            yield trial
            continue
        begins_with_space = engine.tokenizer.decode(list(answer.tokens)).startswith(" ")
        log_probs = engine.log_probs(answer, " " * begins_with_space + trial.references[0])
        yield replace(trial, loss=round(-fmean(log_probs), 4))


def _trial(one: _Asked, handed: Handed, task: Task, answer: Answer, first: float, end: float) -> Trial:
    return replace(
        one.trial,
        answer=answer.text,
        method=answer.method,
        scores=task.score(one.question, answer.text),
        tokens_read=handed.tokens_read(answer),
        gold_read=handed.gold_read(one.question, answer),
        first_token_seconds=round(first, 4),
        seconds=round(end, 4),
        usage=asdict(answer.usage),
    )
