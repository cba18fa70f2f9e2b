"""Chunks of training in a folder: the same losses and gradients, and no chunk is read twice."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from focus_core import ConfigError
from focus_core.errors import FocusWarning
from focus_core.methods.focus import FocusModel
from focus_core.training.config import TrainingConfig
from focus_core.training.kept import KeptChunks
from focus_core.training.loss import FocusLoss
from focus_core.training.trainer import train
from tests.training.cases import config_for, example_for, focus_model, gradients, numbered


def chunks_read(model: FocusModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks each call of `prefill_passes` is given, from now on."""
    counts, passes = list[int](), model.prefill_passes

    def counted(chunks: list[list[int]], *, layers: int) -> object:
        counts.append(len(chunks))
        return passes(chunks, layers=layers)

    monkeypatch.setattr(model, "prefill_passes", counted)
    return counts


@pytest.mark.parametrize("distillation", [0.0, 0.5])
def test_gradients_are_the_same_when_chunks_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, distillation: float
) -> None:
    model = focus_model()
    example = example_for(model)
    expected = gradients(model, FocusLoss(model, distillation=distillation)(example))
    read = chunks_read(model, monkeypatch)
    for _ in range(2):
        kept = KeptChunks(tmp_path, model)  # anew, as another run would
        found = gradients(model, FocusLoss(model, distillation=distillation, kept=kept)(example))
        assert all(torch.equal(found[name], gradient) for name, gradient in expected.items())
    assert read == [len(example.chunks), 0]


def test_a_teacher_needs_a_layer_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = focus_model()
    example = example_for(model)
    FocusLoss(model, kept=KeptChunks(tmp_path, model))(example)
    read = chunks_read(model, monkeypatch)
    for _ in range(2):
        FocusLoss(model, distillation=1.0, kept=KeptChunks(tmp_path, model))(example)
    FocusLoss(model, kept=KeptChunks(tmp_path, model))(example)  # takes what has more layers than it needs
    assert read == [len(example.chunks), 0, 0]


def test_a_chunk_that_occurs_twice_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = focus_model()
    read = chunks_read(model, monkeypatch)
    rows = KeptChunks(tmp_path, model).prefill([[1, 5, 6], [1, 7], [1, 5, 6]], layers=2)
    assert read == [2]
    assert rows[0] == rows[2] != rows[1]


def test_another_model_does_not_take_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, other = focus_model(), focus_model("qwen3")
    example = example_for(model)
    FocusLoss(model, kept=KeptChunks(tmp_path, model))(example)
    read = chunks_read(other, monkeypatch)
    FocusLoss(other, kept=KeptChunks(tmp_path, other))(example)
    assert read == [len(example.chunks)]


def test_a_damaged_file_is_named_and_read_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = focus_model()
    example = example_for(model)
    expected = gradients(model, FocusLoss(model, kept=KeptChunks(tmp_path, model))(example))
    damaged = max(tmp_path.rglob("*.safetensors"))
    damaged.write_bytes(damaged.read_bytes()[:-9])
    read = chunks_read(model, monkeypatch)
    with pytest.warns(FocusWarning, match=damaged.stem[:12]):
        found = gradients(model, FocusLoss(model, kept=KeptChunks(tmp_path, model))(example))
    assert read == [1]
    for name, gradient in expected.items():  # a chunk that is read alone is rounded otherwise than among others
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6)


def test_no_weight_is_too_small_to_make_another_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sample of the weights, which tells adapters' models apart, has none of the norms."""
    model = focus_model()
    example = example_for(model)
    FocusLoss(model, kept=KeptChunks(tmp_path, model))(example)
    with torch.no_grad():
        model.model.model.layers[0].input_layernorm.weight.mul_(3)
    expected = FocusLoss(model)(example).item()
    assert FocusLoss(model, kept=KeptChunks(tmp_path, model))(example).item() == pytest.approx(expected)


def test_another_precision_of_the_passes_reads_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = focus_model()
    example = example_for(model)
    FocusLoss(model, kept=KeptChunks(tmp_path, model, computed_in="bf16"))(example)
    read = chunks_read(model, monkeypatch)
    FocusLoss(model, kept=KeptChunks(tmp_path, model))(example)
    assert read == [len(example.chunks)]


def test_what_was_not_used_for_longest_gives_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = focus_model()
    chunks = [[1, *range(2 + number, 12 + number)] for number in range(8)]
    KeptChunks(tmp_path, model).prefill(chunks[:1], layers=2)
    (first,) = tmp_path.rglob("*.safetensors")
    kept = KeptChunks(tmp_path, model, limit=first.stat().st_size * 4)
    for chunk in chunks:
        kept.prefill([chunk], layers=2)
        kept.prefill(chunks[:1], layers=2)  # used all the time
    read = chunks_read(model, monkeypatch)
    kept.prefill([chunks[0], chunks[7]], layers=2)
    kept.prefill([chunks[1]], layers=2)
    assert read == [0, 1]


def test_a_run_with_a_store_is_the_run_without(tmp_path: Path) -> None:
    losses = []
    for name, store in (("without", None), ("first", tmp_path / "store"), ("second", tmp_path / "store")):
        config = config_for(tmp_path / name, store=store)
        train(config, model=focus_model(), examples=numbered)
        rows = (tmp_path / name / "losses.csv").read_text().splitlines()
        losses.append([row.rsplit(",", 1)[0] for row in rows])  # but for the seconds
    assert losses[0] == losses[1] == losses[2]
    assert list((tmp_path / "store").rglob("*.safetensors"))


def test_the_folder_is_relative_to_the_file(tmp_path: Path) -> None:
    path = tmp_path / "train.toml"
    path.write_text('output = "run"\nstore = "chunks"\n')
    assert TrainingConfig.from_toml(path).store == tmp_path / "chunks"
    path.write_text('output = "run"\nstore = ""\n')
    with pytest.raises(ConfigError, match="store='': must be the name of a folder"):
        TrainingConfig.from_toml(path)
    path.write_text('output = "run"\nstore = ["chunks"]\n')
    with pytest.raises(ConfigError, match=r"store=\['chunks'\]: must be the name of a folder"):
        TrainingConfig.from_toml(path)


def test_a_file_in_its_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    with pytest.raises(ConfigError, match="store"):
        train(config_for(tmp_path / "run", store=tmp_path / "store"), model=focus_model(), examples=numbered)
