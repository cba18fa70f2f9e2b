"""A run for torchrun: as many processes as it starts share the examples of a step."""

from __future__ import annotations

import faulthandler
import sys
from pathlib import Path

from focus_core.training.trainer import train
from tests.training.cases import config_for, focus_model, numbered

if __name__ == "__main__":
    faulthandler.dump_traceback_later(180, exit=True)  # seconds; a run takes some twenty, and one that hangs says where
    train(config_for(Path(sys.argv[1]), steps=4, accumulation=int(sys.argv[2])), model=focus_model(), examples=numbered)
