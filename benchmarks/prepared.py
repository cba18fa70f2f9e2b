"""Read once, ask tomorrow: seconds to the first token, cold, from memory, and from disk in a new process.

    python -m benchmarks.prepared                                   embedded model, 8K and 32K tokens
    python -m benchmarks.prepared --model FOLDER --tokens 8192 --chunk-size 512 --runs 5 --json result.json
    python -m benchmarks.prepared --shape 25m --chunk-size 512      random weights of 25 million parameters
    python -m benchmarks.prepared --edits-only --tokens 131072      preparing anew, and again after an edit

The rival is what plain transformers offers: full attention over the same text by the same weights, its `DynamicCache`
saved with safetensors and loaded by a new process. It is timed beyond the model's window too, where its answers would
be worthless. `eight` are whole answers to eight questions about a text in memory. Figures are medians. Files lie
in the page cache of the system (`warm`), or it was asked to forget them before each run (`dropped`: it may refuse).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

from benchmarks import machine, report
from benchmarks.decode import SHAPES
from focus_core import FocusEngine
from focus_core.config import FocusConfig
from focus_core.evaluation.facts import filler_sentence

_QUESTIONS = [f"What is the access code of gate {number}?" for number in range(8)]
_ANSWER = 16  # tokens of each of the eight answers, at most
_WINDOW = 8192  # of random weights
_PIECE = 1024  # tokens of the rival's prefill that pass together
_CACHE = "plain.safetensors"

Seconds = dict[str, float]


def text_of(engine: FocusEngine, tokens: int, seed: int = 0) -> str:
    """Sentences in paragraphs, of about so many tokens."""
    rng = random.Random(seed)
    paragraphs: list[str] = []
    count = 0
    while count < tokens:
        paragraphs.append(" ".join(filler_sentence(rng) for _ in range(5)))
        count += engine.count_tokens(paragraphs[-1] + "\n\n")
    return "\n\n".join(paragraphs)


def random_model(shape: str, folder: Path) -> str:
    """A model of this shape with random weights and the embedded model's tokenizer, saved to `folder`."""
    tokenizer = deepcopy(FocusEngine.from_pretrained(progress=False).tokenizer)
    tokenizer.chat_template = None
    config = replace(SHAPES[shape], vocabulary=len(tokenizer)).config(_WINDOW)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def timed(work: Callable[[], object]) -> float:
    device = torch.device("cpu")
    start = machine.now(device)
    work()
    return machine.now(device) - start


def first_token(engine: FocusEngine, text: str, question: str = _QUESTIONS[0]) -> Any:
    return engine.generate(question, [text], max_new_tokens=1, method="focus")


def answer(engine: FocusEngine, text: str, question: Any) -> Any:
    """To questions about a text in memory."""
    return engine.generate(question, [text], max_new_tokens=_ANSWER, method="focus")


# --- ours -------------------------------------------------------------------------------------------------------------


