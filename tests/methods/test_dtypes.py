"""Batches with padding, in every dtype: no question is disturbed by one of another length, and no logit is NaN."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from focus_core.methods.base import Decoding
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding, shared_beginning
from tests.cases import CASE, focus_model, forced, prefilled
from tests.model_zoo import FAMILIES, build, random_projections, random_tokens

# Of the logits. Where padding is seen, they are off by 1.9 or more in every family.
TOLERANCE = {torch.float64: 5e-6, torch.float32: 2e-5, torch.float16: 0.02, torch.bfloat16: 0.15}
QUESTIONS = [random_tokens(length, seed=length) for length in (30, 11)]
ANSWERS = [random_tokens(2, seed=seed) for seed in (1, 2)]


def _batch_and_alone(decoding: Callable[[list[list[int]]], Decoding]) -> tuple[Tensor, Tensor]:
    """Logits `[steps, questions, vocab]` of both questions together, and of each alone."""
    together = forced(decoding(QUESTIONS), list(zip(*ANSWERS, strict=True)))
    alone = [forced(decoding([q]), [[t] for t in a])[:, 0] for q, a in zip(QUESTIONS, ANSWERS, strict=True)]
    return together, torch.stack(alone, dim=1)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_padding_changes_nothing_in_any_dtype(family: str, dtype: torch.dtype) -> None:
    """Gemma 2 in float64 gave NaN: of its rows of padding, and then of everything."""
    model = build(family)
    focus = focus_model(model.to(dtype), random_projections(model).to(dtype))
    chunks = prefilled(focus, CASE)
    together, alone = _batch_and_alone(lambda rows: PlainDecoding(focus, rows))
    torch.testing.assert_close(together, alone, atol=TOLERANCE[dtype], rtol=0.0)
    together, alone = _batch_and_alone(lambda rows: FocusDecoding(focus, chunks, rows, [row[-9:] for row in rows]))
    torch.testing.assert_close(together, alone, atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_rows_begin_with_is_read_once_and_changes_nothing(family: str, dtype: torch.dtype) -> None:
    """Rows of other lengths have less of it in the cache, so that their ends go through the model together."""
    focus = FocusModel(build(family).to(dtype))
    document = random_tokens(70, seed=7)
    ends = [random_tokens(length, seed=length) for length in (12, 5, 1, 9, 3, 8, 10)]
    rows = [[*document, *end] for end in ends]
    assert shared_beginning(rows) == len(document)
    together, alone = PlainDecoding(focus, rows), [PlainDecoding(focus, [row]) for row in rows]
    wanted = torch.cat([one.start() for one in alone])
    torch.testing.assert_close(together.start(), wanted, atol=TOLERANCE[dtype], rtol=0.0)
    together.keep([2, 5])
    later = together.step(torch.tensor([3, 4]))
    wanted = torch.cat([alone[2].step(torch.tensor([3])), alone[5].step(torch.tensor([4]))])
    torch.testing.assert_close(later, wanted, atol=TOLERANCE[dtype], rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_questions_that_join_a_batch_are_not_disturbed(dtype: torch.dtype) -> None:
    """The mask of float64 is ours, and a batch that was joined has padding of both kinds."""
    focus = FocusModel(build("gemma2").to(dtype))
    first, second = (PlainDecoding(focus, [question]) for question in QUESTIONS)
    first.start(), second.start()
    second.step(torch.tensor([ANSWERS[1][0]]))
    first.join(second)
    joined = first.step(torch.tensor([ANSWERS[0][0], ANSWERS[1][1]]))
    rows = [[*QUESTIONS[0], ANSWERS[0][0]], [*QUESTIONS[1], *ANSWERS[1]]]
    alone = torch.cat([PlainDecoding(focus, [row]).start() for row in rows])
    torch.testing.assert_close(joined, alone, atol=TOLERANCE[dtype], rtol=0.0)
