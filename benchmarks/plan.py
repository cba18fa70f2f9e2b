"""What `FocusEngine.plan` says of the seconds to the first token and of the memory, beside what then happens.

    python -m benchmarks.plan                                       embedded model, 8K and 32K tokens
    python -m benchmarks.plan --model FOLDER --adapter FOLDER --tokens 8192 --runs 5 --json result.json
    python -m benchmarks.plan --method select                       another method; its seconds are planned as the most
    python -m benchmarks.plan --tokens 32768 --memory               only the memory: no other program disturbs that

Each run is a fresh store in a new folder: cold with the files written, half of the text in memory, all of it in memory,
and all of it on disk (in the page cache of the system). Every time a plan is made and then the question asked. The
machine is measured anew for every run. Ratios are happened / planned; the aim is between 0.7 and 1.3 for the medians.
The plan knows nothing of other programs: on a loaded machine both figures jump, and so do their ratios.

Memory is what the process (or the GPU) takes at its peak, more than after a small question, while the text is read
and an answer of 16 tokens is made; the plan says `peak_bytes`. The aim is a ratio between 0.9 and 1.1. One length in
each process: what an earlier question has left to the allocator is taken again unseen.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import machine, report
from benchmarks.prepared import text_of
from focus_core import FocusEngine
from focus_core.config import FocusConfig

_QUESTION = "What is the access code of the amber falcon?"
_AIM = 0.3  # at most so far from what was planned
_AIM_OF_MEMORY = 0.1
_ANSWER = 16  # tokens
_SMALL = 500  # characters
CASES = ("cold", "half in memory", "in memory", "on disk")

Pairs = dict[str, list[tuple[float, float]]]  # planned and happened, by case


def run(options: argparse.Namespace, texts: Sequence[str]) -> Pairs:
    """All cases once, with a machine that has not been measured yet."""
    found: Pairs = {}
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(options, folder)
        engine.shared.calibration.clear()
        engine.store.memory.clear()
        for case in CASES:
            if case == "half in memory":
                engine = engine_of(options)  # without the folder, where everything is by now
                engine.store.memory.clear()
                engine.prepare(texts[0])
            elif case == "on disk":
                engine = engine_of(options, folder)
                engine.store.memory.clear()
            found[case] = [planned_and_happened(engine, texts)]
    return found


def planned_and_happened(engine: FocusEngine, texts: Sequence[str]) -> tuple[float, float]:
    plan = engine.plan(texts, _QUESTION, max_new_tokens=1)
    if plan.first_token is None:
        raise SystemExit(plan.problem)
    started = machine.now(engine.focus.device)
    engine.generate(_QUESTION, texts, max_new_tokens=1)
    return plan.first_token.now, machine.now(engine.focus.device) - started


def memory(options: argparse.Namespace, texts: Sequence[str]) -> dict[str, Any]:
    """Bytes that were planned, and those that the process then took."""
    engine = engine_of(options)
    engine.generate(_QUESTION, texts[0][:_SMALL], max_new_tokens=_ANSWER)
    engine.store.memory.clear()
    planned = engine.plan(texts, _QUESTION, max_new_tokens=_ANSWER, calibrate=False).peak_bytes
    with machine.peak_memory(engine.focus.device) as peak:
        engine.generate(_QUESTION, texts, max_new_tokens=_ANSWER)
    if peak.highest is None or peak.before is None:
        raise SystemExit("This system does not say how much memory a process takes.")
    taken = peak.highest - peak.before
    ratio = taken / planned
    return {"planned": planned, "taken": taken, "ratio": ratio, "met": abs(ratio - 1) <= _AIM_OF_MEMORY}


def memory_table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| tokens | planned, MiB | taken, MiB | taken / planned | within 10 % |", "|---|---|---|---|---|"]
    lines += [
        f"| {row['tokens']:,} | {row['planned'] / 2**20:,.0f} | {row['taken'] / 2**20:,.0f} | {row['ratio']:.2f} "
        f"| {'yes' if row['met'] else 'NO'} |"
        for row in rows
    ]
    return "\n".join(lines)


def engine_of(options: argparse.Namespace, store: str = "") -> FocusEngine:
    return FocusEngine.from_pretrained(
        options.model,
        adapter=options.adapter,
        config=FocusConfig(chunk_size=options.chunk_size, kv_dtype=options.kv_dtype, plain_up_to=0),
        method=options.method,
        device=options.device,
        progress=False,
        store=store,
    )


def summary(tokens: int, runs: Sequence[Pairs]) -> list[dict[str, Any]]:
    """Medians of each case."""
    rows = []
    for case in CASES:
        pairs = [pair for of_run in runs for pair in of_run[case]]
        ratios = [happened / planned for planned, happened in pairs]
        planned, happened = (median(figures) for figures in zip(*pairs, strict=True))
        row = {"tokens": tokens, "case": case, "planned": planned, "happened": happened, "ratio": median(ratios)}
        rows.append({**row, "ratios": ratios, "met": abs(median(ratios) - 1) <= _AIM})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| tokens | chunks are | planned, s | happened, s | happened / planned | from … to | within 30 % |"]
    lines.append("|---|---|---|---|---|---|---|")
    for row in rows:
        lines.append(
            f"| {row['tokens']:,} | {row['case']} | {row['planned']:.3f} | {row['happened']:.3f} | {row['ratio']:.2f} "
            f"| {min(row['ratios']):.2f} … {max(row['ratios']):.2f} | {'yes' if row['met'] else 'NO'} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    engine = engine_of(options)
    conditions = {
        **machine.conditions(engine.focus.device, engine.focus.dtype),
        "model": engine.shared.loaded.model_id,
        "method": options.method,
        "chunk_size": engine.config.chunk_size,
        "kv_dtype": options.kv_dtype,
        "runs": options.runs,
    }
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    rows, of_memory = list[dict[str, Any]](), list[dict[str, Any]]()
    for tokens in options.tokens:
        texts = [text_of(engine, tokens // 2, seed) for seed in (0, 1)]
        counted = sum(map(engine.count_tokens, texts))
        of_memory.append({"tokens": counted, **memory(options, texts)})
        if not options.memory:
            rows += summary(counted, [run(options, texts) for _ in range(options.runs)])
    print(f"\n{memory_table(of_memory)}")
    if rows:
        print(f"\n{table(rows)}\n\nOther programs that run meanwhile spoil seconds and their ratio: see load_before.")
    if options.json:
        report.write(options.json, {"conditions": conditions, "rows": rows, "memory": of_memory})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--adapter", help="folder or hub id")
    parser.add_argument("--method", default="focus", help="(default: %(default)s)")
    parser.add_argument("--kv-dtype", help="int8, or that of the model")
    parser.add_argument("--device", default="cpu", help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768], help="(default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, help="(default: what suits the model)")
    parser.add_argument("--runs", type=int, default=3, help="(default: %(default)s)")
    parser.add_argument("--memory", action="store_true", help="only the memory")
    parser.add_argument("--json", type=Path, help="where the figures go, besides the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
