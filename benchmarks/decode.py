"""Cost of an answer: our prefill and decode step against two alternatives, and against the floor of the machine.

    python -m benchmarks.decode                                      25M parameters; 4K, 8K, 16K, 32K tokens
    python -m benchmarks.decode --seq 8192 --runs 5 --json result.json
    python -m benchmarks.decode --seq 100000 --without full-attention
    python -m benchmarks.decode --device cuda --shape llama-3.1-8b --seq 131072 --chunk-size 2048

One model with random weights reads a random text and answers a question about it, in three ways (ways.py). Every run
measures all of them in turn; figures are medians over the runs, in seconds. Beside each stands its floor (floors.py),
how many times the floor ours is, and how many times faster ours is than another way.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import floors, machine, report
from benchmarks.floors import Shape, Work
from benchmarks.ways import FULL_ATTENTION, ONE_BY_ONE, OURS, WAYS, Measurement, Text
from focus_core.config import KV_DTYPES, FocusConfig
from focus_core.device import choose_device, choose_dtype
from focus_core.methods.focus import FocusModel

SHAPES = {
    "tiny": Shape(hidden=64, layers=3, heads=4, kv_heads=2, intermediate=96, vocabulary=96),
    "25m": Shape(hidden=512, layers=8, heads=8, kv_heads=2, intermediate=1536, vocabulary=2048),
    "smollm2-135m": Shape(hidden=576, layers=30, heads=9, kv_heads=3, intermediate=1536, vocabulary=49152),
    "llama-3.1-8b": Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocabulary=128256),
}

Runs = dict[str, list[Measurement]]  # of each way

_RESULTS = Path("runs/benchmark.json")
_WINDOW = 1 << 20  # positions: more than any text here has, so that full attention may read all of it
_TRAINED = 0.02  # by how much candidate projections differ from the model's own maps, as if they had been trained


@dataclass(frozen=True)
class Bench:
    """A model on this machine, and the size of the questions about a text."""

    shape: Shape
    focus: FocusModel
    rates: machine.Rates
    question: int
    new_tokens: int
    seed: int

    def run(self, ways: Sequence[str], tokens: int, chunk_sizes: Sequence[int], times: int) -> dict[int, Runs]:
        """Runs by chunk size: all ways in turn, again and again, so that a busy minute hits all of them."""
        texts = {size: self._text(tokens, size) for size in chunk_sizes}
        runs: dict[int, Runs] = {size: {way: [] for way in ways} for size in chunk_sizes}
        for _ in range(times):
            for size, text in texts.items():
                for way in ways:
                    # Full attention knows no chunks, and takes long: it is measured once for all chunk sizes.
                    if way != FULL_ATTENTION or size == chunk_sizes[0]:
                        runs[size][way].append(WAYS[way](self.focus, text))
        if FULL_ATTENTION in ways:
            runs = {
                size: {**of_size, FULL_ATTENTION: runs[chunk_sizes[0]][FULL_ATTENTION]}
                for size, of_size in runs.items()
            }
        return runs

    def summary(self, tokens: int, chunk_size: int, runs: Runs) -> dict[str, Any]:
        """Medians, floors and ratios, as JSON types."""
        chunks = [len(chunk) for chunk in self._text(tokens, chunk_size).chunks]
        floor = self._floors(chunks)
        ways = {way: _summary(of_way, floor[way]) for way, of_way in runs.items()}
        medians = {way: {name: figure["median"] for name, figure in s["seconds"].items()} for way, s in ways.items()}
        ours = medians[OURS]
        return {
            "tokens": tokens,
            "chunk_size": chunk_size,
            "chunks": len(chunks),
            "ways": ways,
            "ours_is_faster_by": {
                way: {name: seconds / ours[name] for name, seconds in of_way.items()}
                for way, of_way in medians.items()
                if way != OURS
            },
            "second_question_is_faster_by": ours["first_token"] / ours["second_question"],
            "cache_bytes_needed": self._cache_bytes(chunks),
            "largest_logit_difference": _largest_difference(runs),
        }

    def _cache_bytes(self, chunks: Sequence[int]) -> int:
        appended = len(chunks) * (self.question + self.new_tokens) * self.focus.cached_layers
        return self.focus.chunk_bytes(len(chunks), sum(chunks)) + appended * self.focus.bytes_per_layer

    def _text(self, tokens: int, chunk_size: int) -> Text:
        generator = torch.Generator().manual_seed(self.seed)

        def draw(count: int) -> Tensor:
            return torch.randint(0, self.shape.vocabulary, (count,), generator=generator)

        chunks = list(draw(tokens).split(chunk_size))
        return Text(chunks, draw(self.question)[None], draw(self.question)[None], draw(self.new_tokens))

    def _floors(self, chunks: Sequence[int]) -> dict[str, dict[str, float]]:
        """Seconds that no implementation can go below, by way and figure."""
        s, size, question = self.shape, self.focus.dtype.itemsize, self.question
        after = question + (self.new_tokens + 1) // 2  # tokens after each chunk in the middle one of the steps
        text = [floors.prefill(s, size, chunks)]
        local = floors.local_pass(s, size, len(chunks), after)
        first_local = floors.local_pass(s, size, len(chunks), question)
        first = [floors.together(s, size, floors.candidates(s, size, chunks, question, 0), first_local)]
        passes: dict[str, dict[str, list[Work]]] = {
            OURS: {
                "prefill": text,
                "first_token": text + first,
                "second_question": first,
                "step": [floors.together(s, size, floors.candidates(s, size, chunks, 2, after - 2), local)],
            },
            ONE_BY_ONE: {
                "first_token": [*(floors.one_chunk(s, size, tokens + question, 0) for tokens in chunks), first_local],
                "step": [*(floors.one_chunk(s, size, 2, tokens + after - 2) for tokens in chunks), local],
            },
            FULL_ATTENTION: {
                "first_token": [floors.full_attention(s, size, sum(chunks) + question, 0)],
                "step": [floors.full_attention(s, size, 1, sum(chunks) + after - 1)],
            },
        }
        return {
            way: {name: floors.seconds(work, self.rates) for name, work in of_way.items()}
            for way, of_way in passes.items()
        }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    device = choose_device(options.device)
    dtype = choose_dtype(options.dtype, device)
    ways = [way for way in WAYS if way not in options.without]
    bench = _bench(options, device, dtype)
    output: dict[str, Any] = {
        "conditions": machine.conditions(device, dtype),
        "arguments": vars(options),
        "parameters": sum(weight.numel() for weight in bench.focus.model.parameters()),
        "rates": asdict(bench.rates),
        "results": [],
    }
    report.print_conditions(output)
    for attention in options.attention:
        bench.focus.model.set_attn_implementation(attention)
        bench.run(ways, 2 * min(options.chunk_size), [min(options.chunk_size)], times=1)  # warms up
        for tokens in options.seq:
            for chunk_size, runs in bench.run(ways, tokens, options.chunk_size, options.runs).items():
                result = {"attention": attention, **bench.summary(tokens, chunk_size, runs)}
                output["results"].append(result)
                report.print_result(result)
    output["aims"] = list(report.aims(output["results"]))
    report.print_aims(output["aims"])
    report.write(options.json, output)


def _bench(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> Bench:
    shape = SHAPES[options.shape]
    torch.manual_seed(options.seed)
    with device:
        model = AutoModelForCausalLM.from_config(shape.config(_WINDOW), dtype=dtype).eval()
    config = FocusConfig(chunk_size=max(options.chunk_size), local_window=options.question, kv_dtype=options.kv_dtype)
    focus = FocusModel(model, config=config)
    with torch.no_grad():
        for weight in focus.projections.parameters():
            weight.add_(torch.randn_like(weight), alpha=_TRAINED)
    rows = 2 * -(-max(options.seq) // min(options.chunk_size))
    rates = machine.measure_rates((shape.hidden, shape.intermediate), rows, device=device, dtype=dtype)
    return Bench(shape, focus, rates, options.question, options.new_tokens, options.seed)


def _summary(runs: Sequence[Measurement], floor: dict[str, float]) -> dict[str, Any]:
    """Of one way."""
    return {
        "seconds": {
            name: {
                "median": median(run.seconds[name] for run in runs),
                "runs": [run.seconds[name] for run in runs],
                "floor": floor[name],
            }
            for name in runs[0].seconds
        },
        "cache_bytes": runs[0].cache_bytes,
        "peak_bytes": max((run.peak.highest for run in runs if run.peak.highest is not None), default=None),
        "bytes_before": runs[0].peak.before,
    }


def _largest_difference(runs: Runs) -> float | None:
    """Between our logits and those of the same method one by one."""
    if ONE_BY_ONE not in runs:
        return None
    ours, others = runs[OURS][0].logits, runs[ONE_BY_ONE][0].logits
    assert ours is not None
    assert others is not None
    return float((ours - others).abs().max())


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="25m", help="sizes of the model (default: %(default)s)")
    parser.add_argument("--seq", type=int, nargs="+", default=[4096, 8192, 16384, 32768], help="tokens of the text")
    parser.add_argument("--chunk-size", type=int, nargs="+", default=[512, 2048], help="tokens of a chunk")
    parser.add_argument("--question", type=int, default=64, help="tokens of the question (default: %(default)s)")
    parser.add_argument("--new-tokens", type=int, default=6, help="decode steps in a run (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="runs that a median is taken of (default: %(default)s)")
    parser.add_argument("--without", nargs="+", choices=[ONE_BY_ONE, FULL_ATTENTION], default=[], help="leave out")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="auto is bfloat16 on cuda, float32 on cpu")
    parser.add_argument("--kv-dtype", choices=KV_DTYPES, help="how ours keeps chunks (default: as --dtype)")
    parser.add_argument(
        "--attention",
        nargs="+",
        default=["sdpa"],
        help="what transformers uses for local context and full attention: sdpa, flash_attention_2 (default: sdpa)",
    )
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--json", type=Path, default=_RESULTS, help="file for all figures and conditions (default: %(default)s)"
    )
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
