"""Scores against values computed by hand."""

from __future__ import annotations

import pytest

from focus_core.evaluation import scores


@pytest.mark.parametrize(
    ("answer", "reference", "f1", "rouge_l"),
    [
        ("the cat sat", "A cat sat.", 1.0, 2 / 3),  # SQuAD drops articles, ROUGE does not
        ("a well-to-do farmer", "the farmer", 2 / 3, 2 / 7),  # "welltodo farmer"; "a well to do farmer"
        ("red blue green", "green blue red", 1.0, 1 / 3),  # order counts for ROUGE-L only
        ("one two three four", "two four", 2 * 2 / 6, 2 * 2 / 6),
        ("blue blue", "blue", 2 / 3, 2 / 3),  # a word counts as often as it stands there
        ("", "blue", 0.0, 0.0),
        ("the", "a", 1.0, 0.0),  # nothing is left of both
    ],
)
def test_f1_and_rouge_l(answer: str, reference: str, f1: float, rouge_l: float) -> None:
    assert scores.f1(answer, reference) == pytest.approx(f1)
    assert scores.rouge_l(answer, reference) == pytest.approx(rouge_l)


def test_the_best_reference_counts() -> None:
    assert scores.best(scores.f1, "in Lisbon", ["Lisbon", "in Lisbon", "Porto"]) == 1.0


@pytest.mark.parametrize(
    ("answer", "exact", "contains"),
    [
        ("48213", 1.0, 1.0),
        ("The 48213.", 1.0, 1.0),
        ("It is 48213, I think", 0.0, 1.0),
        ("148213", 0.0, 0.0),
        ("4821 3", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_exact_and_contained(answer: str, exact: float, contains: float) -> None:
    """A longer number that holds the digits is another number."""
    assert scores.exact(answer, "48213") == exact
    assert scores.contains(answer, "48213") == contains
