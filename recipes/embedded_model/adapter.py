"""Step 4: trains the candidate projections: `python -m recipes.embedded_model.adapter --base FOLDER --text FOLDER`.

Made on the fly: every example is one long document cut into chunks, with facts, keys and passages in it, and a handful
of questions. Example number i depends on i alone, so a training that is stopped and resumed sees the same data.
"""

from __future__ import annotations

import argparse
import random
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from focus_core.config import FocusConfig
from focus_core.methods.focus import FocusModel
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.training.config import TrainingConfig
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.trainer import train
from recipes.embedded_model.data import Sampler
from recipes.embedded_model.documents import Asked, chunked_repeats, draw_chunk_size, log_uniform, text_document
from recipes.embedded_model.texts import read_texts

USED_WITH = FocusConfig(chunk_size=896, local_window=512, dynamic_prompt=128)
REPEATS_SHARE = 0.15  # of the examples with small chunks that are random tokens
MOST_ROWS = 200  # chunks times questions, unless the chunks alone are more
MORE_TARGETS = 3  # of an answer, besides the first two that only the document determines


@dataclass(frozen=True)
class Level:
    """From which share of the training on: how many tokens a document may have, and how large its chunks may be."""

    start: float
    tokens: int
    chunk_sizes: tuple[int, int]


# With many chunks the difficulty is to know, in all the others, that the fact is not there: many small ones come early.
LEVELS = (
    Level(0.00, 4096, (32, 896)),
    Level(0.40, 12288, (48, 1024)),
)


class Examples:
    """Example number i of the training."""

    def __init__(self, sampler: Sampler, total: int, seed: int) -> None:
        self.sampler, self.total, self.seed = sampler, total, seed

    def __call__(self, number: int) -> TrainingExample:
        rng = random.Random(f"{self.seed}/adapter/{number}")
        # A share of the examples is of an earlier, easier level.
        progress = number / self.total * (1.0 if rng.random() < 0.8 else rng.random())
        level = [level for level in LEVELS if level.start <= progress][-1]
        size = draw_chunk_size(rng, *level.chunk_sizes)
        most = max(2, level.tokens // size)
        tokens = size * (log_uniform(rng, 1, most) if rng.random() < 0.6 else rng.randint(1, most))
        layout = self._layout(size)
        make = chunked_repeats if size <= 128 and rng.random() < REPEATS_SHARE else text_document
        ids, asked = make(self.sampler, rng, tokens)
        chunks = [chunk.row for chunk in layout.document_chunks(TokenizedDocument.of_tokens(ids))]
        asked = rng.sample(asked, min(len(asked), max(2, MOST_ROWS // len(chunks))))
        return TrainingExample(chunks, [self._question(rng, layout, one) for one in asked])

    def _layout(self, size: int) -> Layout:
        config = FocusConfig(chunk_size=size, local_window=512, dynamic_prompt=128, window=2048)
        return Layout(config.resolve(2048), self.sampler.bos)

    def _question(self, rng: random.Random, layout: Layout, asked: Asked) -> SupervisedQuestion:
        """Of the tokens that only the document determines, the first two and a few others; of the rest, one."""
        row, first = asked.row, next(index for index, weight in enumerate(asked.row.weights) if weight)
        sought, end = asked.sought_from - first, len(row.ids) - first
        later = range(min(sought + 2, end), end)
        targets = {*range(sought, min(sought + 2, end)), *rng.sample(later, min(len(later), MORE_TARGETS))}
        targets |= set(rng.sample(range(sought), min(sought, 1)))
        prompt = layout.prompt(row.ids[1:first])
        return SupervisedQuestion.of(layout, prompt, row.ids[first:], targets=sorted(targets))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", type=Path, default=Path("runs/embedded/memory2"))
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/adapter"))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--accumulation", type=int, default=1)
    parser.add_argument("--learning-rate", type=float, default=5e-4)
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--precision", default="bf16")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.float32).to(args.device)
    config = TrainingConfig(
        output=args.out,
        steps=args.steps,
        learning_rate=args.learning_rate,
        optimizer=args.optimizer,
        warm_up=50,
        accumulation=args.accumulation,
        mixed_precision=args.precision,
        betas=(0.9, 0.98),
        used_with=USED_WITH,
        save_every=100,
        seed=args.seed,
        device=args.device,
    )
    examples = Examples(Sampler(tokenizer, read_texts(args.text).train), args.steps * args.accumulation, args.seed)
    train(config, model=FocusModel(model, config=FocusConfig(window=2048)), examples=examples)


if __name__ == "__main__":
    main()
