"""Which passages support an answer, from losses that are made up."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from focus_core.engine.ledger import decisive
from focus_core.engine.support import EachPassage, Support, find_support, restoring_a_token
from focus_core.methods.evidence import NOTHING, LeftOut, Passage

UNITS = [Passage(chunk, 0, 10) for chunk in range(5)]
Left = set[int]  # chunks that are still there


def _support(loss: Callable[[Left], float | list[float]]) -> tuple[Support, list[LeftOut]]:
    """Of an answer of one token, or of several."""
    asked = list[LeftOut]()

    def losses(left_out: Sequence[LeftOut]) -> list[Tensor]:
        asked.extend(left_out)
        return [torch.tensor(loss({unit.chunk for unit in set(UNITS) - one})).reshape(-1) for one in left_out]

    return find_support(UNITS, NOTHING, EachPassage(UNITS, NOTHING, losses), losses), asked


def _found(support: Support) -> dict[int, tuple[float, str]]:
    return {member.unit: (pytest.approx(member.score), member.role) for member in support.members}


def test_one_passage_is_the_sole_support() -> None:
    support, _ = _support(lambda left: 0.0 if 3 in left else 9.0)
    assert _found(support) == {3: (9.0, "sole")}
    assert support.loss == 9.0


def test_two_that_say_the_same_hide_each_other() -> None:
    support, _ = _support(lambda left: 0.0 if left & {1, 4} else 9.0)
    assert _found(support) == {1: (9.0, "redundant"), 4: (9.0, "redundant")}
    assert support.loss == 9.0


def test_three_that_say_the_same() -> None:
    support, _ = _support(lambda left: 0.0 if left & {0, 1, 4} else 6.0)
    assert {unit for unit, (_, role) in _found(support).items() if role == "redundant"} == {0, 1, 4}


def test_two_that_are_both_needed() -> None:
    support, asked = _support(lambda left: 4.0 * (1 not in left) + 5.0 * (4 not in left))
    assert _found(support) == {4: (5.0, "needed"), 1: (4.0, "needed")}
    assert [member.unit for member in support.members] == [4, 1]
    assert support.loss == 9.0
    assert len([one for one in asked if len(one) == 4]) == 0  # they explain all: no passage is asked about alone


def test_an_answer_from_no_passage_loses_little() -> None:
    """Any of them lets the model go on as it would."""
    support, _ = _support(lambda left: 0.3 * (2 not in left) + (0.0 if left else 4.0))
    assert _found(support) == {2: (0.3, "sole")}
    assert support.loss == pytest.approx(0.3)
    support, _ = _support(lambda left: 0.3 * (2 not in left))
    assert _found(support) == {2: (0.3, "sole")}
    assert support.loss == pytest.approx(0.3)


def test_a_passage_that_makes_the_other_statement_less_likely_is_needed_for_its_own() -> None:
    """Of two facts in one answer: in the sum over both statements its loss would be none."""

    def losses(left: Left) -> list[float]:
        return [5.0 * (1 not in left) + 0.1 * (3 not in left), 6.0 * (4 not in left) - 7.0 * (1 not in left)]

    support, _ = _support(losses)
    assert _found(support) == {4: (6.0, "needed"), 1: (5.0, "needed")}


def test_what_a_passage_gives_to_tokens_that_lost_nothing_restores_nothing() -> None:
    """Alone, passage 0 makes a token surer than all passages together do: that replaces none of the two others."""

    def losses(left: Left) -> list[float]:
        return [0.0 if left & {1, 4} else 9.0, -9.0 * (left == {0})]

    support, _ = _support(losses)
    assert _found(support) == {1: (9.0, "redundant"), 4: (9.0, "redundant")}


def test_a_passage_that_takes_over_together_with_others_is_redundant_too() -> None:
    """Passage 1 does by itself; passage 4 says the same less clearly, and needs the rest of the text beside it."""

    def loss(left: Left) -> float:
        return 0.0 if 1 in left or (4 in left and len(left) > 2) else 4.0 if 4 in left else 9.0

    support, _ = _support(loss)
    assert _found(support) == {1: (9.0, "redundant"), 4: (9.0, "redundant")}
    assert support.loss == 9.0


def test_each_of_two_statements_restores_its_own_tokens() -> None:
    """The second one is a fifth of all that is lost, and all that its token loses. Any passage restores the third."""

    def losses(left_out: Sequence[LeftOut]) -> list[Tensor]:
        found = list[Tensor]()
        for one in left_out:
            left = {unit.chunk for unit in set(UNITS) - one}
            found.append(
                torch.tensor([8.0 * (1 not in left), 2.0 * (4 not in left), 3.0 * (not left), 0.5 * (0 not in left)])
            )
        return found

    (without_all,) = losses([frozenset(UNITS)])
    assert restoring_a_token(UNITS, NOTHING, without_all, without_all, losses) == [1, 4]


def test_small_losses_of_many_tokens_do_not_add_up_to_a_source() -> None:
    """What rounding takes from the tokens of a long answer."""
    support, _ = _support(lambda left: [0.05 * (2 not in left)] * 300)
    assert support.loss == 0


# --- tokens that decide -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("losses", "tokens"),
    [
        ([0.0, 5.0, 0.1, 5.0, -0.2], (1, 3)),
        ([9.5, 0.2, 0.1, 0.2], (0,)),
        ([1.0, 1.0, 1.0, 1.0], (0, 1, 2, 3)),
        ([-3.0, 2.0, -1.0], (1,)),
        ([0.0, 0.0], (0,)),
        ([-1.0], (0,)),
    ],
)
def test_as_few_tokens_as_hold_nearly_all_of_the_loss(losses: list[float], tokens: tuple[int, ...]) -> None:
    assert decisive(torch.tensor(losses)) == tokens
