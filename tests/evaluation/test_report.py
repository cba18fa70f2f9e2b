"""Summaries of made-up trials, by hand."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from focus_core import ConfigError
from focus_core.evaluation.picture import draw
from focus_core.evaluation.report import Row, as_json, summarise, table
from focus_core.evaluation.statistics import mcnemar, wilson
from focus_core.evaluation.trials import Run, Trial
from tests.evaluation.cases import trial

SCORES = {"auto": [1.0, 1.0, 0.0, 1.0], "plain": [None, 1.0, None, 0.0], "none": [0.0, 0.0, 0.0, 1.0]}
TRIALS = [
    trial(name, str(number), score, asked_before=number, first_token_seconds=float(number), gold_read=number / 4)
    for number in range(4)
    for name, score in ((name, scores[number]) for name, scores in SCORES.items())
]


def rows_of(trials: list[Trial], **how: str) -> dict[str, Row]:
    return {row.contender: row for row in summarise(Run({}, trials), **how)}


def test_means_intervals_and_medians() -> None:
    rows = rows_of(TRIALS)
    auto = rows["auto"]
    assert (auto.questions, auto.impossible, auto.scores["right"]) == (4, 0, 0.75)
    assert (auto.low, auto.high) == wilson(3, 4)
    assert (auto.first_token_seconds, auto.later_first_token_seconds) == (0.0, 2.0)
    assert (auto.tokens_read, auto.chunks, auto.gold_read) == (5, 3, 0.375)
    assert auto.comparison is None


def test_what_was_impossible_counts_in_no_score_and_only_common_questions_are_compared() -> None:
    """The plain model would lose, or win, by the texts that it cannot read."""
    plain = rows_of(TRIALS)["plain"]
    assert (plain.questions, plain.impossible, plain.scores["right"]) == (4, 2, 0.5)
    assert plain.comparison is not None
    assert plain.comparison.questions == 2
    assert plain.comparison.difference == -0.5
    assert plain.comparison.p == mcnemar(0, 1)


def test_the_comparison_is_paired() -> None:
    none = rows_of(TRIALS)["none"].comparison
    assert none is not None
    assert (none.against, none.questions, none.difference, none.p) == ("auto", 4, -0.5, mcnemar(0, 2))
    assert none.low == pytest.approx(-1.0)
    assert none.high == 0.0
    against_none = rows_of(TRIALS, against="none")
    assert against_none["none"].comparison is None
    assert against_none["auto"].comparison is not None
    assert against_none["auto"].comparison.difference == 0.5


def test_another_score_can_be_compared() -> None:
    none = rows_of(TRIALS, score="contains")["none"]
    assert list(none.scores) == ["contains", "right"]
    assert (none.low, none.high) == wilson(4, 4)
    with pytest.raises(ConfigError, match="score='bleu': this task has right, contains"):
        rows_of(TRIALS, score="bleu")
    with pytest.raises(ConfigError, match="against='bm25': the run has auto, plain, none"):
        rows_of(TRIALS, against="bm25")


def test_no_common_question_has_no_comparison() -> None:
    rows = rows_of([trial("auto", "0", 1.0), trial("plain", "0", None)])
    assert rows["plain"].comparison is None
    assert rows["plain"].scores == {}


def shown(rows: list[Row]) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    console.print(table(rows, title="passkey"))
    return [line.split() for line in console.file.getvalue().splitlines()]  # type: ignore[attr-defined]


def test_the_table_shows_each_contender() -> None:
    title, head, auto, plain, none = shown(summarise(Run({}, TRIALS)))
    assert title == ["passkey"]
    assert head[:4] == ["contender", "length", "questions", "right"]
    assert auto[:5] == ["auto", "1,000", "4", "75.0", "[30.1,"]
    assert plain[:6] == ["plain", "1,000", "2", "of", "4", "50.0"]
    assert none[-4:] == ["-50.0", "[-100.0,", "+0.0]", "p=0.5"]


def test_the_report_holds_everything() -> None:
    run = Run({"budget": 5}, TRIALS)
    found = as_json(run, summarise(run))
    assert found["conditions"] == {"budget": 5}
    assert [row["contender"] for row in found["summary"]] == ["auto", "plain", "none"]
    assert found["summary"][2]["comparison"]["difference"] == -0.5
    assert len(found["trials"]) == len(TRIALS)


def with_chunks(chunks: int) -> list[Row]:
    usage = {"input_tokens": 9, "output_tokens": 2, "document_tokens": 5, "cache_read": 0, "chunks": chunks}
    return summarise(Run({}, [trial("auto", "0", 1.0, usage=usage), trial("none", "0", 0.0)]))


@pytest.mark.parametrize("runs", [1, 3])
def test_pictures_are_drawn(tmp_path: Path, runs: int) -> None:
    pytest.importorskip("matplotlib")
    chunks = [4, 16, 16][:runs]  # the last two at the same place
    draw({str(number): with_chunks(size) for number, size in enumerate(chunks)}, tmp_path / "picture.svg")
    drawn = (tmp_path / "picture.svg").read_text()
    assert drawn.startswith("<?xml")
    assert ("chunks of the documents" in drawn) is (runs > 1)


def test_a_picture_of_nothing_or_of_two_tasks_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    with pytest.raises(ConfigError, match="no answers"):
        draw({"run": summarise(Run({}, [trial("plain", "0", None)]))}, tmp_path / "picture.png")
    with pytest.raises(ConfigError, match="run-b: no contender reads in chunks"):
        draw({"run-a": with_chunks(4), "run-b": with_chunks(0)[:1]}, tmp_path / "picture.png")
