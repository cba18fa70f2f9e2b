"""The loop: what learns, exact resume, logs, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import time
from codecs import BOM_UTF8
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch import Tensor
from transformers import AutoModelForCausalLM

from focus_core.config import FocusConfig
from focus_core.errors import ConfigError, FocusError, OutOfMemoryError, UnsupportedModelError
from focus_core.loading.adapters import ADAPTER_CONFIG, load_adapter
from focus_core.methods.continuation import continue_tokens
from focus_core.methods.focus import FocusModel
from focus_core.training import start as start_module
from focus_core.training.config import TrainingConfig
from focus_core.training.examples import TrainingExample
from focus_core.training.loss import FocusLoss
from focus_core.training.trainer import RESUME_STATE, learning_rate, rehearse, train
from tests.model_zoo import build
from tests.training.cases import config_for, example_for, focus_model, gradients, numbered, text, tokenizer


def weights(model: FocusModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.projections.state_dict().items()}


def losses(folder: Path) -> list[dict[str, str]]:
    with (folder / "losses.csv").open(newline="") as file:
        return [{key: row[key] for key in ("step", "objective", "loss")} for row in csv.DictReader(file)]


class StopsAt:
    """Examples that press Ctrl-C while one of them is made."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, number: int) -> TrainingExample:
        if number == self.number:
            os.kill(os.getpid(), signal.SIGINT)
        return numbered(number)


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[FocusModel, Path]:
    """Six steps without a stop."""
    folder, model = tmp_path_factory.mktemp("straight"), focus_model()
    train(config_for(folder), model=model, examples=numbered)
    return model, folder


def test_only_the_projections_learn(straight: tuple[FocusModel, Path]) -> None:
    trained, fresh = straight[0], focus_model()
    for name, parameter in fresh.model.named_parameters():
        assert torch.equal(trained.model.get_parameter(name), parameter), name
    for name, before in weights(fresh).items():
        assert not torch.equal(weights(trained)[name], before), name


def optimizer_states(folder: Path) -> list[dict[str, Any]]:
    """What the optimizers of a finished run hold, by way of its resume state."""
    states: list[dict[str, Any]] = torch.load(folder / RESUME_STATE, weights_only=True)["optimizers"]
    return states


@pytest.mark.parametrize("share", [None, 0.5, 2.0], ids=["unclipped", "clipped", "below_the_bound"])
def test_a_step_takes_the_mean_weighted_gradient_of_its_examples(tmp_path: Path, share: float | None) -> None:
    """Against gradients made by hand. Adam divides by their size, so the weights alone would not show a wrong one."""
    examples = [replace(numbered(0), weight=3.0), numbered(1)]
    model = focus_model()
    apart = [gradients(model, FocusLoss(model)(example)) for example in examples]
    wanted = {name: (3 * first + apart[1][name]) / 2 for name, first in apart[0].items()}
    norm = float(torch.cat([gradient.flatten() for gradient in wanted.values()]).norm())
    bound = 1e6 if share is None else share * norm
    scale = min(1.0, bound / norm)
    train(config_for(tmp_path, steps=1, max_gradient_norm=bound), model=focus_model(), examples=examples)
    (state,) = optimizer_states(tmp_path)
    for number, gradient in enumerate(wanted.values()):
        of_parameter = state["state"][number]
        assert of_parameter["step"] == 1
        taken = of_parameter["exp_avg"] / (1 - state["param_groups"][0]["betas"][0])
        torch.testing.assert_close(taken, scale * gradient, rtol=1e-3, atol=1e-5 * norm)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_is_taken_at_the_learning_rate_of_its_number(tmp_path: Path, optimizer: str) -> None:
    config = config_for(tmp_path, steps=1, warm_up=4, optimizer=optimizer)
    model = focus_model("llama with biases")  # Muon leaves biases to a second optimizer
    before = weights(model)
    train(config, model=model, examples=numbered)
    rate = config.learning_rate / 4
    groups = [group for state in optimizer_states(tmp_path) for group in state["param_groups"]]
    assert len(groups) == (2 if optimizer == "muon" else 1)
    assert [group["lr"] for group in groups] == [rate] * len(groups)
    # The first step of AdamW, which biases get from both, is as long as the rate.
    changes = [(after - before[name]).abs().max() for name, after in weights(model).items() if "bias" in name]
    torch.testing.assert_close(torch.stack(changes), torch.full((len(changes),), rate), rtol=1e-2, atol=0.0)


