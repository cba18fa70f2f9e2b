"""`focusllm train`: an adapter that `ask` then uses, going on after a stop, and settings that are wrong."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from focus_core.training.data import FileExamples
from focus_core.training.examples import TrainingExample
from tests.cli.conftest import Focusllm

RECORDS = [
    {"documents": ["The key of the otter is 48213. " * 3], "question": "Which key?", "answer": "48213"},
    {"documents": ["The key of the heron is 90576. " * 3], "question": "Which key?", "answer": "90576"},
]


@pytest.fixture
def config(tmp_path: Path, model_folder: Path) -> Path:
    """Two steps on two questions; paths are relative to the file."""
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    path = tmp_path / "train.toml"
    path.write_text(
        f'model = "{model_folder}"\noutput = "run"\ndata = ["data.jsonl"]\nsteps = 2\naccumulation = 1\nrank = 2\n'
        'warm_up = 0\nmixed_precision = "no"\ndevice = "cpu"\nchunk_sizes = [32]\ndynamic_prompts = [16]\n'
        "[objectives]\nanswering = 1\n"
    )
    return path


def test_trains_an_adapter_that_can_be_used(focusllm: Focusllm, config: Path, model_folder: Path) -> None:
    """The folder on standard output can be handed on as it is."""
    result = focusllm("train", config)
    assert result.exit_code == 0, result.output
    adapter = result.stdout.strip()
    assert adapter == str(config.parent / "run" / "adapter")
    asked = focusllm("ask", "--model", model_folder, "--adapter", adapter, "--max-new-tokens", "2", "--json", "Key?")
    assert json.loads(asked.stdout)["model"]["adapter"] == adapter


def test_a_second_run_needs_resume(focusllm: Focusllm, config: Path) -> None:
    """Otherwise a run could be lost, or go on, without anybody meaning it."""
    assert focusllm("train", config).exit_code == 0
    again = focusllm("train", config)
    assert again.exit_code == 1
    assert "--resume" in again.stderr
    assert focusllm("train", config, "--resume").exit_code == 0


def test_resume_needs_something_to_go_on_from(focusllm: Focusllm, config: Path) -> None:
    """A wrong output folder would otherwise start a new run of days."""
    result = focusllm("train", config, "--resume")
    assert result.exit_code == 1
    assert "holds no resume state (checkpoint.pt)" in result.stderr


def test_a_run_does_not_go_on_with_other_data_or_another_base(
    focusllm: Focusllm, config: Path, model_folder: Path, tmp_path: Path
) -> None:
    assert focusllm("train", config).exit_code == 0
    (tmp_path / "data.jsonl").write_text(json.dumps(RECORDS[0]))
    assert "another content of the data files" in focusllm("train", config, "--resume").stderr
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, RECORDS)))
    assert focusllm("train", config, "--resume").exit_code == 0
    other = Path(shutil.copytree(model_folder, tmp_path / "other"))
    weights = load_file(other / "model.safetensors")
    save_file({name: -tensor for name, tensor in weights.items()}, other / "model.safetensors", {"format": "pt"})
    config.write_text(config.read_text().replace(str(model_folder), str(other)))
    assert "another base model" in focusllm("train", config, "--resume").stderr


def test_the_log_holds_every_example_that_a_resume_state_holds(
    focusllm: Focusllm, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text(config.read_text().replace("steps = 2", "steps = 4\nlog_every = 4"))
    make = FileExamples.__call__

    def interrupting(self: FileExamples, number: int) -> TrainingExample:
        if number == 3 and not (config.parent / "run" / "checkpoint.pt").exists():
            os.kill(os.getpid(), signal.SIGINT)
        return make(self, number)

    monkeypatch.setattr(FileExamples, "__call__", interrupting)
    assert focusllm("train", config).exit_code != 0
    assert focusllm("train", config, "--resume").exit_code == 0
    with (config.parent / "run" / "losses.csv").open(newline="") as file:
        assert sum(int(row["examples"]) for row in csv.DictReader(file)) == 4


def test_ctrl_c_says_what_was_saved(focusllm: Focusllm, config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = FileExamples.__call__

    def stopping(examples: FileExamples, number: int) -> TrainingExample:
        if number == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return make(examples, number)

    monkeypatch.setattr(FileExamples, "__call__", stopping)
    result = focusllm("train", config)
    assert result.exit_code == 130
    assert "Stopped and saved after step 1 of 2." in result.stderr
    assert focusllm("train", config, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("learning_rat = 1", "Did you mean 'learning_rate'?"),
        ("steps = 0", "steps=0: must be at least 1"),
        ("steps = ", "is not TOML"),
        ('data = ["nothing.jsonl"]', "nothing.jsonl"),
        ('model = "no/such/model"', "no/such/model"),
    ],
)
def test_wrong_settings(focusllm: Focusllm, config: Path, line: str, message: str) -> None:
    name = line.split(" ")[0]
    kept = [old for old in config.read_text().splitlines() if not old.startswith(f"{name} ")]
    config.write_text("\n".join([line, *kept]))
    result = focusllm("train", config)
    assert result.exit_code == 1, result.output
    assert message in result.stderr
    assert result.stdout == ""


def test_no_such_file(focusllm: Focusllm) -> None:
    result = focusllm("train", "no-such.toml")
    assert result.exit_code == 1
    assert "no-such.toml: there is no such file." in result.stderr


def test_a_dry_run_says_what_it_would_take_and_saves_nothing(focusllm: Focusllm, config: Path) -> None:
    result = focusllm("train", config, "--dry-run")
    assert result.exit_code == 0, result.output
    rows = dict(line.split("  ", 1) for line in result.stdout.splitlines())
    assert list(rows) == [
        *("parameters that learn", "the adapter's file", "seconds per step", "hours for 2 steps", "memory"),
    ]
    assert not (config.parent / "run" / "adapter").exists()
    adapter = Path(focusllm("train", config).stdout.strip())
    weights = load_file(adapter / "focusllm_adapter.safetensors")
    assert rows["parameters that learn"].strip() == f"{sum(tensor.numel() for tensor in weights.values()):,}"


def test_a_dry_run_finds_what_will_not_fit(focusllm: Focusllm, config: Path) -> None:
    config.write_text(config.read_text().replace("chunk_sizes = [32]", "chunk_sizes = [32768]"))
    result = focusllm("train", config, "--dry-run")
    assert result.exit_code == 1
    assert "chunk_size=32768" in result.stderr
