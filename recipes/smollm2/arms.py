"""What to train, and on what: short runs of the recipe that differ in one thing and take the same time.

    python -m recipes.smollm2.arms --data fairytale/ --output runs/arms --minutes 15
    python -m recipes.smollm2.arms --data fairytale/ --output runs/arms --minutes 15 --only "full copies"
    python -m recipes.smollm2.arms --data fairytale/ --output runs/arms --judge runs/smollm2/wider/adapter

Each arm has as many steps as its first examples say that the time is enough for; all end with the same share of their
learning rate. The loss is that of the same held-out questions and targets for all, with the right sections, of another
story and of an empty page: only the distance between them is reading. An arm that is there is not trained again.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from focus_core.disk import replace_file
from focus_core.evaluation.tasks.records import read_records
from focus_core.methods.focus import FocusModel
from focus_core.training.config import TrainingConfig
from focus_core.training.log import LOSSES
from focus_core.training.trainer import rehearse, train
from focus_core.training.validation import Validation
from recipes.smollm2 import data
from recipes.smollm2.adapter import config_for, require_model, write_data

_FULL = {"rank": 0, "learning_rate": 3e-4}


def _objectives(*names: str) -> dict[str, Any]:
    """Alike, on short spans: a step is to take about as long as one of answers. The paper has up to 2,048 tokens."""
    return {"objectives": dict.fromkeys(names, 1.0), "local_lengths": (30, 256), "targets_per_span": 8}


ARMS: Mapping[str, Mapping[str, Any]] = {
    "rank 32": {},  # as the adapter in the package was trained; the others differ from it in what stands here
    "full copies": _FULL,
    "rank 128": {"rank": 128},
    "rank 8": {"rank": 8},
    "half distillation": {"distillation": 0.5},
    "half distillation at temperature 2": {"distillation": 0.5, "temperature": 2.0},
    "all targets of an answer": {"targets_per_answer": 0},
    "first target only": {"targets_per_answer": 1},
    "Muon": {"optimizer": "muon"},
    # The objectives of the paper (its Table 4), on the same stories without their questions.
    "continuation": _objectives("continuation"),
    "reconstruction": _objectives("reconstruction"),
    "continuation, reconstruction": _objectives("continuation", "reconstruction"),
    "continuation, reconstruction, answering": _objectives("continuation", "reconstruction", "answering"),
}
_STORIES = "stories.jsonl"
_RESULT, _STEPS = "arm.json", "steps.txt"


def config_of(arm: str, base: TrainingConfig) -> TrainingConfig:
    """The settings of an arm; those that learn from texts without questions have the stories as a file of their own."""
    changed = dict(ARMS[arm])
    if "objectives" in changed:
        asks = "answering" in changed["objectives"]
        stories = base.data[0].with_name(_STORIES)
        changed["data"] = (*base.data, stories) if asks else (stories,)
        changed["mixture"] = {**base.mixture, _STORIES: 10.0} if asks else {_STORIES: 1.0}
    return replace(base, **changed, output=base.output.with_name(arm.replace(", ", "-").replace(" ", "_")))


def run(arm: str, base: TrainingConfig, minutes: float) -> dict[str, Any]:
    """Train an arm; returns its losses as `base` draws what is held out, and the seconds that its steps took."""
    config = config_of(arm, base)
    kept = config.output / _RESULT
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text(encoding="utf-8"))
        return found
    steps = _steps(config, minutes)
    losses = judged(train(replace(config, steps=steps, validation=())), base)
    a_step = {int(row["step"]): float(row["seconds"]) for row in _rows(config.output / LOSSES)}
    seconds = sum(a_step[step] * (step - before) for before, step in pairwise([0, *sorted(a_step)]))
    found = {"arm": arm, "steps": steps, "seconds": round(seconds), **losses}
    replace_file(kept, lambda path: path.write_text(json.dumps(found, indent=2), encoding="utf-8"))
    return found


def _steps(config: TrainingConfig, minutes: float) -> int:
    """How many the time is enough for; an arm that was stopped goes on with those that it began with."""
    kept = config.output / _STEPS
    if not kept.is_file():
        steps = max(round(60 * minutes / rehearse(config).seconds_per_step), 1)
        config.output.mkdir(parents=True, exist_ok=True)
        replace_file(kept, lambda path: path.write_text(str(steps), encoding="utf-8"))
    return int(kept.read_text(encoding="utf-8"))


def judged(adapter: Path, base: TrainingConfig) -> dict[str, float]:
    """The losses of an adapter on the questions that `base` holds out."""
    focus = FocusModel.from_pretrained(base.model, adapter=adapter, device=base.device, dtype=base.dtype)
    return {name: round(loss, 3) for name, loss in Validation(base, focus, base.model)(focus).items()}


def _rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the arms, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/arms"))
    parser.add_argument("--minutes", type=float, default=15.0, help="of each arm (default: %(default)s)")
    parser.add_argument("--only", action="append", choices=list(ARMS), help="this arm; may be given several times")
    parser.add_argument("--judge", type=Path, action="append", help="only the losses of this adapter; several times")
    parser.add_argument("--threads", type=int, help="(default: all)")
    given = parser.parse_args(arguments)
    require_model(given.threads)
    files, held_out = write_data(given.data, given.output)
    stories = ({"text": "\n\n".join(story.sections)} for story in read_records(given.data / "train.jsonl"))
    data.write(given.output / _STORIES, stories)
    base = replace(
        config_for(given.output, files, held_out, steps=1, rank=32), validation_examples=16, save_every=10_000
    )
    for adapter in given.judge or ():
        print(json.dumps({"adapter": str(adapter), **judged(adapter, base)}), flush=True)
    for arm in () if given.judge else given.only or ARMS:
        print(json.dumps(run(arm, base, given.minutes)), flush=True)


if __name__ == "__main__":
    main()
