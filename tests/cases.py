"""Chunks, a dynamic prompt, a local context and an answer, and what `FocusModel` and the oracle make of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections
from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkSet
from focus_core.config import FocusConfig
from focus_core.methods.base import Decoding
from focus_core.methods.focus import FocusDecoding, FocusModel
from tests.model_zoo import random_tokens
from tests.reference import Reference

TOLERANCE = 2e-5  # float32 rounding in the zoo stays under 1e-5; every mistake we could think of is above 2e-3

# What the authors' code computed, a folder for each of their checkpoints.
GOLDEN = sorted(path for path in (Path(__file__).parent / "data" / "golden").iterdir() if path.is_dir())


@dataclass(frozen=True)
class Case:
    """One question about some chunks; `generated` are the answer's tokens, given beforehand."""

    chunks: list[list[int]]
    prompt: list[int]
    local: list[int]
    generated: list[int]

    def asking(self, *, prompt: int, local: int, seed: int) -> Case:
        """Another question about the same chunks."""
        tokens = random_tokens(local, seed=seed)
        return replace(self, prompt=tokens[-prompt:], local=tokens)


def random_case(
    lengths: Sequence[int] = (24, 24, 24, 15, 31), *, prompt: int = 9, local: int = 14, steps: int = 3, seed: int = 5
) -> Case:
    """Chunks of the given lengths, unequal neighbours by default, and an answer of `steps` tokens."""
    chunks = [random_tokens(length, seed=100 * seed + i) for i, length in enumerate(lengths)]
    tokens = random_tokens(local + steps, seed=seed)
    return Case(chunks, tokens[:local][-prompt:], tokens[:local], tokens[local:])


CASE = random_case()
QUESTIONS = [
    CASE.asking(prompt=prompt, local=local, seed=seed)
    for prompt, local, seed in [(9, 14, 21), (4, 30, 22), (12, 12, 23), (1, 1, 24)]
]
ANSWERS = [random_tokens(5, seed=seed) for seed in (31, 32, 33, 34)]
CHUNKINGS = {
    "one": [20],
    "short_last": [16, 16, 16, 16, 3],
    "single_token_last": [16, 16, 1],
    "all_unequal": [5, 21, 1, 30, 12, 30],
    "sixty": [8] * 59 + [5],
}


def focus_model(
    model: PreTrainedModel,
    projections: CandidateProjections,
    *,
    parallel_chunks: int | None = None,
) -> FocusModel:
    """With sizes that suit every case; tensors in and tensors out do not depend on them."""
    config = FocusConfig(chunk_size=32, local_window=32, dynamic_prompt=16, parallel_chunks=parallel_chunks)
    return FocusModel(model, projections, config=config)


def prefilled(model: FocusModel, case: Case) -> ChunkSet:
    return ChunkSet.of(model.prefill(case.chunks))


def streamed(chunks: ChunkSet, bus: Bus, *, every: int = 1) -> ChunkSet:
    """The same chunks in host memory; with `every=2` each second one, and the others where they are."""
    made: dict[ChunkBlock, ChunkBlock] = {}
    rows = list[ChunkRow]()
    for number, (block, row) in enumerate(chunks.rows):
        if number % every:
            rows.append((block, row))
            continue
        if block not in made:
            made[block] = block.in_host_memory(block.chunks, bus)
        made[block].copy_row(row, block, row)
        rows.append((made[block], row))
    return ChunkSet.of(rows)


def computed(model: FocusModel, case: Case) -> Tensor:
    """Logits `[steps + 1, vocab]` of `FocusModel`, fed with the case's own answer."""
    decoding = FocusDecoding(model, prefilled(model, case), [case.local], [case.prompt])
    return forced(decoding, [[token] for token in case.generated])[:, 0]


def forced(decoding: Decoding, columns: Sequence[Sequence[int]]) -> Tensor:
    """Logits `[steps + 1, questions, vocab]`; `columns` are the tokens of all questions at each step."""
    return torch.stack([decoding.start(), *(decoding.step(torch.tensor(column)) for column in columns)])


def expected(reference: Reference, case: Case) -> Tensor:
    """The oracle's logits `[steps + 1, vocab]`."""
    answers = [case.generated[:step] for step in range(len(case.generated) + 1)]
    return torch.stack([reference.logits(case.chunks, case.prompt, case.local, answer) for answer in answers])


def assert_equal_logits(actual: Tensor, wanted: Tensor, *, atol: float = TOLERANCE) -> None:
    torch.testing.assert_close(actual.float(), wanted.float(), atol=atol, rtol=0.0)
