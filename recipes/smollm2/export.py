"""Put the best adapter of a run into the package, or the mean of those of several runs.

    python -m recipes.smollm2.export runs/smollm2/rank32_cooled runs/smollm2/wider runs/smollm2/mixed

The mean is of runs that went on from the same adapter.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from focus_core.config import FocusConfig
from focus_core.loading.adapters import load_adapter, save_adapter
from focus_core.loading.models import load_model
from focus_core.loading.named import SMOLLM2, SMOLLM2_ADAPTER, named_model

LIMIT = 10_000_000  # bytes that the package may carry
# Of engines that load it: chunks like those of the training, the sections of stories, and the lengths for which its
# answers were measured to be better than the plain model's and those of select (docs/results/smollm2.md).
USED_WITH = FocusConfig(chunk_size=256, boundaries="paragraph", plain_up_to=2048, focus_up_to=64)


def export(runs: Sequence[Path], target: Path) -> int:
    """Write the mean of the best adapters of some runs; returns its bytes.

    Runs that went on from the same adapter with other data lie near each other, and their mean may be better than each
    of them (Wortsman et al., 2022, "Model soups").
    """
    path, _ = named_model(SMOLLM2)
    base = load_model(path, device="cpu", dtype="float32").model
    loaded = [load_adapter(run / "best", base) for run in runs]
    projections, trained_with = loaded[0]
    states = [one.state_dict() for one, _ in loaded]
    projections.load_state_dict({name: torch.stack([one[name] for one in states]).mean(0) for name in states[0]})
    settings = USED_WITH.filled_from(trained_with)
    save_adapter(target, projections, base, trained_with=settings, base_id=SMOLLM2, dtype=torch.bfloat16)
    written = sorted(target.glob("focusllm_adapter.*"))
    for file in written:
        file.chmod(0o644)  # safetensors writes files that only their owner can read
    return sum(file.stat().st_size for file in written)


def main(arguments: Sequence[str] | None = None) -> None:
    """Export, and refuse what is too large."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=SMOLLM2_ADAPTER)
    given = parser.parse_args(arguments)
    size = export(given.runs, given.out)
    print(f"{size:,} bytes in {given.out}")
    if size > LIMIT:
        raise SystemExit(f"That is more than the {LIMIT:,} bytes that the package may carry.")


if __name__ == "__main__":
    main()
