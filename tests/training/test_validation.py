"""Held-out questions: their loss, the controls beside it, the best adapter, and the end of patience."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from focus_core import ConfigError, FocusModel
from focus_core.errors import FocusWarning
from focus_core.training import trainer
from focus_core.training.config import TrainingConfig
from focus_core.training.data import FileExamples
from focus_core.training.kept import KeptChunks
from focus_core.training.log import LossLog
from focus_core.training.loss import FocusLoss
from focus_core.training.trainer import train
from focus_core.training.validation import Validation
from tests.training.cases import config_for
from tests.training.test_kept import chunks_read

NAMES = ["loss", "other documents", "no documents"]


def records(folder: Path, name: str, count: int, first: int = 0) -> Path:
    """Documents of a few words, each record with its own, and two questions about them."""
    path = folder / f"{name}.jsonl"
    lines = []
    for number in range(first, first + count):
        documents = [f"the {word} {number} sat on the mat " * 3 for word in ("dog", "cat", "owl")]
        questions = [
            {"question": f"who sat {turn}", "answer": f"owl {number} or dog", "gold": [turn]} for turn in range(2)
        ]
        lines.append(json.dumps({"documents": documents, "questions": questions}))
    path.write_text("\n".join(lines))
    return path


def config(folder: Path, model: Path, **settings: Any) -> TrainingConfig:
    sizes: dict[str, Any] = {"chunk_sizes": (32,), "max_chunks": 20, "local_lengths": (6, 40), "dynamic_prompts": (8,)}
    drawn = {"max_documents": 2, "questions_per_example": 1, "targets_per_answer": 3}
    given = {**sizes, **drawn, "steps": 4, "accumulation": 1, "evaluate_every": 1, "validation_examples": 3, **settings}
    data, held_out = [records(folder, "train", 5)], [records(folder, "held_out", 4, first=5)]
    return config_for(folder / "run", model=str(model), data=data, validation=held_out, **given)


def evaluations(folder: Path) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {}
    with (folder / "evaluation.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["name"], []).append(float(row["value"]))
    return found


@pytest.fixture
def focus(model_folder: Path) -> FocusModel:
    return FocusModel.from_pretrained(model_folder, device="cpu")


def test_the_same_questions_are_asked_of_right_and_of_wrong_documents(
    tmp_path: Path, model_folder: Path, focus: FocusModel
) -> None:
    validation = Validation(config(tmp_path, model_folder), focus, str(model_folder))
    own, others, nothing = (validation.examples[name] for name in NAMES)
    assert len(own) == 3
    assert len({str(example.chunks) for example in own}) == 3
    for number, example in enumerate(own):
        assert example.questions == others[number].questions == nothing[number].questions
        assert others[number].chunks == own[(number + 1) % 3].chunks
        assert nothing[number].chunks == nothing[0].chunks
    assert len(nothing[0].chunks) == 1


@torch.no_grad()
def test_losses_are_means_over_targets(tmp_path: Path, model_folder: Path, focus: FocusModel) -> None:
    validation = Validation(config(tmp_path, model_folder), focus, str(model_folder))
    found = validation(focus)
    assert list(found) == [one for name in NAMES for one in (name, f"{name}, first token")]
    for name in NAMES:
        losses, first = [], []
        for example in validation.examples[name]:
            of_example = FocusLoss(focus).target_losses(example).tolist()
            losses += of_example
            first.append(of_example[0])  # of one question
        assert found[name] == pytest.approx(sum(losses) / len(losses))
        assert found[f"{name}, first token"] == pytest.approx(sum(first) / len(first))
    assert len({round(value, 5) for value in found.values()}) == 6


def test_validation_changes_no_training(tmp_path: Path, model_folder: Path) -> None:
    with_it = config(tmp_path, model_folder)
    without = replace(with_it, output=tmp_path / "without", validation=())
    train(with_it)
    train(without)
    assert (with_it.output / "losses.csv").read_text().count("\n") == 5
    one, other = (
        FocusModel.from_pretrained(model_folder, adapter=made.output / "adapter", device="cpu").projections.state_dict()
        for made in (with_it, without)
    )
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())
    assert {name: len(values) for name, values in evaluations(with_it.output).items()} == dict.fromkeys(
        [one for name in NAMES for one in (name, f"{name}, first token")], 4
    )
    assert not (without.output / "best").exists()


@pytest.fixture
def judged(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, torch.Tensor]]:
    """Held-out losses 3, 2, 4, 5, 1, …; the projections at each evaluation."""
    seen: list[dict[str, torch.Tensor]] = []
    values: Iterator[float] = iter([3.0, 2.0, 4.0, 5.0, 1.0, 6.0])

    def judge(self: Validation, focus: FocusModel) -> dict[str, float]:
        seen.append({name: tensor.clone() for name, tensor in focus.projections.state_dict().items()})
        return {"loss": next(values)}

    monkeypatch.setattr(Validation, "__call__", judge)
    return seen


def _saved(model_folder: Path, adapter: Path) -> dict[str, torch.Tensor]:
    return FocusModel.from_pretrained(model_folder, adapter=adapter, device="cpu").projections.state_dict()


def test_the_best_adapter_is_kept(tmp_path: Path, model_folder: Path, judged: list[dict[str, torch.Tensor]]) -> None:
    made = config(tmp_path, model_folder)
    assert train(made) == made.output / "best"
    best = _saved(model_folder, made.output / "best")
    assert all(torch.equal(best[name], tensor) for name, tensor in judged[1].items())
    assert any(not torch.equal(best[name], tensor) for name, tensor in judged[3].items())
    last = _saved(model_folder, made.output / "adapter")
    assert all(torch.equal(last[name], tensor) for name, tensor in judged[3].items())


def test_a_run_without_patience_left_ends_and_stays_ended(
    tmp_path: Path, model_folder: Path, judged: list[dict[str, torch.Tensor]]
) -> None:
    made = config(tmp_path, model_folder, steps=6, patience=2, save_every=1)
    for _ in range(2):
        assert train(made) == made.output / "best"
        assert evaluations(made.output)["loss"] == [3.0, 2.0, 4.0, 5.0]
    assert len(judged) == 4
    train(replace(made, patience=3))  # more of it, and the run goes on
    assert evaluations(made.output)["loss"] == [3.0, 2.0, 4.0, 5.0, 1.0, 6.0]


def test_a_run_that_ends_early_is_saved_where_it_ended(
    tmp_path: Path, model_folder: Path, judged: list[dict[str, torch.Tensor]]
) -> None:
    made = config(tmp_path, model_folder, steps=6, patience=2, save_every=100)
    assert train(made) == made.output / "best"
    last = _saved(model_folder, made.output / "adapter")
    assert all(torch.equal(last[name], tensor) for name, tensor in judged[3].items())
    assert "4 of 6 steps" in (made.output / "adapter" / "README.md").read_text()
    assert train(made) == made.output / "best"  # and stays ended
    assert len(judged) == 4


@pytest.mark.parametrize("save_every", [1, 100])
def test_a_run_that_ends_early_writes_the_losses_of_all_its_steps(
    tmp_path: Path, model_folder: Path, judged: list[dict[str, torch.Tensor]], save_every: int
) -> None:
    """Its card counts their targets and hours."""
    made = config(tmp_path, model_folder, steps=6, patience=2, log_every=3, save_every=save_every)
    for _ in range(3):
        train(made)
        with (made.output / "losses.csv").open(newline="") as file:
            rows = [(int(row["step"]), int(row["targets"])) for row in csv.DictReader(file)]
        assert [step for step, _ in rows] == [3, 4]
    last = (made.output / "adapter" / "README.md").read_text()
    assert f"4 of 6 steps, {sum(targets for _, targets in rows):,} supervised tokens" in last


def test_other_held_out_questions_are_another_run(tmp_path: Path, model_folder: Path) -> None:
    """Their losses would be compared with those before, and the best adapter be that of easier questions."""
    made = config(tmp_path, model_folder, steps=2, save_every=1)
    train(replace(made, validation=()))
    train(made)  # a run may begin to hold something out
    held_out = made.validation[0].read_text()
    made.validation[0].write_text(held_out.replace("owl", "dog"))
    for changed in (made, replace(made, validation_examples=2)):
        with pytest.raises(ConfigError, match=r"another held-out part \(validation or held_out"):
            train(changed)
    train(replace(made, validation=()))
    with pytest.raises(ConfigError, match="another held-out part"):  # also after a time without
        train(made)
    moved = tmp_path / "moved.jsonl"
    moved.write_text(held_out)
    train(replace(made, validation=[moved]))


def test_questions_that_are_trained_are_not_held_out(tmp_path: Path, model_folder: Path) -> None:
    made = config(tmp_path, model_folder, steps=1)
    own, trained = made.validation[0].read_text(), made.data[0].read_text().splitlines()
    made.validation[0].write_text("\n".join([own, trained[1]]))
    with pytest.warns(FocusWarning, match=r"validation: 2 of 10 questions are trained as well"):
        train(made)


@pytest.mark.parametrize("killed_at", ["best", "adapter"])
def test_a_run_that_is_killed_between_two_files_ends_like_one_that_is_not(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    made = config(tmp_path, model_folder, steps=3, save_every=1)
    expected = train(replace(made, output=tmp_path / "straight")).parent
    save = trainer.save_adapter

    def killed(folder: Path, *given: Any, **named: Any) -> None:
        if (made.output / "evaluation.csv").read_text().count("\n") > 7 and Path(folder).name == killed_at:
            raise SystemExit  # in the second step
        save(folder, *given, **named)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "save_adapter", killed)
        patch.setattr(LossLog, "would_be_best", lambda self, results: True)
        with pytest.raises(SystemExit):
            train(made)
    train(made)
    assert evaluations(made.output) == evaluations(expected)
    for name in ("adapter", "best"):
        one, other = (_saved(model_folder, folder / name) for folder in (made.output, expected))
        assert all(torch.equal(one[key], tensor) for key, tensor in other.items())


def test_a_loss_that_is_no_number_is_not_the_best(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = iter([float("nan"), 2.0, float("nan"), 1.0])
    monkeypatch.setattr(Validation, "__call__", lambda self, focus: {"loss": next(values)})
    made = config(tmp_path, model_folder)
    assert "| loss | 1.000 |" in (train(made) / "README.md").read_text()


def test_documents_that_are_the_same_are_no_control(tmp_path: Path, model_folder: Path, focus: FocusModel) -> None:
    made = config(tmp_path, model_folder)
    lines = made.validation[0].read_text().splitlines()
    made.validation[0].write_text("\n".join([lines[0], lines[0].replace("owl 5", "dog"), lines[1]]))
    examples = Validation(replace(made, max_documents=0), focus, str(model_folder)).examples
    for own, other in zip(examples["loss"], examples["other documents"], strict=True):
        assert own.chunks != other.chunks
    made.validation[0].write_text(lines[0])
    with pytest.warns(FocusWarning, match="no control with other ones"):
        found = Validation(made, focus, str(model_folder))(focus)
    assert set(found) == {one for name in ("loss", "no documents") for one in (name, f"{name}, first token")}


def test_a_rehearsal_reads_what_is_held_out(tmp_path: Path, model_folder: Path) -> None:
    made = config(tmp_path, model_folder)
    assert trainer.rehearse(made).steps == 4
    made.validation[0].unlink()
    with pytest.raises(ConfigError, match=r"there is no file .*held_out\.jsonl"):
        trainer.rehearse(made)


def test_patience_needs_evaluations(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="patience=2: needs validation or held_out, and evaluate_every above 0"):
        config_for(tmp_path, patience=2)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"held_out": 1.0}, r"held_out=1\.0: must lie between 0 and below 1"),
        ({"held_out": -0.1}, r"held_out=-0\.1: must lie between 0"),
        ({"held_out": 0.1}, r"held_out=0\.1: needs data, of which it is a share"),
        ({"held_out": 0.1, "data": ["a"], "validation": ["b"]}, r"held_out=0\.1 and validation are both given"),
    ],
)
def test_what_is_held_out_is_said_once(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_for(tmp_path, **settings)


def test_a_share_of_the_records_is_held_out(tmp_path: Path, model_folder: Path, focus: FocusModel) -> None:
    """All questions about the same documents are, or none: the others would tell what they say."""
    made = replace(config(tmp_path, model_folder, steps=1, accumulation=4), validation=(), held_out=0.3)
    path = records(tmp_path, "many", 40)
    lines = path.read_text().splitlines()
    again = [json.dumps({**json.loads(line), "questions": [{"question": "why", "answer": "mat"}]}) for line in lines]
    path.write_text("\n".join([*lines, *again, json.dumps({"text": "a dog and a cat " * 40})]))
    made = replace(made, data=[path])
    trained, held_out = (read(made, focus, str(model_folder)) for read in (FileExamples.open, FileExamples.held_out))
    assert len(trained.asked) + len(held_out.asked) == 120
    assert 0.1 < len(held_out.asked) / 120 < 0.5
    assert not {documents for documents, _ in trained.asked} & {documents for documents, _ in held_out.asked}
    assert train(made) == made.output / "best"
    assert "Of the records with questions, 30 % are held out." in (made.output / "best" / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"held_out=1e-09: of .*many\.jsonl no record with 'documents'"):
        train(replace(made, output=tmp_path / "other", held_out=1e-9))


def test_what_cannot_be_held_out_is_refused(tmp_path: Path, model_folder: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(json.dumps({"text": "a dog and a cat " * 40}))
    with pytest.raises(ConfigError, match=r"validation: of .*texts\.jsonl no record with 'documents'"):
        train(replace(config(tmp_path, model_folder), validation=[texts]))
    with pytest.raises(ConfigError, match=r"there is no file .*none\.jsonl"):
        train(replace(config(tmp_path, model_folder), validation=[tmp_path / "none.jsonl"]))


def test_the_chunks_of_held_out_questions_are_read_once_if_there_is_a_store(
    tmp_path: Path, model_folder: Path, focus: FocusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They come again with every evaluation."""
    made = config(tmp_path, model_folder)
    expected, read = Validation(made, focus, str(model_folder))(focus), chunks_read(focus, monkeypatch)
    kept = KeptChunks(tmp_path / "store", focus)
    for _ in range(2):
        found = Validation(made, focus, str(model_folder), kept=kept)(focus)
        assert found == pytest.approx(expected, rel=1e-6)
    kinds = Validation(made, focus, str(model_folder)).examples.values()
    assert sum(read) == len({tuple(chunk) for examples in kinds for one in examples for chunk in one.chunks})
    stored, plain = (
        evaluations(train(replace(made, output=tmp_path / name, store=store)).parent)
        for name, store in (("stored", tmp_path / "store"), ("plain", None))
    )
    assert stored["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_a_validation_keeps_nothing_for_gradients(
    tmp_path: Path, model_folder: Path, focus: FocusModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also outside of a run: what all of its examples computed would be held at once."""
    losses, found = FocusLoss.target_losses, list[torch.Tensor]()
    monkeypatch.setattr(
        FocusLoss, "target_losses", lambda self, example: found.append(losses(self, example)) or found[-1]
    )
    Validation(config(tmp_path, model_folder), focus, str(model_folder))(focus)
    assert found
    assert not any(one.requires_grad for one in found)
