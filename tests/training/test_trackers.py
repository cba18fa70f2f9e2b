"""Losses and evaluations go to the trackers of accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker

from focus_core import ConfigError
from focus_core.training.trainer import train
from tests.training.cases import config_for, focus_model, numbered

SEEN: list[tuple[str, Any]] = []


class Notebook(GeneralTracker):  # type: ignore[misc]
    name, requires_logging_directory = "notebook", False

    def __init__(self, run_name: str, **options: Any) -> None:
        super().__init__()
        SEEN.append(("run", run_name))

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        SEEN.append(("config", values))

    def log(self, values: dict[str, float], step: int | None = None, **options: Any) -> None:
        SEEN.append(("log", (step, values)))

    def finish(self) -> None:
        SEEN.append(("finish", None))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LOGGER_TYPE_TO_CLASS, "notebook", Notebook)
    monkeypatch.setattr("focus_core.training.start.get_available_trackers", lambda: ["notebook"])
    SEEN.clear()


@pytest.mark.usefixtures("notebook")
def test_a_tracker_gets_settings_losses_and_evaluations(tmp_path: Path) -> None:
    config = config_for(tmp_path / "otter", steps=4, log_every=2, trackers=("notebook",))
    train(config, model=focus_model(), examples=numbered, evaluate=lambda focus: {"right": 0.5})
    kinds = [kind for kind, _ in SEEN]
    assert kinds == ["run", "config", "log", "log", "log", "finish"]
    assert SEEN[0][1] == "otter"
    settings = SEEN[1][1]
    assert (settings["learning_rate"], settings["steps"], settings["recompute"]) == (0.01, 4, False)
    assert settings["output"] == str(tmp_path / "otter")
    assert all(isinstance(value, bool | int | float | str) for value in settings.values())
    logged = [value for kind, value in SEEN if kind == "log"]
    assert [step for step, _ in logged] == [2, 4, 4]
    assert set(logged[0][1]) == {"loss/answering", "loss/continuation", "learning_rate", "gradient_norm"}
    assert logged[2][1] == {"evaluation/right": 0.5}


@pytest.mark.usefixtures("notebook")
def test_a_tracker_ends_with_a_run_that_is_stopped(tmp_path: Path) -> None:
    def evaluate(focus: object) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(
            config_for(tmp_path, steps=2, trackers=("notebook",)),
            model=focus_model(),
            examples=numbered,
            evaluate=evaluate,
        )
    assert SEEN[-1] == ("finish", None)


def test_a_tracker_that_is_not_there_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate would train without it and say nothing."""
    monkeypatch.setattr("focus_core.training.start.get_available_trackers", list)
    with pytest.raises(ConfigError, match="trackers: 'wandb' is not installed: pip install wandb"):
        train(config_for(tmp_path, trackers=("wandb",)), model=focus_model(), examples=numbered)
    with pytest.raises(ConfigError, match=r"trackers: unknown 'wnadb'\. Known: .*tensorboard, .*wandb"):
        train(config_for(tmp_path, trackers=("wnadb",)), model=focus_model(), examples=numbered)
