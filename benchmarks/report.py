"""What benchmarks write and print: files of figures, tables of `decode.py`, and which of the aims a run meets."""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.ways import FULL_ATTENTION, ONE_BY_ONE, OURS

Result = dict[str, Any]  # as `Bench.summary` makes it

_FIGURES = ("prefill", "first_token", "second_question", "step")
_MIB = 1 << 20


def write(path: Path, output: dict[str, Any]) -> None:
    """All figures and their conditions, into a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(output, indent=2, default=str) + "\n")


def add_options(parser: ArgumentParser, results: Path) -> None:
    """Threads, seed, and the file for `write`, of benchmarks on one engine."""
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=results, help="file for all figures and conditions (default: %(default)s)"
    )


def print_conditions(output: dict[str, Any]) -> None:
    conditions, rates = output["conditions"], output["rates"]
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    print("  ".join(f"{name}: {value}" for name, value in output["arguments"].items() if value not in (None, [])))
    print(f"model: {output['parameters'] / 1e6:.1f} M parameters, random weights")
    print(
        f"measured: {rates['flops'] / 1e9:.0f} GFLOP/s (large matrices; floors use this), "
        f"{rates['flops_real_shape'] / 1e9:.0f} GFLOP/s (shape of a decode step), {rates['bytes'] / 1e9:.1f} GB/s"
    )


def print_result(result: Result) -> None:
    ways = result["ways"]
    print(f"\n{result['tokens']} tokens, {result['chunks']} chunks of {result['chunk_size']}, {result['attention']}")
    header = f"{'':16}{'ours':>10}{'floor':>10}{'x floor':>9}"
    others = [way for way in ways if way != OURS]
    print(header + "".join(f"{way:>18}{'floor':>10}{'ours is':>10}" for way in others))
    for name in _FIGURES:
        line = f"{name.replace('_', ' '):16}" + _ours(ways[OURS]["seconds"][name])
        print(line + "".join(_other(result, way, name) for way in others))
    for name in ("peak_bytes", "cache_bytes"):
        line = f"{name.replace('_bytes', ' MiB'):16}{_mib(ways[OURS][name]):>10}{'':19}"
        print(line + "".join(f"{_mib(ways[way][name]):>18}{'':20}" for way in others))
    print(f"caches: {_reserved_per_needed(result):.3f} of what the tokens need")
    if result["largest_logit_difference"] is not None:
        print(f"largest difference of logits, ours to one-by-one: {result['largest_logit_difference']:.1e}")


def _ours(figure: dict[str, float]) -> str:
    return f"{figure['median']:10.4f}{figure['floor']:10.4f}{figure['median'] / figure['floor']:9.2f}"


def _other(result: Result, way: str, name: str) -> str:
    figure = result["ways"][way]["seconds"].get(name)
    if figure is None:
        return f"{'–':>18}{'':20}"
    ratio = result["ours_is_faster_by"][way][name]
    return f"{figure['median']:18.4f}{figure['floor']:10.4f}{ratio:9.2f}x"


def _mib(size: int | None) -> str:
    return "–" if size is None else f"{size / _MIB:.1f}"


def _reserved_per_needed(result: Result) -> float:
    ratio: float = result["ways"][OURS]["cache_bytes"] / result["cache_bytes_needed"]
    return ratio


# --- aims -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Aim:
    """A figure that should reach `at_least`, or stay below `at_most`, in every result that it is about."""

    name: str
    about: Callable[[Result], bool]
    measured: Callable[[Result], float]
    at_least: float = 0.0
    at_most: float = float("inf")


def _step_per_floor(result: Result) -> float:
    step = result["ways"][OURS]["seconds"]["step"]
    ratio: float = step["median"] / step["floor"]
    return ratio


AIMS = (
    Aim(
        "decode step, 16 chunks of 512: times faster than one-by-one",
        about=lambda r: (r["chunks"], r["chunk_size"]) == (16, 512) and ONE_BY_ONE in r["ways"],
        measured=lambda r: r["ours_is_faster_by"][ONE_BY_ONE]["step"],
        at_least=6,
    ),
    Aim(
        "first token, 32K tokens: times faster than full attention",
        about=lambda r: r["tokens"] == 32768 and FULL_ATTENTION in r["ways"],
        measured=lambda r: r["ours_is_faster_by"][FULL_ATTENTION]["first_token"],
        at_least=3,
    ),
    Aim("decode step: times its floor", about=lambda r: True, measured=_step_per_floor, at_most=2.5),
    Aim("caches: times what the tokens need", about=lambda r: True, measured=_reserved_per_needed, at_most=1.1),
    Aim(
        "second question, 32K tokens in chunks of 2048: times faster than the first",
        about=lambda r: (r["tokens"], r["chunk_size"]) == (32768, 2048),
        measured=lambda r: r["second_question_is_faster_by"],
        at_least=10,
    ),
)


def aims(results: list[Result]) -> Iterator[dict[str, Any]]:
    """Each aim with its worst result; aims that no result is about are left out."""
    for aim in AIMS:
        measured = [aim.measured(result) for result in results if aim.about(result)]
        if measured:
            wanted = f"<= {aim.at_most}" if aim.at_least == 0 else f">= {aim.at_least}"
            worst = max(measured) if aim.at_least == 0 else min(measured)
            met = aim.at_least <= worst <= aim.at_most
            yield {"aim": aim.name, "wanted": wanted, "measured": worst, "met": met}


def print_aims(found: list[dict[str, Any]]) -> None:
    print()
    for aim in found:
        print(f"{'met ' if aim['met'] else 'MISSED'} {aim['measured']:8.2f}  ({aim['wanted']})  {aim['aim']}")