def test_the_loss_falls_when_examples_repeat(tmp_path: Path) -> None:
    train(config_for(tmp_path, steps=30), model=focus_model(), examples=lambda number: numbered(number % 2))
    found = losses(tmp_path)
    assert float(found[-1]["loss"]) < 0.7 * float(found[0]["loss"])


def test_the_adapter_folder_holds_what_was_trained(straight: tuple[FocusModel, Path]) -> None:
    trained, folder = straight
    loaded, used_with = load_adapter(folder / "adapter", focus_model().model)
    for name, tensor in weights(trained).items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert used_with == focus_model().config.as_settings()


def test_stopped_and_resumed_is_bitwise_the_run_without_a_stop(
    straight: tuple[FocusModel, Path], tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt, match="saved after step"):
        train(config_for(tmp_path), model=focus_model(), examples=StopsAt(7))
    assert 0 < len(losses(tmp_path)) < 12
    assert "of 6 steps" in (tmp_path / "adapter" / "README.md").read_text()  # could be pushed as it is
    with (tmp_path / "losses.csv").open("a") as file:
        file.write("9,answ")  # a row that was cut short
    resumed = focus_model()  # with fresh projections: everything comes from the resume state
    train(config_for(tmp_path), model=resumed, examples=numbered)
    for name, tensor in weights(straight[0]).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    assert losses(tmp_path) == losses(straight[1])


