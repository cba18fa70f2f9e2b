"""What the benchmark of sources counts: right sources as right, and wrong ones as wrong."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import Any

import pytest

from benchmarks.sources import CONDITIONS, Item, Outcome, outcome, summary
from focus_core.engine.sources import ChunkLoss, Explanation, Role, Source

TEXT = "x" * 40 + "The key is 7. " + "y" * 40 + "It is 7." + "z" * 40
SPANS = ((40, 53), (94, 102))
ITEM = Item(TEXT, "Which key?", ("7",), SPANS[:1])


def _source(start: int, end: int, role: Role = "sole", score: float = 9.0) -> Source:
    return Source(0, None, start, end, TEXT[start:end], score, role, start // 71)


def _found(*sources: Source, losses: tuple[float, float] = (9.0, 0.0)) -> Explanation:
    chunks = (ChunkLoss((0,), 0, 71, losses[0], ()), ChunkLoss((0,), 71, 142, losses[1], ()))
    return Explanation(sources=sources, supported=True, support=9.0, chunks=chunks)


def test_the_right_sentence_is_right() -> None:
    counted = outcome("one", ITEM, "The key is 7.", _found(_source(*SPANS[0])))
    assert [counted[name] for name in ("right", "chunk", "sentence", "all", "named")] == [True] * 5


def test_a_scorer_with_its_chunks_shuffled_fails() -> None:
    counted = outcome("one", ITEM, "The key is 7.", _found(_source(*SPANS[1]), losses=(0.0, 9.0)))
    assert [counted[name] for name in ("right", "chunk", "sentence", "all")] == [True, False, False, False]


@pytest.mark.parametrize(("role", "named"), [("redundant", True), ("sole", False)])
def test_two_that_say_the_same_are_to_be_called_redundant(role: Role, named: bool) -> None:
    item = replace(ITEM, gold=SPANS)
    counted = outcome("same", item, "It is 7.", _found(*(_source(*span, role) for span in SPANS)))
    assert (counted["all"], counted["named"]) == (True, named)


def test_a_wrong_answer_has_no_right_source() -> None:
    counted = outcome("one", ITEM, "The key is 71.", _found(_source(*SPANS[0])))
    assert [counted[name] for name in ("right", "chunk", "sentence")] == [False] * 3


def test_rates_are_of_right_answers() -> None:
    costs: dict[str, Any] = {"seconds": 1.0, "answer_seconds": 1.0, "tokens": 10, "answer_tokens": 2}
    right = Outcome(True, True, True, True, True, True, 9.0, **costs)
    wrong = replace(right, right=False, chunk=False, sentence=False, supported=False)
    assert summary("one", [right, wrong])["rates"]["sentence"] == 1.0
    assert summary("none", [right, wrong])["rates"] == {"supported": 0.5}


@pytest.mark.parametrize("condition", CONDITIONS)
def test_an_item_holds_what_it_says(condition: str) -> None:
    item = CONDITIONS[condition](random.Random(1), ["Nothing happened."] * 50)
    assert len(item.gold) == {"one": 1, "both": 2, "same": 2, "contradict": 2}.get(condition, 0)
    for answer in item.answers:
        assert any(answer in item.text[slice(*span)] for span in item.gold)
