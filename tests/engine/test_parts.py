"""Sentences of a chunk: which are asked about, and how often the chunk is read for that."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from focus_core.engine.attribution import _asked_parts
from focus_core.engine.ledger import Ledger
from focus_core.methods.evidence import NOTHING, Cost, LeftOut, Passage

SENTENCES, TOKENS = 64, 14
UNITS = [Passage(0, 10 * number, 10 * number + 10) for number in range(SENTENCES)]
WHOLE = Passage(0, 0, 10 * SENTENCES)
Left = frozenset[int]  # sentences that are still there
Answer = Callable[[Left], dict[int, float]]  # what its tokens lose; those that are not named lose nothing


class MadeUp:
    """Evidence of an answer whose losses are made up; the chunk is one of many. Counts how often most of it is read."""

    attended = None

    def __init__(self, answer: Answer) -> None:
        self._answer, self.read = answer, 0

    def begin(self) -> None: ...

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        return Cost(1, 1)

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        found = torch.zeros(len(left_out), TOKENS)
        for row, one in enumerate(left_out):
            left = frozenset() if WHOLE in one else frozenset(range(SENTENCES)) - {UNITS.index(unit) for unit in one}
            self.read += 2 <= len(left) < SENTENCES
            for token, loss in self._answer(left).items():
                found[row, token] = -loss
        return found if tokens is None else found[:, list(tokens)]


def _asked(answer: Answer) -> tuple[list[int], int]:
    evidence = MadeUp(answer)
    return _asked_parts(UNITS, NOTHING, WHOLE, Ledger(evidence, lambda passes: passes())), evidence.read


@pytest.mark.parametrize("place", [0, 31, 32, 63])
def test_a_sentence_that_restores_the_answer_needs_no_reading_of_the_chunk(place: int) -> None:
    assert _asked(lambda left: {} if place in left else {8: 6.0, 9: 3.0}) == ([place], 0)


@pytest.mark.parametrize("places", [(3, 4), (0, 63), (31, 32), (5, 20, 50)])
def test_sentences_that_say_something_only_together_are_found_by_halves(places: tuple[int, ...]) -> None:
    found, read = _asked(lambda left: {} if set(places) <= left else {8: 6.0})
    assert found == list(places)
    assert read <= 2 * 6 * len(places)  # not once for each of the sentences


def test_a_chunk_of_which_any_half_would_do_is_read_twice() -> None:
    assert _asked(lambda left: {} if len(left) > 20 else {8: 6.0}) == ([], 2)