def test_examples_that_end_early_lose_no_step(straight: tuple[FocusModel, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="examples end before number 7"):
        train(config_for(tmp_path), model=focus_model(), examples=[numbered(number) for number in range(7)])
    resumed = focus_model()
    train(config_for(tmp_path), model=resumed, examples=numbered)
    for name, tensor in weights(straight[0]).items():
        assert torch.equal(weights(resumed)[name], tensor), name
    assert losses(tmp_path) == losses(straight[1])


def _rows(folder: Path) -> list[dict[str, str]]:
    """All of the log but the time."""
    with (folder / "losses.csv").open(newline="") as file:
        return [{key: value for key, value in row.items() if key != "seconds"} for row in csv.DictReader(file)]


@pytest.mark.parametrize("killed", [False, True], ids=["Ctrl-C", "killed"])
@pytest.mark.parametrize(
    ("log_every", "save_every"),
    [(4, 3), *(pytest.param(*sizes, marks=pytest.mark.slow) for sizes in ((5, 1), (2, 6), (1, 2)))],
)
def test_the_log_of_a_run_that_was_stopped_is_that_of_one_that_was_not(
    tmp_path: Path, killed: bool, log_every: int, save_every: int
) -> None:
    """Between two rows, the losses before the stop were a row of their own, and the next row lacked them."""
    settings = {"steps": 9, "log_every": log_every, "save_every": save_every}
    straight, stopped = config_for(tmp_path / "straight", **settings), config_for(tmp_path / "stopped", **settings)
    train(straight, model=focus_model(), examples=numbered)
    for number in (7, 13):  # two examples a step
        examples = _Broken(number) if killed else StopsAt(number)
        with pytest.raises((KeyboardInterrupt, RuntimeError)):
            train(stopped, model=focus_model(), examples=examples)
    train(stopped, model=focus_model(), examples=numbered)
    assert _rows(stopped.output) == _rows(straight.output)
    assert len({row["step"] for row in _rows(straight.output)}) == -(-9 // log_every)


class _Broken:
    """Examples of which one ends the run without a chance to save."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __call__(self, number: int) -> TrainingExample:
        if number == self.number:
            raise RuntimeError("the power is gone")
        return numbered(number)


def test_muon_resumes_exactly_too(tmp_path: Path) -> None:
    """It has two optimizers to save: one for matrices, one for biases."""
    straight, resumed = focus_model(), focus_model()
    train(config_for(tmp_path / "straight", optimizer="muon"), model=straight, examples=numbered)
    with pytest.raises(KeyboardInterrupt):
        train(config_for(tmp_path / "resumed", optimizer="muon"), model=focus_model(), examples=StopsAt(7))
    train(config_for(tmp_path / "resumed", optimizer="muon"), model=resumed, examples=numbered)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(straight).items())


def test_an_iterable_goes_on_where_it_stopped(straight: tuple[FocusModel, Path], tmp_path: Path) -> None:
    examples = [numbered(number) for number in range(12)]
    with pytest.raises(KeyboardInterrupt):
        train(config_for(tmp_path), model=focus_model(), examples=StopsAt(7))
    resumed = focus_model()
    train(config_for(tmp_path), model=resumed, examples=examples)
    assert all(torch.equal(weights(resumed)[name], tensor) for name, tensor in weights(straight[0]).items())


def test_a_resume_state_of_other_settings_is_refused(straight: tuple[FocusModel, Path]) -> None:
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.01 there, 0\.5 now"):
        train(config_for(straight[1], learning_rate=0.5), model=focus_model(), examples=numbered)


def test_an_error_in_an_example_reaches_the_caller(tmp_path: Path) -> None:
    def broken(number: int) -> TrainingExample:
        raise ConfigError("line 3 is broken")

    with pytest.raises(ConfigError, match="line 3 is broken"):
        train(config_for(tmp_path), model=focus_model(), examples=broken)


def test_evaluation_is_logged_and_changes_nothing(straight: tuple[FocusModel, Path], tmp_path: Path) -> None:
    def evaluate(model: FocusModel) -> dict[str, float]:
        return {"drawn": torch.rand(()).item()}

    model = focus_model()
    train(config_for(tmp_path, evaluate_every=4), model=model, examples=numbered, evaluate=evaluate)
    rows = list(csv.DictReader((tmp_path / "evaluation.csv").open()))
    assert [row["step"] for row in rows] == ["4", "6"]
    assert all(torch.equal(weights(model)[name], tensor) for name, tensor in weights(straight[0]).items())


def test_a_cpu_has_no_float16(tmp_path: Path) -> None:
    """It would train in float32, and say fp16."""
    with pytest.raises(ConfigError, match="mixed_precision='fp16' on a CPU"):
        train(config_for(tmp_path, mixed_precision="fp16"), model=focus_model(), examples=numbered)


@pytest.mark.slow
def test_seconds_per_step_are_those_of_the_steps(tmp_path: Path) -> None:
    """Minutes of evaluation would look like slow steps."""

    def evaluate(model: FocusModel) -> dict[str, float]:
        time.sleep(1.0)
        return {}

    train(config_for(tmp_path, steps=3, evaluate_every=1), model=focus_model(), examples=numbered, evaluate=evaluate)
    with (tmp_path / "losses.csv").open(newline="") as file:
        assert all(float(row["seconds"]) < 0.9 for row in csv.DictReader(file))


def test_signals_are_the_programs_own_again(tmp_path: Path) -> None:
    """After a training, Ctrl-C would do nothing."""
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_learning_rate_warms_up_and_falls_to_its_end() -> None:
    config = config_for(Path(), steps=100, warm_up=10, learning_rate=1.0, final_share=0.1)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9] == rates[10] == 1.0
    assert rates[99] == pytest.approx(0.1, abs=1e-3)
    assert rates[10:] == sorted(rates[10:], reverse=True)


def test_mixed_precision_keeps_the_projections_in_float32(tmp_path: Path) -> None:
    model = focus_model()
    train(config_for(tmp_path, steps=1, mixed_precision="bf16"), model=model, examples=numbered)
    assert {parameter.dtype for parameter in model.projections.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "dtype"), [("no", torch.float32), ("bf16", torch.bfloat16)])
def test_activations_have_the_precision_asked_for(tmp_path: Path, precision: str, dtype: torch.dtype) -> None:
    model, seen = focus_model(), set()
    model.model.lm_head.register_forward_hook(lambda _, __, logits: seen.add(logits.dtype))
    train(config_for(tmp_path, steps=1, mixed_precision=precision), model=model, examples=numbered)
    assert seen == {dtype}


def test_a_base_in_bfloat16_trains_and_is_evaluated(tmp_path: Path) -> None:
    """The default on a GPU: the evaluation has to mix the two precisions as the training does."""
    asked: list[Tensor] = []

    def evaluate(model: FocusModel) -> dict[str, float]:
        asked.append(continue_tokens(model, list(range(3, 30)) * 30, max_new_tokens=2).tokens)
        return {"tokens": 2.0}

    base = build("llama").to(torch.bfloat16)
    config = config_for(tmp_path, steps=1, mixed_precision="bf16")
    train(config, model=base, examples=numbered, evaluate=evaluate)
    assert [len(tokens) for tokens in asked] == [2]
    for precision in ("no", "fp16"):
        with pytest.raises(ConfigError, match=rf"mixed_precision='{precision}' with a base model in torch\.bfloat16"):
            train(replace(config, mixed_precision=precision), model=base, examples=numbered)


def test_from_toml_and_jsonl_to_an_adapter(tmp_path: Path) -> None:
    words = tokenizer()
    base = build("llama", vocab_size=len(words))
    base.save_pretrained(tmp_path / "base")
    words.save_pretrained(tmp_path / "base")
    records = [{"text": text(60)}, {"documents": [text(20)], "question": "w1", "answer": "w2"}]
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, records)))
    (tmp_path / "train.toml").write_text(
        'model = "base"\noutput = "out"\ndata = ["data.jsonl"]\nrank = 2\nsteps = 2\naccumulation = 4\ndevice = "cpu"\n'
        "chunk_sizes = [8, 16]\nmax_chunks = 4\nlocal_lengths = [4, 20]\ndynamic_prompts = [8]\n"
    )
    folder = train(TrainingConfig.from_toml(tmp_path / "train.toml"))
    model = FocusModel.from_pretrained(tmp_path / "base", adapter=folder, device="cpu")
    assert model.projections.rank == 2
    assert (model.config.chunk_size, model.config.dynamic_prompt) == (16, 8)
    assert {row["objective"] for row in losses(tmp_path / "out")} >= {"answering"}


def test_a_model_on_another_device_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Only what learns would be moved, and the first example would mix devices."""
    monkeypatch.setattr(FocusModel, "device", property(lambda self: torch.device("meta")))
    with pytest.raises(ConfigError, match="the model handed over is on meta"):
        train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)


def test_settings_that_no_engine_could_use_are_refused_before_the_first_step(tmp_path: Path) -> None:
    config = config_for(tmp_path, steps=1, used_with=FocusConfig(chunk_size=5000))
    with pytest.raises(ConfigError, match=r"chunk_size=5000 .* need"):
        train(config, model=focus_model(), examples=numbered)


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path: Path) -> None:
    """Hours later nothing but NaN would have been saved."""
    model = focus_model()
    with torch.no_grad():
        next(model.projections.parameters()).fill_(torch.nan)
    with pytest.raises(FocusError, match="Step 1: the gradient is nan"):
        train(config_for(tmp_path), model=model, examples=numbered)
    assert not (tmp_path / RESUME_STATE).exists()


