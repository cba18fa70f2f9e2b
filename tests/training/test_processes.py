"""Several processes learn what one would."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from focus_core.training.trainer import train
from tests.training.cases import config_for, focus_model, numbered

ROOT = Path(__file__).parents[2]
# One that hangs, which was seen once, says where; the processes that it starts say so before.
TORCHRUN = """
import faulthandler, sys
faulthandler.dump_traceback_later(210, exit=True)
from torch.distributed.run import main
main(sys.argv[1:])
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    """Each has half of a step's examples; the gradients are those of all.

    `accelerate launch` starts several processes for GPUs only, with `--cpu` one whatever it is told; torchrun, which it
    uses for GPUs, starts them here.
    """
    script = ["tests.training.two_processes", str(tmp_path / "two"), "1"]
    done = subprocess.run(
        [sys.executable, "-c", TORCHRUN, "--standalone", "--nproc_per_node=2", "-m", *script],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-8000:]
    train(config_for(tmp_path / "one", steps=4, accumulation=2), model=focus_model(), examples=numbered)
    one, two = (load_file(tmp_path / name / "adapter" / "focusllm_adapter.safetensors") for name in ("one", "two"))
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, atol=1e-5, rtol=1e-5, msg=name)
    fresh = focus_model().projections.state_dict()
    assert any(not torch.allclose(tensor, fresh[name], atol=1e-3) for name, tensor in one.items())
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), abs=1e-4)


def _losses(folder: Path) -> list[float]:
    with (folder / "losses.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]
