"""Supervised tokens a second: the questions of one text together, against one target at a time with chunks read anew.

The questions together are learned twice: with the text's chunks read, and with chunks loaded from a folder, as in every
epoch but the first of a run with a `store`.

    python -m benchmarks.training                                  the 25M shape, four chunks of 256, five questions
    python -m benchmarks.training --shape smollm2-135m --rounds 3 --threads 1 --json runs/training.json

All ways learn the same targets with the same weights, in turn, and the gradients are compared: the largest relative
difference of a projection's gradient is printed beside the times. The alternative is what a loop over examples with one
question and one target would do; it uses the same loss.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from benchmarks import machine, report
from benchmarks.decode import SHAPES
from focus_core.config import FocusConfig
from focus_core.loading.adapters import fresh_projections
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.kept import KeptChunks
from focus_core.training.loss import FocusLoss

_WINDOW = 1 << 13  # positions
_ANSWER = 8  # tokens
_SLOWEST = "one at a time"


def make_example(model: FocusModel, options: argparse.Namespace) -> TrainingExample:
    """Made-up tokens in the lengths that are asked for."""
    rng, vocabulary = random.Random(options.seed), model.model.config.vocab_size
    layout = Layout(model.config, bos=0)

    def tokens(count: int) -> list[int]:
        return [rng.randrange(1, vocabulary) for _ in range(count)]

    text = TokenizedDocument.of_tokens(tokens(options.chunks * options.chunk_size))
    questions = []
    for _ in range(options.questions):
        targets = (0, *sorted(rng.sample(range(1, _ANSWER), options.targets - 1)))
        prompt = layout.prompt(tokens(options.question_tokens))
        questions.append(SupervisedQuestion.of(layout, prompt, tokens(_ANSWER), targets=targets))
    return TrainingExample([chunk.row for chunk in layout.document_chunks(text)], questions)


def one_at_a_time(example: TrainingExample) -> list[TrainingExample]:
    """An example for each target."""
    return [
        TrainingExample(
            example.chunks,
            [SupervisedQuestion(one.local_context, one.dynamic_prompt, one.answer[: target + 1], (target,))],
        )
        for one in example.questions
        for target in one.targets
    ]


def gradients(loss: FocusLoss, examples: Sequence[TrainingExample]) -> dict[str, Tensor]:
    """Of the mean over all targets."""
    loss.zero_grad(set_to_none=True)
    for example in examples:
        (loss(example) / len(examples)).backward()
    return {name: parameter.grad for name, parameter in loss.named_parameters() if parameter.grad is not None}


def measure(model: FocusModel, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of all ways, their ratios to the slowest, and how far their gradients differ."""
    example = make_example(model, options)
    with TemporaryDirectory() as folder:
        loaded = FocusLoss(model, kept=KeptChunks(Path(folder), model))
        gradients(loaded, [example])  # writes the files
        anew = FocusLoss(model)
        ways = {
            "together, chunks loaded": (loaded, [example]),
            "together": (anew, [example]),
            _SLOWEST: (anew, one_at_a_time(example)),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        found: dict[str, dict[str, Tensor]] = {}
        for _ in range(options.rounds):
            for name, (loss, examples) in ways.items():
                began = machine.now(model.device)
                found[name] = gradients(loss, examples)
                seconds[name].append(machine.now(model.device) - began)
    rates = {name: example.num_targets / median(of_way) for name, of_way in seconds.items()}
    return {
        "targets": example.num_targets,
        "seconds": seconds,
        "targets_per_second": rates,
        "faster_by": {name: rate / rates[_SLOWEST] for name, rate in rates.items() if name != _SLOWEST},
        "gradient_difference": max(
            float((found[way][name] - gradient).norm() / gradient.norm().clamp(min=1e-12))
            for way in ways
            for name, gradient in found[_SLOWEST].items()
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    base = AutoModelForCausalLM.from_config(SHAPES[options.shape].config(_WINDOW), attn_implementation="sdpa").eval()
    config = FocusConfig(chunk_size=options.chunk_size, dynamic_prompt=options.question_tokens)
    model = FocusModel(base, fresh_projections(base, rank=options.rank), config=config)
    output = {
        "conditions": machine.conditions(model.device, model.dtype),
        "arguments": vars(options),
        "results": measure(model, options),
    }
    result = output["results"]
    print("  ".join(f"{name}: {value}" for name, value in output["conditions"].items() if value is not None))
    for name, rate in result["targets_per_second"].items():
        ratio = result["faster_by"].get(name)
        print(f"{name:24} {rate:8.2f} targets a second" + (f", {ratio:.1f} times" if ratio else ""))
    print(f"gradients differ by {result['gradient_difference']:.1e} at most")
    if options.json:
        report.write(options.json, output)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="25m", help="sizes of the model (default: %(default)s)")
    parser.add_argument("--rank", type=int, help="low-rank projections (default: full copies)")
    parser.add_argument("--chunks", type=int, default=4, help="of the text (default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, default=256, help="tokens (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=5, help="about the text (default: %(default)s)")
    parser.add_argument("--question-tokens", type=int, default=40, help="of each (default: %(default)s)")
    parser.add_argument("--targets", type=int, default=2, help="of each answer (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="of all ways in turn (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads; by default torch's choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures and conditions")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
