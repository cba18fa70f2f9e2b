"""Where an adapter loses the answer: in reading the right chunk, on the way through the memory, or among other chunks.

    python -m recipes.smollm2.stages --data fairytale/ --output runs/stages --adapter runs/smollm2/mixed/best

Held-out questions, nats for a target of the answer and for its first token, from what the answer could have to what it
has:

    plain row         what the frozen model says after the right chunk, without projections
    candidate itself  what the right chunk's candidate says, as if it went on through the last layers
    right chunks      through the memory, of the chunks with the answer alone
    all chunks        through the memory, as in use

Where several chunks hold the answer, the first two take the one after which the whole answer is likeliest.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from focus_core.attention.candidates import LowRankChange
from focus_core.loading.named import SMOLLM2_ADAPTER
from focus_core.methods.focus import FocusModel
from focus_core.training.config import TrainingConfig
from focus_core.training.examples import SupervisedQuestion, TrainingExample
from focus_core.training.log import HELD_OUT_LOSS
from focus_core.training.loss import FocusLoss
from focus_core.training.validation import Validation
from recipes.smollm2.adapter import config_for, require_model, write_data

STAGES = ("plain row", "candidate itself", "right chunks", "all chunks")


def measure(focus: FocusModel, config: TrainingConfig) -> dict[str, tuple[float, float]]:
    """The mean loss of each stage: of all targets, and of first tokens.

    Args:
        config: with `validation`, whose questions mark their gold documents
    """
    examples = Validation(config, focus, config.model).examples[HELD_OUT_LOSS]
    found: dict[str, list[Tensor]] = {stage: [] for stage in STAGES}
    first, loss = list[bool](), FocusLoss(focus)
    with torch.no_grad():
        for example in examples:
            found["all chunks"].append(loss.target_losses(example))
            for question in example.questions:
                right = _with_right_chunks(example, question)
                found["right chunks"].append(loss.target_losses(right))
                found["plain row"].append(_likeliest(focus, right))
                with candidates_at_the_end(focus):
                    found["candidate itself"].append(_likeliest(focus, right))
                first += [target == 0 for target in question.targets]
    losses = {stage: torch.cat(of_stage) for stage, of_stage in found.items()}
    return {stage: (of.mean().item(), of[torch.tensor(first)].mean().item()) for stage, of in losses.items()}


def _with_right_chunks(example: TrainingExample, question: SupervisedQuestion) -> TrainingExample:
    chunks = [example.chunks[number] for number in question.teachers]
    return replace(example, chunks=chunks, questions=[replace(question, teachers=tuple(range(len(chunks))))])


def _likeliest(focus: FocusModel, example: TrainingExample) -> Tensor:
    """Losses of one question's targets, each from a row of its own, after the chunk that makes their sum least."""
    (question,) = example.questions
    of_chunks = []
    for chunk in example.chunks:
        rows = [[*chunk, *question.plain_prompt, *question.answer[:target]] for target in question.targets]
        logits = torch.cat([focus.model(torch.tensor([row]), logits_to_keep=1).logits[:, -1] for row in rows])
        wanted = torch.tensor([question.answer[target] for target in question.targets])
        of_chunks.append(F.cross_entropy(logits.float(), wanted, reduction="none"))
    return min(of_chunks, key=lambda losses: float(losses.sum()))


@contextmanager
def candidates_at_the_end(focus: FocusModel) -> Iterator[None]:
    """In this block the last token of every row that the base model reads is a candidate.

    In the last layer, where candidates have no query and output of their own, it takes the model's.
    """
    handles = []
    for index, attention in enumerate(focus.parts.attentions):
        for name, projection in focus.projections.layer(index).items():

            def changed(
                module: torch.nn.Module, given: tuple[Tensor], made: Tensor, projection: torch.nn.Module = projection
            ) -> Tensor:
                last = projection(given[0][:, -1:])
                last = made[:, -1:] + last if isinstance(projection, LowRankChange) else last
                return torch.cat([made[:, :-1], last], dim=1)

            handles.append(getattr(attention, name).register_forward_hook(changed))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the stages of each adapter."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.jsonl and val.jsonl")
    parser.add_argument("--output", type=Path, default=Path("runs/stages"))
    parser.add_argument("--adapter", type=Path, action="append", help="several times (default: that of the package)")
    parser.add_argument("--threads", type=int, help="(default: all)")
    given = parser.parse_args(arguments)
    require_model(given.threads)
    config = config_for(given.output, *write_data(given.data, given.output), steps=1, rank=32)
    for adapter in given.adapter or [SMOLLM2_ADAPTER]:
        focus = FocusModel.from_pretrained(config.model, adapter=adapter, device="cpu", dtype="float32")
        found = {stage: [round(loss, 3) for loss in losses] for stage, losses in measure(focus, config).items()}
        print(json.dumps({"adapter": str(adapter), **found}), flush=True)


if __name__ == "__main__":
    main()