def test_an_output_may_be_a_string() -> None:
    """As paths are written in Python; it ended in an AttributeError after the model was loaded."""
    assert TrainingConfig(output="runs/x").output == Path("runs/x")


def test_an_output_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"output='.*file' cannot be a folder"):
        train(config_for(tmp_path / "file", steps=1), model=focus_model(), examples=numbered)


def test_a_damaged_resume_state_is_named(tmp_path: Path) -> None:
    for damaged in (b"", b"no state"):
        (tmp_path / "checkpoint.pt").write_bytes(damaged)
        with pytest.raises(ConfigError, match=r"checkpoint\.pt is damaged, or no resume state"):
            train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)
    torch.save({"done": 1}, tmp_path / "checkpoint.pt")
    with pytest.raises(ConfigError, match=r"checkpoint\.pt is damaged, or no resume state"):
        train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)


def test_an_evaluation_that_failed_is_made_up_for(tmp_path: Path) -> None:
    def failing(focus: FocusModel) -> dict[str, float]:
        raise RuntimeError("no disk")

    config = config_for(tmp_path, steps=2, evaluate_every=2)
    with pytest.raises(RuntimeError, match="no disk"):
        train(config, model=focus_model(), examples=numbered, evaluate=failing)
    for _ in range(2):  # and not a second time
        train(config, model=focus_model(), examples=numbered, evaluate=lambda focus: {"right": 0.5})
    assert (tmp_path / "evaluation.csv").read_text().split() == ["step,name,value", "2,right,0.5"]


