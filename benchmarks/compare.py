"""Two source trees side by side: prefill and decode step, in turn, so that a busy minute hits both.

    python -m benchmarks.compare /path/to/old/tree /path/to/new/tree
    python -m benchmarks.compare old new --rounds 15 --threads 1

Each tree has a process of its own (`compare_worker.py`), which works only while the other one waits. A round measures
the old tree, then the new one. Printed are the conditions, the medians over the rounds, the ratio of the medians
(new / old: below 1 is faster), and the smallest and the largest ratio within a round: a difference that is smaller than
their spread may be noise.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import machine
from benchmarks.decode import SHAPES

_WORKER = Path(__file__).with_name("compare_worker.py")
_WINDOW = 1 << 16  # positions


@dataclass(frozen=True)
class Comparison:
    """Seconds by figure, one value per round.

    Attributes:
        difference: the largest difference between the two trees' logits
    """

    old: dict[str, list[float]]
    new: dict[str, list[float]]
    difference: float

    def lines(self) -> list[str]:
        """A table."""
        found = [f"{'':20}{'old, ms':>10}{'new, ms':>10}{'new/old':>9}   within a round"]
        for name, old in self.old.items():
            new = self.new[name]
            ratios = sorted(after / before for before, after in zip(old, new, strict=True))
            found.append(
                f"{name:20}{median(old) * 1e3:10.2f}{median(new) * 1e3:10.2f}{median(new) / median(old):9.3f}"
                f"   {ratios[0]:.3f} – {ratios[-1]:.3f}"
            )
        return [*found, f"largest difference of logits: {self.difference:.1e}"]


class Worker:
    """The process of one tree."""

    def __init__(self, tree: Path, asked: dict[str, Any]) -> None:
        # OMP_WAIT_POLICY: threads of the tree that waits must not spin on the other one's cores.
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_WAIT_POLICY": "passive"}
        self._process = subprocess.Popen(
            [sys.executable, "-P", _WORKER, json.dumps(asked)],  # -P: nothing beside the worker is imported
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=tree,
            env=environment,
        )
        imported = Path(self._answer()["focus_core"])
        if imported.resolve().parent != tree.resolve():
            raise SystemExit(f"{tree} holds no focus_core: {imported} was imported.")

    def measure(self) -> dict[str, Any]:
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"The worker ended with exit code {self._process.wait()}.")
        found: dict[str, Any] = json.loads(line)
        return found


def compare(old: Path, new: Path, asked: dict[str, Any], rounds: int) -> Comparison:
    """Both trees in turn, `rounds` times, after one round that does not count."""
    with ExitStack() as open_workers:
        workers = [Worker(tree, asked) for tree in (old, new)]
        for worker in workers:
            open_workers.callback(worker.close)
        warm = [worker.measure() for worker in workers]
        measured = [[worker.measure()["seconds"] for worker in workers] for _ in range(rounds)]
    before, after = (torch.tensor(one["logits"]) for one in warm)
    seconds = [{name: [found[tree][name] for found in measured] for name in measured[0][0]} for tree in (0, 1)]
    return Comparison(*seconds, float((before - after).abs().max()))


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    asked = {
        "model": _llama(options.shape),
        "chunks": options.chunks,
        "chunk_size": options.chunk_size,
        "question": options.question,
        "questions": options.questions,
        "steps": options.steps,
        "threads": options.threads or torch.get_num_threads(),
    }
    conditions = {**machine.conditions(torch.device("cpu"), torch.float32), "threads": asked["threads"]}
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    print(f"old: {_described(options.old)}  new: {_described(options.new)}")
    print(
        f"{options.shape}: {options.chunks} chunks of {options.chunk_size}, questions of {options.question} tokens, "
        f"median of {options.steps} steps, {options.rounds} rounds"
    )
    print("\n".join(compare(options.old, options.new, asked, options.rounds).lines()))


def _llama(shape: str) -> dict[str, Any]:
    config = SHAPES[shape].config(_WINDOW)
    return {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}


def _described(tree: Path) -> str:
    """A tree and its commit."""
    command = ["git", "-C", str(tree), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True)
    return f"{tree} ({done.stdout.strip() or 'no commit'})"


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="source tree: a folder with focus_core in it")
    parser.add_argument("new", type=Path, help="source tree that is compared with it")
    parser.add_argument("--shape", choices=SHAPES, default="25m", help="sizes of the model (default: %(default)s)")
    parser.add_argument("--chunks", type=int, default=16, help="(default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, default=512, help="tokens of a chunk (default: %(default)s)")
    parser.add_argument("--question", type=int, default=64, help="tokens of a question (default: %(default)s)")
    parser.add_argument("--questions", type=int, nargs="+", default=[1, 4], help="how many are asked together")
    parser.add_argument("--steps", type=int, default=12, help="decode steps in a round (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="rounds (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
