"""A teacher in the loss, against plain rows through transformers and the formula in Python."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from focus_core import ConfigError
from focus_core.methods.focus import FocusModel
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.loss import FocusLoss
from focus_core.training.trainer import train
from tests.training.cases import config_for, example_for, examples, focus_model, gradients, ids, numbered, text
from tests.training.test_loss import assert_equal_gradients, plain_logits, plain_losses


def taught(model: FocusModel, teachers: tuple[int, ...] = ()) -> TrainingExample:
    """Questions whose plain row differs from their dynamic prompt, as after a cut."""
    example = example_for(model, targets=(0, 2))
    questions = [
        replace(question, plain_prompt=[7, *question.local_context], teachers=teachers)
        for question in example.questions
    ]
    return replace(example, questions=questions)


@torch.no_grad()
def slow_teacher(model: FocusModel, example: TrainingExample, question: SupervisedQuestion) -> Tensor:
    """Logits `[answer, vocab]` of the plain row after whose chunk question and answer are likeliest."""
    best, found = float("-inf"), torch.empty(0)
    for number in question.teachers or range(len(example.chunks)):
        chunk, asked = example.chunks[number], [*question.plain_prompt, *question.answer]
        logits = model.model(torch.tensor([[*chunk, *asked]])).logits[0, len(chunk) : -1]
        likelihood = sum(float(one.log_softmax(-1)[token]) for one, token in zip(logits, asked[1:], strict=True))
        if likelihood > best:
            best, found = likelihood, logits[-len(question.answer) :]
    return found


def slow_loss(model: FocusModel, example: TrainingExample, share: float, temperature: float) -> Tensor:
    student, hard = plain_logits(model, example), plain_losses(model, example)
    teacher = torch.cat([slow_teacher(model, example, q)[list(q.targets)] for q in example.questions])
    divergences = []
    for mine, theirs in zip(student, teacher, strict=True):
        p, q = (theirs / temperature).softmax(-1), (mine / temperature).softmax(-1)
        divergences.append((p * (p.log() - q.log())).sum())
    return ((1 - share) * hard + share * temperature**2 * torch.stack(divergences)).mean()


@pytest.mark.parametrize("teachers", [(), (1,), (0, 2)])
@pytest.mark.parametrize(("share", "temperature"), [(1.0, 1.0), (0.3, 2.0)])
def test_loss_and_gradients_are_those_of_the_formula(
    teachers: tuple[int, ...], share: float, temperature: float
) -> None:
    model = focus_model()
    example = taught(model, teachers)
    loss = FocusLoss(model, distillation=share, temperature=temperature)(example)
    wanted = slow_loss(model, example, share, temperature)
    torch.testing.assert_close(loss, wanted, rtol=1e-4, atol=1e-5)
    assert_equal_gradients(gradients(model, loss), gradients(model, wanted))


def test_the_likeliest_row_teaches() -> None:
    model = focus_model()
    free, fixed = taught(model), [taught(model, (number,)) for number in range(len(taught(model).chunks))]
    module = FocusLoss(model, distillation=1.0)
    assert len({round(module(one).item(), 5) for one in fixed}) == len(fixed)
    best = replace(
        free,
        questions=[
            max((one.questions[number] for one in fixed), key=lambda q: _likelihood(model, free, q))
            for number in range(len(free.questions))
        ],
    )
    torch.testing.assert_close(module(free), module(best))


@torch.no_grad()
def _likelihood(model: FocusModel, example: TrainingExample, question: SupervisedQuestion) -> float:
    """Of question and answer after the one chunk that teaches."""
    (number,) = question.teachers
    chunk, asked = example.chunks[number], [*question.plain_prompt, *question.answer]
    logits = model.model(torch.tensor([[*chunk, *asked]])).logits[0, len(chunk) : -1].log_softmax(-1)
    return float(logits[range(len(asked) - 1), asked[1:]].sum())


def test_without_a_share_there_is_no_teacher() -> None:
    model = focus_model()
    example = taught(model, (1,))
    assert FocusLoss(model, distillation=0.0)(example).item() == FocusLoss(model)(example).item()
    losses = FocusLoss(model, distillation=1.0).target_losses(example)  # of validation: the answer alone
    torch.testing.assert_close(losses, FocusLoss(model).target_losses(example))


def test_the_teachers_are_the_chunks_of_the_gold_documents(tmp_path: Path) -> None:
    record = {"documents": [text(10), text(20), text(3)], "question": "w1", "answer": "w2", "gold": [1]}
    example = examples(tmp_path, record, chunk_sizes=(8,), max_chunks=6)(0)
    (question,) = example.questions
    assert [len(chunk) - 1 for chunk in example.chunks] == [8, 2, 8, 8, 4, 3]
    assert question.teachers == (2, 3, 4)
    assert question.plain_prompt == ids("<bos> user w1 bot")


@pytest.mark.parametrize(
    ("start", "stop", "teachers"),
    [
        (0, 2, (0,)),
        (text(12).index("w9"), text(12).index("w9") + 2, (1,)),
        (text(12).index("w7"), text(12).index("w8") + 2, (0, 1)),  # over a border
        (0, len(text(20)), (0, 1, 2)),
    ],
)
def test_the_teachers_are_the_chunks_of_a_gold_span(
    tmp_path: Path, start: int, stop: int, teachers: tuple[int, ...]
) -> None:
    """Of a long document, the chunks in which the marked characters stand; the same words elsewhere are not marked."""
    asked = {"question": "w1", "answer": "w2", "gold": [{"document": 1, "start": start, "stop": stop}]}
    example = examples(tmp_path, {"documents": [text(10), text(20)], **asked}, chunk_sizes=(8,), max_chunks=6)(0)
    assert example.questions[0].teachers == tuple(2 + number for number in teachers)


def test_a_run_learns_from_a_teacher(tmp_path: Path) -> None:
    settings = {"steps": 8, "distillation": 0.5, "temperature": 2.0}
    model = focus_model()
    train(config_for(tmp_path, **settings), model=model, examples=numbered)
    with pytest.raises(ConfigError, match=r"distillation: 0\.5 there, 0\.0 now"):
        train(config_for(tmp_path, **(settings | {"distillation": 0.0})), model=focus_model(), examples=numbered)
    module = FocusLoss(model, distillation=0.5, temperature=2.0)
    fresh = FocusLoss(focus_model(), distillation=0.5, temperature=2.0)
    assert module(numbered(0)).item() < fresh(numbered(0)).item()


@pytest.mark.parametrize("setting", [{"distillation": 1.5}, {"distillation": -0.1}, {"temperature": 0.0}])
def test_impossible_settings_are_refused(tmp_path: Path, setting: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        config_for(tmp_path, **setting)