def test_a_model_in_bfloat16_learns_in_float32_and_is_handed_back_as_it_was(tmp_path: Path) -> None:
    """Small steps are lost on bfloat16 weights: most of them stayed where they were."""
    model = FocusModel(build("llama").to(torch.bfloat16), config=FocusConfig(window=512))
    seen: list[torch.dtype] = []

    def evaluate(focus: FocusModel) -> dict[str, float]:
        seen.extend({tensor.dtype for tensor in focus.projections.parameters()})
        return {}

    config = config_for(tmp_path, steps=1, mixed_precision="bf16")
    train(config, model=model, examples=numbered, evaluate=evaluate)
    assert seen == [torch.float32]
    assert {tensor.dtype for tensor in model.projections.parameters()} == {torch.bfloat16}
    with pytest.raises(ConfigError, match=r"mixed_precision='no' with a base model in torch\.bfloat16"):
        train(replace(config, mixed_precision="no"), model=model, examples=numbered)


def test_another_number_of_processes_does_not_go_on(tmp_path: Path) -> None:
    """Each takes every n-th example: with another n some would come twice and others never."""
    train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)
    state = torch.load(tmp_path / RESUME_STATE, weights_only=True)
    state["identity"]["processes"] = 2
    torch.save(state, tmp_path / RESUME_STATE)
    with pytest.raises(ConfigError, match=r"another number of processes \(2\)"):
        train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)


def test_no_variable_of_accelerate_changes_the_accumulation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    train(config_for(tmp_path, steps=2), model=focus_model(), examples=numbered)
    assert optimizer_states(tmp_path)[0]["state"][0]["step"] == 2


def data_config(folder: Path, model: Path, **settings: object) -> TrainingConfig:
    data = folder / "data.jsonl"
    data.write_text(json.dumps({"text": "a dog and a cat " * 40}))
    sizes: dict[str, Any] = {"chunk_sizes": (32,), "max_chunks": 4, "local_lengths": (6, 20), "dynamic_prompts": (8,)}
    return config_for(folder / "run", model=str(model), data=[data], steps=1, **{**sizes, **settings})


def test_the_adapter_says_how_its_chunks_were_trained(model_folder: Path, tmp_path: Path) -> None:
    used_with = FocusConfig(chunk_size=32, local_window=32, dynamic_prompt=8)
    folder = train(data_config(tmp_path, model_folder, bos_per_chunk=False, used_with=used_with))
    assert json.loads((folder / ADAPTER_CONFIG).read_text())["config"]["bos_per_chunk"] is False


def test_a_run_goes_on_wherever_its_files_lie(model_folder: Path, tmp_path: Path) -> None:
    """A path that is spelled otherwise says nothing of what is in the file."""
    config = data_config(tmp_path, model_folder)
    train(config)
    moved = tmp_path / "elsewhere.jsonl"
    config.data[0].rename(moved)
    train(replace(config, data=[moved]))
    moved.write_text(json.dumps({"text": "another text " * 40}))
    with pytest.raises(ConfigError, match="another content of the data files"):
        train(replace(config, data=[moved]))


def test_what_the_start_decides_cannot_be_set_otherwise(model_folder: Path, tmp_path: Path) -> None:
    """Full copies would be trained where a rank was asked for, and chunks read by another rule than before."""
    start = {"adapter": str(model_folder / "adapter")}
    with pytest.raises(ConfigError, match=r"rank=4, but .* are full copies"):
        train(data_config(tmp_path, model_folder, rank=4, **start))
    with pytest.raises(ConfigError, match=r"bos_per_chunk=False, but .* were trained with True"):
        train(data_config(tmp_path, model_folder, bos_per_chunk=False, **start))


