"""The adapter of the package from the wheel and the data, by one command that goes on where it was stopped.

    make models
    python -m recipes.smollm2.make --data fairytale/ --texts state_of_the_union.txt inaugural.txt --output runs/smollm2

Four runs and the mean of the last three, 4.3 hours of one core; the adapter lies in runs/smollm2/mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from focus_core.training.trainer import train
from recipes.smollm2.adapter import (
    config_for,
    cooled,
    mixed,
    require_model,
    wider,
    write_data,
    write_mixed_data,
    write_wider_data,
)
from recipes.smollm2.export import export

# The first run was laid out for 800 steps and stopped at half of its rate; the others go on from its end.
_LAID_OUT, _FIRST, _COOLED, _WIDER, _MIXED = 800, 401, 60, 220, 200


def make(folder: Path, texts: Sequence[Path], output: Path) -> Path:
    """Make the adapter, as far as it is not there."""
    files, held_out = write_data(folder, output)
    first = config_for(output, files, held_out, steps=_LAID_OUT, rank=32)
    train(first, until=_FIRST)
    best = train(cooled(first, _COOLED))
    further = [
        train(wider(first, write_wider_data(folder, output), steps=_WIDER, adapter=best)),
        train(mixed(first, write_mixed_data(folder, texts, output), texts=texts, steps=_MIXED, adapter=best)),
    ]
    export([run.parent for run in (best, *further)], output / "mean")
    return output / "mean"


def main(arguments: Sequence[str] | None = None) -> None:
    """Make it, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="plain texts of other kinds")
    parser.add_argument("--output", type=Path, default=Path("runs/smollm2"))
    parser.add_argument("--threads", type=int, help="(default: all)")
    given = parser.parse_args(arguments)
    require_model(given.threads)
    print(make(given.data, given.texts, given.output))


if __name__ == "__main__":
    main()