def ours(options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Everything that is timed of this package, for a text of so many tokens."""
    engine = engine_of(options)
    text = text_of(engine, tokens)
    runs: dict[str, list[float]] = {}
    for _ in range(options.runs):
        engine.store.memory.clear()
        runs.setdefault("cold", []).append(timed(lambda: first_token(engine, text)))
        runs.setdefault("memory", []).append(timed(lambda: first_token(engine, text, _QUESTIONS[1])))
        runs.setdefault("eight, one by one", []).append(
            timed(lambda: [answer(engine, text, question) for question in _QUESTIONS])
        )
        runs.setdefault("eight at once", []).append(timed(lambda: answer(engine, text, _QUESTIONS)))
    with tempfile.TemporaryDirectory() as folder:
        writing = engine_of(options, folder)
        writing.store.memory.clear()
        runs["cold, and written"] = [timed(lambda: first_token(writing, text))]
        nbytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
        for name, drop in (("disk, warm", False), ("disk, dropped", True)):
            runs[name] = in_new_process(options, folder, text, drop=drop)
    runs |= edited(options, text)
    found: Seconds = {name: median(seconds) for name, seconds in runs.items()}
    return {"tokens": engine.count_tokens(text), "seconds": found, "store_bytes": nbytes}


def engine_of(options: argparse.Namespace, store: str | None = None, boundaries: str | None = None) -> FocusEngine:
    config = FocusConfig(chunk_size=options.chunk_size, boundaries=boundaries)
    return FocusEngine.from_pretrained(
        options.model,
        adapter=options.adapter,
        config=config,
        method="focus",
        progress=False,
        store=store or "",
        device="cpu",
    )


def edited(options: argparse.Namespace, text: str) -> dict[str, list[float]]:
    """Preparing the text anew, and again with one sentence new, with ends of chunks that the text decides.

    The sentence stands at another place each time: chunks near the last one would be known from the edit before.
    """
    again = list[float]()
    with tempfile.TemporaryDirectory() as folder:
        engine = engine_of(options, folder, "content")
        engine.store.memory.clear()
        anew = timed(partial(engine.prepare, [text]))
        for run in range(options.runs):
            place = text.index(". ", len(text) * (run + 1) // (options.runs + 1)) + 2
            changed = f"{text[:place]}This sentence is new, number {run}. {text[place:]}"
            again.append(timed(partial(engine.prepare, [changed])))
    return {"prepared": [anew], "edited": again}


def edits_only(options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """One line about edits of a text of so many tokens."""
    text = text_of(engine_of(options), tokens)
    seconds = {name: median(runs) for name, runs in edited(options, text).items()}
    times = f"{seconds['prepared']:.3f} s anew, {seconds['edited']:.3f} s after an edit"
    print(f"{tokens:,} tokens: {times}: {seconds['prepared'] / seconds['edited']:.1f} x sooner", flush=True)
    return {"tokens": tokens, "seconds": seconds}


def in_new_process(options: argparse.Namespace, folder: str, text: str, *, drop: bool) -> list[float]:
    """First tokens in a process that has read nothing; loading the model is not counted."""
    given = {"folder": folder, "text": text, "drop": drop}
    arguments = [sys.executable, "-m", "benchmarks.prepared", "--worker", *_passed_on(options)]
    run = subprocess.run(arguments, input=json.dumps(given), capture_output=True, text=True, check=False)
    if run.returncode:
        raise RuntimeError(run.stderr)
    answer: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    if answer["read"]:
        raise RuntimeError(f"the new process has read {answer['read']} tokens anew")
    seconds: list[float] = answer["seconds"]
    return seconds


def worker(options: argparse.Namespace) -> None:
    """What the new process does."""
    given = json.loads(sys.stdin.read())
    engine = engine_of(options, given["folder"])
    first_token(engine, "A text that warms up. " * 2000)
    seconds, read = [], 0
    for _ in range(options.runs):
        engine.store.memory.clear()
        if given["drop"]:
            forget_files(Path(given["folder"]))
        start = machine.now(torch.device("cpu"))
        answer = first_token(engine, given["text"])
        seconds.append(machine.now(torch.device("cpu")) - start)
        read += answer.usage.cache_creation
    print(json.dumps({"seconds": seconds, "read": read}))


def forget_files(folder: Path) -> None:
    """Ask the system to drop the files from its page cache."""
    for path in folder.rglob("*.safetensors"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


# --- the rival --------------------------------------------------------------------------------------------------------


def plain(options: argparse.Namespace, tokens: int) -> dict[str, Any]:
    """Full attention over the same text, its cache saved and loaded."""
    engine = engine_of(options)
    model, ids = engine.focus.model, torch.tensor([engine.tokenize(text_of(engine, tokens))])
    question = torch.tensor([engine.tokenize(_QUESTIONS[0])])
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        prefill = timed(
            lambda: [model(piece, past_key_values=cache, logits_to_keep=1) for piece in ids.split(_PIECE, 1)]
        )
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, _CACHE)
            states = {
                f"{index} {name}": getattr(layer, name)
                for index, layer in enumerate(cache.layers)
                for name in ("keys", "values")
            }
            written = timed(lambda: save_file(states, path))
            seconds = [timed(lambda: _from_file(model, path, question)) for _ in range(options.runs)]
    return {
        "prefill": prefill,
        "written": written,
        "from disk": median(seconds),
        "bytes": sum(s.nbytes for s in states.values()),
    }


def _from_file(model: Any, path: Path, question: torch.Tensor) -> None:
    states = load_file(path)
    cache = DynamicCache(config=model.config)
    for index in range(len(states) // 2):
        cache.update(states[f"{index} keys"], states[f"{index} values"], index)
    model(question, past_key_values=cache, logits_to_keep=1)


# --- the table --------------------------------------------------------------------------------------------------------


def table(result: dict[str, Any]) -> str:
    ours_, rival = result["ours"], result["plain"]
    seconds = ours_["seconds"]
    lines = [f"\n{ours_['tokens']:,} tokens; the store takes {ours_['store_bytes'] / 2**20:.0f} MiB"]
    for name, value in seconds.items():
        lines.append(f"{name:24}{value:10.3f} s{seconds['cold'] / value:10.1f} x sooner than cold")
    lines.append(
        f"{'eight at once':24}{seconds['eight, one by one'] / seconds['eight at once']:10.2f} x faster than one by one"
    )
    lines.append(f"{'edited':24}{seconds['prepared'] / seconds['edited']:10.1f} x sooner than prepared anew")
    if rival:
        ratios = rival["prefill"] / seconds["cold"], rival["from disk"] / seconds["disk, warm"]
        lines.append(f"{'plain: prefill':24}{rival['prefill']:10.3f} s{ratios[0]:10.1f} x our cold first token")
        lines.append(f"{'plain: from disk':24}{rival['from disk']:10.3f} s{ratios[1]:10.1f} x ours from disk")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or GGUF file (default: the embedded model)")
    parser.add_argument("--shape", choices=SHAPES, help="random weights of this shape, in place of a model")
    parser.add_argument("--adapter", help="of the model")
    parser.add_argument("--tokens", type=int, nargs="+", default=[8192, 32768], help="(default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, help="(default: the model's)")
    parser.add_argument("--runs", type=int, default=3, help="per figure (default: %(default)s)")
    parser.add_argument(
        "--plain-up-to", type=int, default=32768, help="tokens that the rival reads (default: %(default)s)"
    )
    parser.add_argument("--edits-only", action="store_true", help="nothing but preparing anew, and after edits")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.worker:
        worker(options)
        return
    with tempfile.TemporaryDirectory() as folder:
        if options.shape:
            options.model = random_model(options.shape, Path(folder))
        _run(options)


def _run(options: argparse.Namespace) -> None:
    conditions = machine.conditions(torch.device("cpu"), torch.float32)
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    print(
        f"model: {options.shape or options.model or 'embedded'}  chunk_size: {options.chunk_size}  runs: {options.runs}"
    )
    results = []
    for tokens in options.tokens:
        if options.edits_only:
            results.append(edits_only(options, tokens))
            continue
        result = {
            "ours": ours(options, tokens),
            "plain": plain(options, tokens) if tokens <= options.plain_up_to else None,
        }
        results.append(result)
        print(table(result), flush=True)
    if options.json:
        report.write(options.json, {"conditions": conditions, "results": results})


def _passed_on(options: argparse.Namespace) -> list[str]:
    given = {"--model": options.model, "--adapter": options.adapter, "--chunk-size": options.chunk_size}
    passed = [part for name, value in given.items() if value is not None for part in (name, str(value))]
    return [*passed, "--runs", str(options.runs)]


if __name__ == "__main__":
    main()