def test_a_base_model_handed_over_starts_from_the_adapter(model_folder: Path, tmp_path: Path) -> None:
    """Its name would be in the settings, and training begin from the model's own maps."""
    start = model_folder / "adapter"
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    config = data_config(tmp_path, model_folder, adapter=str(start), learning_rate=1e-12)
    wanted = FocusModel.from_pretrained(model_folder, adapter=start, device="cpu").projections.state_dict()
    found = FocusModel.from_pretrained(model_folder, adapter=train(config, model=model), device="cpu")
    for name, tensor in found.projections.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], atol=1e-6, rtol=0.0, msg=name)


@pytest.mark.parametrize(("given", "rank", "rate"), [(None, 8, 1e-3), (0, None, 5e-5), (4, 4, 1e-3)])
def test_the_rate_follows_from_the_rank(
    model_folder: Path,
    tmp_path: Path,
    given: int | None,
    rank: int | None,
    rate: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(start_module, "RANK", 8)
    config = data_config(tmp_path, model_folder, rank=given, learning_rate=None, warm_up=0)
    made = FocusModel.from_pretrained(model_folder, adapter=train(config), device="cpu")
    assert made.projections.rank == rank
    card = (config.output / "adapter" / "README.md").read_text()
    assert f"rank = {rank or 0}\n" in card  # a default of today may be another one tomorrow
    assert f"learning_rate = {rate}" in card


def test_a_run_of_full_copies_from_before_they_had_to_be_named(model_folder: Path, tmp_path: Path) -> None:
    config = data_config(tmp_path, model_folder, rank=0)
    train(config)
    path = config.output / RESUME_STATE
    state = torch.load(path, weights_only=True)
    torch.save({**state, "config": {**state["config"], "rank": "None"}}, path)
    train(config)
    with pytest.raises(ConfigError, match="rank: 0 there, 32 now"):
        train(replace(config, rank=None))


def test_a_run_ends_at_a_step_and_goes_on_from_there(tmp_path: Path) -> None:
    """As one that was not ended: its rate follows the whole schedule."""
    parts, whole = config_for(tmp_path / "parts", save_every=100), config_for(tmp_path / "whole")
    for until in (3, 3, None):
        train(parts, model=focus_model(), examples=numbered, until=until)
        assert len(losses(parts.output)) == 2 * (until or parts.steps)
    train(whole, model=focus_model(), examples=numbered)
    assert losses(parts.output) == losses(whole.output)


def test_a_run_goes_on_with_chunks_that_end_where_they_did(model_folder: Path, tmp_path: Path) -> None:
    used_with = FocusConfig(chunk_size=32, local_window=32, dynamic_prompt=8, boundaries="paragraph")
    config = data_config(tmp_path, model_folder, used_with=used_with)
    train(config)
    with pytest.raises(ConfigError, match=r"another place where chunks end \(paragraph, now tokens\)"):
        train(replace(config, used_with=replace(used_with, boundaries="tokens")))


def test_an_adapter_says_where_its_chunks_ended_in_training(model_folder: Path, tmp_path: Path) -> None:
    start = Path(shutil.copytree(model_folder / "adapter", tmp_path / "start"))
    description = json.loads((start / ADAPTER_CONFIG).read_text())
    description["config"]["boundaries"] = "paragraph"
    (start / ADAPTER_CONFIG).write_text(json.dumps(description))
    folder = train(data_config(tmp_path, model_folder, adapter=str(start)))
    assert json.loads((folder / ADAPTER_CONFIG).read_text())["config"]["boundaries"] == "paragraph"


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_what_would_shard_the_projections_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: DistributedType
) -> None:
    """They would be saved in parts, and the frozen model stay whole."""
    monkeypatch.setattr(Accelerator, "distributed_type", kind)
    with pytest.raises(ConfigError, match=f"distributed_type={kind.value}: each process holds the frozen model"):
        train(config_for(tmp_path), model=focus_model(), examples=numbered)


