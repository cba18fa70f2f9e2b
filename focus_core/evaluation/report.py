"""What a run says: means with intervals, differences between contenders, times; as a table and as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from focus_core.errors import ConfigError
from focus_core.evaluation.statistics import bootstrap, mcnemar, wilson
from focus_core.evaluation.trials import Run, Trial

RIGHT_OR_WRONG = ("right", "contains", "exact")  # scores that are 0 or 1

Group = tuple[str, int | None]  # task, and about how long its documents are


@dataclass(frozen=True)
class Comparison:
    """A contender against another one, on the questions that both could answer.

    Attributes:
        difference: mean of the score minus the other's
        low: lower end of its 95 % interval, from a paired bootstrap
        p: of McNemar's exact test, where the score says right or wrong
    """

    against: str
    questions: int
    difference: float
    low: float
    high: float
    p: float | None


@dataclass(frozen=True)
class Row:
    """One contender in one task.

    Attributes:
        questions: how many it was asked
        impossible: of these, those that it could not answer; they count in no score
        scores: means
        low: lower end of the 95 % interval of the first score: Wilson's for right and wrong, otherwise a bootstrap
        loss: mean loss of the first references, nats a token; `None` if it was not asked for
        gold_read: mean share of the gold passages that was read; `None` where it is not known of any question
        tokens_read: median of the documents' tokens from which answers were made
        chunks: median number of chunks
        first_token_seconds: median, of first questions about documents
        later_first_token_seconds: median, of later questions about the same documents
        seconds: median, of whole answers
        comparison: against the contender that the others are compared with; `None` for itself
    """

    task: str
    tokens: int | None
    contender: str
    questions: int
    impossible: int
    scores: dict[str, float]
    low: float | None
    high: float | None
    loss: float | None
    gold_read: float | None
    tokens_read: float | None
    chunks: float | None
    first_token_seconds: float | None
    later_first_token_seconds: float | None
    seconds: float | None
    comparison: Comparison | None


def summarise(run: Run, against: str | None = None, score: str | None = None) -> list[Row]:
    """A row for each task, length and contender.

    Args:
        against: the contender that others are compared with; by default the first one of the run
        score: the one with intervals and comparisons; by default the task's first

    Raises:
        ConfigError: the run has no such contender, or a task of it no such score
    """
    contenders = run.contenders
    if against is not None:
        checked_against(against, contenders)
    rows = []
    for group in dict.fromkeys(_group(trial) for trial in run.trials):
        trials = [trial for trial in run.trials if _group(trial) == group]
        by_contender = {name: [trial for trial in trials if trial.contender == name] for name in contenders}
        base = by_contender[against or contenders[0]]
        rows += [_row(group, name, mine, base, score) for name, mine in by_contender.items() if mine]
    return rows


def checked_against(name: str, contenders: Sequence[str]) -> str:
    """`name`, if it is a contender of the run.

    Raises:
        ConfigError: naming those there are
    """
    if name not in contenders:
        raise ConfigError(f"against={name!r}: the run has {', '.join(dict.fromkeys(contenders)) or 'no answers'}.")
    return name


def as_json(run: Run, rows: Sequence[Row]) -> dict[str, Any]:
    """Conditions, summary and all trials."""
    return {
        "conditions": dict(run.conditions),
        "summary": [asdict(row) for row in rows],
        "trials": [asdict(trial) for trial in run.trials],
    }


def table(rows: Sequence[Row], *, title: str | None = None) -> Table:
    """A table of one task."""
    scores = list(dict.fromkeys(score for row in rows for score in row.scores))
    losses = any(row.loss is not None for row in rows)
    compared = next((row.comparison.against for row in rows if row.comparison is not None), None)
    drawn = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    drawn.add_column("contender", no_wrap=True)
    heads = [f"{score} [95 %]" if number == 0 else score for number, score in enumerate(scores)]
    heads = [
        "questions",
        *heads,
        *(["loss"] if losses else []),
        "gold read",
        "tokens read",
        "first text s",
        "later s",
        "answer s",
    ]
    if any(row.tokens is not None for row in rows):
        heads.insert(0, "length")
    if compared is not None:
        heads.append(f"vs {compared} [95 %]")
    for head in heads:
        drawn.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        drawn.add_row(row.contender, *_cells(row, scores, len(heads), losses=losses))
    return drawn


def _cells(row: Row, scores: Sequence[str], columns: int, *, losses: bool) -> list[str]:
    answered = row.questions - row.impossible
    cells = [] if row.tokens is None else [f"{row.tokens:,}"]
    cells.append(f"{row.questions}" if not row.impossible else f"{answered} of {row.questions}")
    for number, score in enumerate(scores):
        mean = _percent(row.scores.get(score))
        cells.append(f"{mean} [{_percent(row.low)}, {_percent(row.high)}]" if number == 0 and row.scores else mean)
    cells += [_number(row.loss, 2)] if losses else []
    cells += [_percent(row.gold_read), _number(row.tokens_read, 0)]
    cells += [_number(one, 2) for one in (row.first_token_seconds, row.later_first_token_seconds, row.seconds)]
    found = row.comparison
    if found is not None:
        p = "" if found.p is None else f" p={found.p:.2g}"
        cells.append(f"{found.difference * 100:+.1f} [{found.low * 100:+.1f}, {found.high * 100:+.1f}]{p}")
    return [*cells, *[""] * (columns - len(cells))]


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share * 100:.1f}"


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def _group(trial: Trial) -> Group:
    return trial.task, trial.tokens


def _row(group: Group, contender: str, trials: Sequence[Trial], base: Sequence[Trial], score: str | None) -> Row:
    answered = [trial for trial in trials if trial.scores is not None]
    values = _values(answered, score)
    main = next(iter(values), None)
    low, high = (None, None) if main is None else _interval(main, values[main])
    compared = bool(main) and bool(base) and base[0].contender != contender
    return Row(
        task=group[0],
        tokens=group[1],
        contender=contender,
        questions=len(trials),
        impossible=len(trials) - len(answered),
        scores={name: statistics.fmean(found) for name, found in values.items()},
        low=low,
        high=high,
        loss=_known(statistics.fmean, (trial.loss for trial in answered)),
        gold_read=_known(statistics.fmean, (trial.gold_read for trial in answered)),
        tokens_read=_known(statistics.median, (trial.tokens_read for trial in answered)),
        chunks=_known(statistics.median, ((trial.usage or {}).get("chunks") for trial in answered)),
        first_token_seconds=_known(
            statistics.median, (trial.first_token_seconds for trial in answered if not trial.asked_before)
        ),
        later_first_token_seconds=_known(
            statistics.median, (trial.first_token_seconds for trial in answered if trial.asked_before)
        ),
        seconds=_known(statistics.median, (trial.seconds for trial in answered)),
        comparison=_compared(main, answered, base) if main is not None and compared else None,
    )


def _values(trials: Sequence[Trial], score: str | None) -> dict[str, list[float]]:
    """Of each score the values, the main one first.

    Raises:
        ConfigError: the trials have no such score
    """
    scored = [trial.scores for trial in trials if trial.scores is not None]
    names = list(dict.fromkeys(name for one in scored for name in one))
    if score is not None and names and score not in names:
        raise ConfigError(f"score={score!r}: this task has {', '.join(names)}.")
    names.sort(key=lambda name: name != score)
    return {name: [one[name] for one in scored] for name in names}


def _interval(score: str, values: Sequence[float]) -> tuple[float, float]:
    return wilson(sum(values), len(values)) if score in RIGHT_OR_WRONG else bootstrap(values)


def _compared(score: str, mine: Iterable[Trial], base: Iterable[Trial]) -> Comparison | None:
    """`None` if there is no question that both could answer."""
    theirs = {trial.question: (trial.contender, trial.scores[score]) for trial in base if trial.scores is not None}
    pairs = [
        (trial.scores[score], theirs[trial.question][1])
        for trial in mine
        if trial.scores is not None and trial.question in theirs
    ]
    if not pairs:
        return None
    differences = [one - other for one, other in pairs]
    low, high = bootstrap(differences)
    p = None
    if score in RIGHT_OR_WRONG:
        p = mcnemar(sum(one > other for one, other in pairs), sum(one < other for one, other in pairs))
    against = next(iter(theirs.values()))[0]
    return Comparison(against, len(pairs), statistics.fmean(differences), low, high, p)


def _known(middle: Callable[[list[float]], float], values: Iterable[float | None]) -> float | None:
    """The middle of the values that are known; `None` if none is."""
    known = [value for value in values if value is not None]
    return middle(known) if known else None
