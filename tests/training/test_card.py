"""The model card: what a reader needs to judge an adapter and to train it again."""

from __future__ import annotations

import json
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import yaml

from focus_core import FocusConfig
from focus_core.training.card import write_card
from focus_core.training.config import TrainingConfig
from focus_core.training.trainer import train
from tests.training.cases import config_for, focus_model, numbered
from tests.training.test_stream import row
from tests.training.test_validation import config, evaluations


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> TrainingConfig:
    made = replace(
        config(tmp_path_factory.mktemp("card"), model_folder),
        license="apache-2.0",
        data_notes="Written for this test, CC0.",
        rank=2,
        mixture={"train.jsonl": 2.5},
        used_with=FocusConfig(chunk_size=32, local_window=40, dynamic_prompt=8),
    )
    train(made)
    return made


@pytest.mark.parametrize("name", ["adapter", "best"])
def test_a_card_has_data_scores_and_settings(run: TrainingConfig, name: str) -> None:
    card = (run.output / name / "README.md").read_text()
    front = yaml.safe_load(card.split("---")[1])
    assert front == {"license": "apache-2.0", "library_name": "focusllm", "tags": ["focusllm", "long-context"]}
    digest = sha256(run.data[0].read_bytes()).hexdigest()[:16]
    assert f"| train.jsonl | trained | 5 | `{digest}…` |" in card
    assert "| held_out.jsonl | held out | 4 |" in card
    assert "Written for this test, CC0." in card
    found = evaluations(run.output)
    step = 4 if name == "adapter" else 1 + found["loss"].index(min(found["loss"]))
    assert f"| other documents, first token | {found['other documents, first token'][step - 1]:.3f} |" in card
    assert f"{step} of 4 steps" in card


def test_the_settings_of_a_card_are_those_of_the_run(run: TrainingConfig, tmp_path: Path) -> None:
    card = (run.output / "adapter" / "README.md").read_text()
    path = tmp_path / "train.toml"
    path.write_text(card.split("```toml\n")[1].split("```")[0])
    again = TrainingConfig.from_toml(path)
    ours, theirs = run.settings_digest(), again.settings_digest()
    assert theirs == ours
    assert again.model == Path(run.model or "").name
    assert str(Path(run.model or "").parent) not in card  # where it lay is nobody's business
    assert [one.name for one in (*again.data, *again.validation)] == ["train.jsonl", "held_out.jsonl"]


def test_a_hub_id_is_the_base_model_and_a_path_is_not(run: TrainingConfig, tmp_path: Path) -> None:
    write_card(tmp_path, run, "someone/model-1B", 4)
    card = (tmp_path / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == "someone/model-1B"
    assert 'FocusEngine.from_pretrained("someone/model-1B"' in card.replace("'", '"')


def test_a_run_of_examples_made_in_python_has_a_card(tmp_path: Path) -> None:
    folder = train(config_for(tmp_path / "run", steps=2), model=focus_model(), examples=numbered)
    card = (folder / "README.md").read_text()
    assert "made in Python" in card
    assert "## Scores" not in card
    assert "was not said (`data_notes`)" in card
    rows = (tmp_path / "run" / "losses.csv").read_text().splitlines()[1:]
    assert f"{sum(int(row.split(',')[4]) for row in rows)} supervised tokens" in card
    assert json.loads((folder / "focusllm_adapter.json").read_text())["format"] == "focusllm-adapter"


def test_rows_of_a_dataset_have_their_notes_and_figures_of_ones_own_stand_apart(
    tmp_path: Path, model_folder: Path
) -> None:
    """Held-out losses are nats; what `evaluate` measures may be anything."""
    made = replace(config(tmp_path, model_folder), data=(), data_notes="Rows of a set, CC0.", steps=1, accumulation=1)
    folder = train(made, records=[row(1)], evaluate=lambda focus: {"right": 0.25, "loss of another kind": 7.0})
    card = (folder / "README.md").read_text()
    assert "Rows of a set, CC0." in card
    assert "| held_out.jsonl | held out | 4 |" in card
    scores, others = card.split("## Scores")[1].split("## Other figures")
    assert "| loss |" in scores
    assert "| no documents, first token |" in scores
    assert "| right | 0.250 |" in others
    assert "| loss of another kind | 7.000 |" in others
    assert "right" not in scores.split("|---")[1]
