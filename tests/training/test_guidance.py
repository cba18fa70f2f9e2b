"""Attention to the chunks that hold the answer, in the loss: against the attention that transformers returns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from focus_core.methods.focus import FocusModel
from focus_core.training.examples import TrainingExample
from focus_core.training.loss import FocusLoss
from tests.training.cases import example_for, focus_model, gradients
from tests.training.test_loss import assert_equal_gradients, plain_losses, plain_outputs

GOLD: list[tuple[int, ...]] = [(1,), (0, 2), ()]  # of three questions; nobody knows where the last answer stands


def guided(model: FocusModel, gold: list[tuple[int, ...]] = GOLD) -> TrainingExample:
    example = example_for(model, targets=(0, 2))
    return replace(
        example,
        questions=[replace(one, teachers=chunks) for one, chunks in zip(example.questions, gold, strict=True)],
    )


def slow_loss(model: FocusModel, example: TrainingExample, weight: float) -> Tensor:
    """One target at a time, with the attention of every head of the last two of three layers."""
    slots, found = len(example.chunks), []
    gold_of = [question.teachers for question in example.questions for _ in question.targets]
    model.model.set_attn_implementation("eager")
    for gold, output in zip(gold_of, plain_outputs(model, example, output_attentions=True), strict=True):
        of_layers = [layer[0, :, -1, :slots].mean(0) for layer in output.attentions[1:]]
        attention = torch.stack(of_layers).mean(0)
        share = sum((attention[chunk] for chunk in gold), start=torch.tensor(0.0)) / attention.sum()
        found.append(-weight * share.log() if gold else torch.tensor(0.0))
    model.model.set_attn_implementation("sdpa")
    return (plain_losses(model, example) + torch.stack(found)).mean()


@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_loss_and_gradients_are_those_of_the_formula(family: str) -> None:
    model = focus_model(family)
    example = guided(model)
    loss, wanted = FocusLoss(model, guidance=0.7)(example), slow_loss(model, example, 0.7)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    assert_equal_gradients(gradients(model, loss), gradients(model, wanted))


def test_groups_of_rows_and_activations_that_are_computed_again_change_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = focus_model()
    example = guided(model)
    wanted = gradients(model, FocusLoss(model, guidance=0.7)(example))
    monkeypatch.setattr("focus_core.training.loss.tokens_per_pass", lambda *_, **__: 1)
    assert_equal_gradients(gradients(model, FocusLoss(model, guidance=0.7, recompute=True)(example)), wanted)


@pytest.mark.parametrize("gold", [(), (0, 1, 2, 3, 4)])
def test_where_no_chunk_is_better_than_another_nothing_is_added(gold: tuple[int, ...]) -> None:
    model = focus_model()
    example = guided(model, [gold] * 3)
    assert len(example.chunks) == 5
    torch.testing.assert_close(FocusLoss(model, guidance=5.0)(example), FocusLoss(model)(example))


def test_validation_is_without_it() -> None:
    model = focus_model()
    example = guided(model)
    torch.testing.assert_close(
        FocusLoss(model, guidance=5.0).target_losses(example), FocusLoss(model).target_losses(example)
    )


def test_it_teaches_where_to_look() -> None:
    """A few steps along the gradient of guidance alone give the gold slot more of the attention."""
    model = focus_model()
    example = guided(model, [(1,)] * 3)

    def distance() -> Tensor:
        return FocusLoss(model, guidance=1.0)(example) - FocusLoss(model)(example)

    before = distance().item()
    optimizer = torch.optim.SGD(model.projections.parameters(), lr=0.05)
    for _ in range(5):
        optimizer.zero_grad()
        distance().backward()
        optimizer.step()
    assert distance().item() < 0.9 * before