@pytest.mark.parametrize("settings", [{"adapter": "some/adapter"}, {"rank": 2}])
def test_a_focus_model_has_its_own_projections(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Adapter or rank would be ignored in silence."""
    with pytest.raises(ConfigError, match=f"{next(iter(settings))}=.*a FocusModel goes on with the projections it has"):
        train(config_for(tmp_path, **settings), model=focus_model(), examples=numbered)


def test_files_with_a_byte_order_mark(model_folder: Path, tmp_path: Path) -> None:
    """Editors on Windows write one, and both formats would be called invalid."""
    config = data_config(tmp_path, model_folder)
    config.data[0].write_bytes(BOM_UTF8 + config.data[0].read_bytes())
    train(config)
    (tmp_path / "train.toml").write_bytes(BOM_UTF8 + b'model = "base"\noutput = "out"\nsteps = 3\n')
    assert TrainingConfig.from_toml(tmp_path / "train.toml").steps == 3


def test_a_full_disk_is_named_and_leaves_the_save_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run would end in a traceback of torch, with half a file in the folder."""
    config, save = config_for(tmp_path, steps=2, save_every=1), torch.save

    def full(state: dict[str, Any], path: Path) -> None:
        save(state, path)
        if state["done"] == 2:
            raise RuntimeError("PytorchStreamWriter failed writing file: file write failed")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(FocusError, match=r"Step 2 could not be saved in .*file write failed"):
        train(config, model=focus_model(), examples=numbered)
    assert not list(tmp_path.rglob("*.partial"))
    assert torch.load(next(tmp_path.rglob("checkpoint.pt")), weights_only=True)["done"] == 1


def test_lack_of_memory_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: FocusLoss, example: TrainingExample) -> Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(FocusLoss, "forward", full)
    with pytest.raises(OutOfMemoryError, match=r"Tried to allocate 2.00 GiB.*recompute=true, lower max_chunks"):
        train(config_for(tmp_path), model=focus_model(), examples=numbered)


def test_nothing_of_a_run_decides_the_device_of_the_next(tmp_path: Path) -> None:
    """The second would train on the first one's device in silence."""
    train(config_for(tmp_path, steps=1), model=focus_model(), examples=numbered)
    assert not PartialState._shared_state


def test_another_dtype_is_named(model_folder: Path, tmp_path: Path) -> None:
    """ "Another base model", it would say of the same one."""
    config = data_config(tmp_path, model_folder, mixed_precision="bf16")
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    train(config, model=model)
    with pytest.raises(ConfigError, match=r"another dtype of the base model \(torch.float32, now torch.bfloat16\)"):
        train(config, model=model.bfloat16())


def test_a_model_without_tokenizer_is_named(model_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UnsupportedModelError, match="tokenizer"):
        train(data_config(tmp_path, folder))


def test_a_gpu_by_number_is_refused_with_the_way_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would train on the first one in silence."""
    monkeypatch.setattr(start_module, "choose_device", torch.device)
    with pytest.raises(ConfigError, match=r"device='cuda:1'.*CUDA_VISIBLE_DEVICES=1"):
        train(config_for(tmp_path, device="cuda:1"), model=focus_model(), examples=numbered)


def test_a_rehearsal_measures_the_largest_of_its_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One large example among many decides on the memory, and its share of the examples on the time."""
    small, large = (example_for(focus_model(), targets=(0,)) for _ in range(2))
    large = replace(large, chunks=large.chunks * 9)
    measured, forward = list[TrainingExample](), FocusLoss.forward

    def noting(self: FocusLoss, example: TrainingExample) -> Tensor:
        measured.append(example)
        return forward(self, example)

    monkeypatch.setattr(FocusLoss, "forward", noting)
    monkeypatch.setattr(time, "monotonic", iter([0.0, 5.0, 5.0, 6.0, 6.0, 9.0]).__next__)
    settings = config_for(tmp_path, steps=20, accumulation=2)
    found = rehearse(settings, model=focus_model(), examples=lambda number: large if number == 31 else small)
    assert measured == [small, small, large]
    a_token = sorted([5 / small.tokens_read, 1 / small.tokens_read, 3 / large.tokens_read])[1]
    mean = (39 * small.tokens_read + large.tokens_read) / 40
    assert found.seconds_per_step == pytest.approx(2 * a_token * mean)


def test_the_tokens_of_an_example_are_those_that_pass_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    model, passed = focus_model(), list[int]()
    example = example_for(model, targets=(0, 2))
    model.model.get_input_embeddings().register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    FocusLoss(model)(example)
    padded = sum(passed)  # answers end before their last token, which nothing is predicted from
    assert 0.7 * padded < example.tokens_read < 1.3 * padded
