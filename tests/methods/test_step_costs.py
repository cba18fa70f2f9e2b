"""What a decode step must not cost: a copy of the chunks, or logits that nobody asks for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding
from tests.allocations import Allocations
from tests.cases import focus_model, prefilled, random_case
from tests.model_zoo import build, random_projections, random_tokens

LONG = random_case([300, 300, 300, 300], prompt=6, local=8)  # all in one block
SHORT = random_case(prompt=6, local=8)


@contextmanager
def counting_logits(focus: FocusModel) -> Iterator[list[int]]:
    """Fills a list with the number of tokens of every pass through the head, of model and reader."""
    counts: list[int] = []

    def note(_: object, __: object, logits: Tensor) -> None:
        counts.append(logits.shape[:-1].numel())

    handles = [model.lm_head.register_forward_hook(note) for model in (focus.model, focus.candidate_model)]
    yield counts
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("parallel_chunks", [None, 2], ids=["one_pass", "groups"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_a_step_copies_no_chunk(family: str, parallel_chunks: int | None) -> None:
    """Chunks would be copied, or their grouped heads expanded, for every token: most of what a step takes."""
    model = build(family, head_dim=64)  # the heads have more dimensions than there are queries to a chunk
    focus = focus_model(model, random_projections(model), parallel_chunks=parallel_chunks)
    cache = prefilled(focus, LONG)
    (run,) = cache.runs
    one_chunk = run.layer(0)[0][0].nbytes
    decoding = FocusDecoding(focus, cache, [LONG.local] * 2, [LONG.prompt] * 2)
    decoding.start()
    with Allocations() as made:
        decoding.step(torch.tensor([3, 4]))
        focus.decode_candidates(cache, torch.tensor([[3, 5], [4, 6]]), decoding._appended)
    assert max(size for _, size in made.found) < one_chunk


@pytest.mark.parametrize("parallel_chunks", [None, 2], ids=["one_pass", "groups"])
def test_logits_of_the_last_token_only(parallel_chunks: int | None) -> None:
    """With a large vocabulary, logits of a whole local context take more memory than the model's layers."""
    model = build("llama")
    focus = focus_model(model, random_projections(model), parallel_chunks=parallel_chunks)
    decoding = FocusDecoding(focus, prefilled(focus, SHORT), [SHORT.local] * 2, [SHORT.prompt] * 2)
    with counting_logits(focus) as counts:
        decoding.start()
        decoding.step(torch.tensor([3, 4]))
    assert counts == [2, 2]


def test_plain_decoding_makes_logits_of_the_last_token_only() -> None:
    focus = FocusModel(build("llama"))
    decoding = PlainDecoding(focus, [random_tokens(9, seed=1), random_tokens(5, seed=2)])
    with counting_logits(focus) as counts:
        decoding.start()
        decoding.step(torch.tensor([3, 4]))
    assert counts == [2, 2]
