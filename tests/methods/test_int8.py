"""Chunks in eight bits: the answers of a cache that is dequantised as a whole, and never chunks of another kind."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from focus_core import FocusEngine
from focus_core import device as device_module
from focus_core.attention import chunk_pass
from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkRun, ChunkSet
from focus_core.config import FocusConfig
from focus_core.errors import OutOfMemoryError
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding
from tests.cases import CASE, Case, assert_equal_logits, forced, random_case
from tests.embedded import FACTS, needs_embedded, question_about
from tests.engines import QUESTION, A, B, C, cold, make_engine
from tests.model_zoo import build, random_projections

LONG_PROMPT = random_case(prompt=20, local=30)  # takes the fused attention


def model_of(model: PreTrainedModel, kv_dtype: str | None) -> FocusModel:
    config = FocusConfig(chunk_size=32, local_window=64, dynamic_prompt=32, kv_dtype=kv_dtype)
    return FocusModel(model, random_projections(model), config=config)


def rounded(states: Tensor, dim: int) -> Tensor:
    """Through whole numbers and back, for `[tokens, head_dim]`, one channel or one token at a time."""
    found = states.clone()
    for index in range(states.shape[1 if dim == 0 else 0]):
        line = found[:, index] if dim == 0 else found[index]
        scale = max(float(line.abs().max()) / 127, 1e-30)
        line.copy_(torch.tensor([round(float(number) / scale) * scale for number in line]))
    return found


def dequantised_whole(chunks: ChunkSet) -> ChunkSet:
    """The same chunks in float32, every number of them made from the exact one."""
    made: dict[int, ChunkBlock] = {}
    for run in chunks.runs:
        keys, values = run.block.keys.clone(), run.block.values.clone()
        for of_head in keys.flatten(0, 2):
            of_head.copy_(rounded(of_head, 0))
        for of_head in values.flatten(0, 2):
            of_head.copy_(rounded(of_head, 1))
        made[id(run.block)] = ChunkBlock(keys, values)
    return ChunkSet.of([(made[id(block)], row) for block, row in chunks.rows])


def logits_of(model: FocusModel, chunks: ChunkSet, case: Case) -> Tensor:
    decoding = FocusDecoding(model, chunks, [case.local], [case.prompt])
    return forced(decoding, [[token] for token in case.generated])


def all_layers(model: FocusModel) -> ChunkSet:
    rows: dict[int, ChunkRow] = {}
    for read in model.prefill_passes(CASE.chunks, layers=model.parts.num_layers):
        rows |= read
    return ChunkSet.of([rows[index] for index in range(len(CASE.chunks))])


def likelihoods(model: FocusModel, chunks: ChunkSet) -> Tensor:
    return model.likelihoods(chunks, torch.tensor([CASE.prompt]), [0], [(0, len(CASE.prompt))])


@pytest.mark.parametrize("case", [CASE, LONG_PROMPT], ids=["short", "long"])
@pytest.mark.parametrize("tile", [None, 1])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3"])
def test_equals_a_cache_that_is_dequantised_as_a_whole(
    family: str, tile: int | None, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales of another chunk, layer or token would multiply a number; prefill would read rounded keys."""
    base = build(family)
    exact, quantised = model_of(base, None), model_of(base, "int8")
    reference = ChunkSet.of(exact.prefill(case.chunks))
    wanted = logits_of(exact, dequantised_whole(reference), case)
    if tile:
        monkeypatch.setitem(chunk_pass._COPIED_PER_TILE, "cpu", tile)
    found = logits_of(quantised, ChunkSet.of(quantised.prefill(case.chunks)), case)
    assert_equal_logits(found, wanted)
    assert 1e-4 < (wanted - logits_of(exact, reference, case)).abs().max() < 0.5  # rounded, and not by much


def test_scores_and_rows_of_the_plain_model_go_on_from_the_same_numbers() -> None:
    """The two other ways to read chunks: likelihoods after each, and an ordinary cache that begins with them."""
    base = build("llama")
    exact, quantised = model_of(base, None), model_of(base, "int8")
    found, wanted = all_layers(quantised), dequantised_whole(all_layers(exact))
    assert_equal_logits(likelihoods(quantised, found), likelihoods(exact, wanted))
    rows = [CASE.prompt] * len(CASE.chunks)
    assert_equal_logits(
        PlainDecoding(quantised, rows, found.rows).start(), PlainDecoding(exact, rows, wanted.rows).start()
    )


@pytest.mark.parametrize("prompt", [2, 20])
def test_never_more_than_a_tile_is_dequantised(prompt: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of many chunks would exist a second time, four times as large."""
    model = model_of(build("llama"), "int8")
    case = random_case([16] * 12, prompt=prompt, local=24)
    chunks = ChunkSet.of(model.prefill(case.chunks))
    read, layer = list[int](), ChunkRun.layer

    def counted(run: ChunkRun, index: int) -> tuple[Tensor, Tensor]:
        read.append(run.chunks)
        return layer(run, index)

    monkeypatch.setattr(ChunkRun, "layer", counted)
    one = chunks.runs[0].block.keys[0, 0].numel()
    monkeypatch.setitem(chunk_pass._COPIED_PER_TILE, "cpu", 5 * one + 1)
    logits_of(model, chunks, case)
    assert max(read) == 5
    assert sum(read) % 12 == 0


@pytest.mark.parametrize("method", ["focus", "select", "experts"])
def test_chunks_of_one_kind_are_not_read_as_the_other(method: str) -> None:
    """Two engines of a model share its store: an exact answer would come from rounded chunks."""
    first = make_engine(kv_dtype="int8")
    exact = FocusEngine(first.shared, config=FocusConfig(**{**first.config.as_settings().as_dict(), "plain_up_to": 0}))
    exact.focus.trained = True
    created = first.generate(QUESTION, [A, B], max_new_tokens=8, method=method).usage.cache_creation
    answer = exact.generate(QUESTION, [A, B], max_new_tokens=8, method=method)
    assert answer.usage.cache_creation == created > 0
    assert answer.text == cold(QUESTION, [A, B], method=method)
    assert first.generate(QUESTION, [A, B], max_new_tokens=8, method=method).usage.cache_creation == 0
    assert exact.generate(QUESTION, [A, B], max_new_tokens=8, method=method).usage.cache_creation == 0


@pytest.mark.parametrize("method", ["focus", "select"])
def test_the_store_holds_a_fraction_and_the_engine_knows_it(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents would be refused that fit, or taken that do not."""
    held = {}
    for kv_dtype in (None, "int8"):
        engine = make_engine(kv_dtype=kv_dtype, method=method)
        chunks = {chunk.key: chunk for chunk in engine.prepare([A, B, C]).chunks}.values()
        planned = engine._planner.method(method).chunk_bytes(len(chunks), sum(map(len, chunks)))
        held[kv_dtype] = engine.store.memory.nbytes
        assert held[kv_dtype] == planned
    assert held["int8"] < 0.4 * held[None]  # heads of 8 numbers, for which scales weigh much

    monkeypatch.setattr(device_module, "free_memory", lambda _: held["int8"])
    make_engine(kv_dtype="int8", method=method).prepare([A, B, C])
    with pytest.raises(OutOfMemoryError, match="tokens"):
        make_engine(method=method).prepare([A, B, C])
    monkeypatch.setattr(device_module, "free_memory", lambda _: held["int8"] - 1)
    with pytest.raises(OutOfMemoryError, match="tokens"):
        make_engine(kv_dtype="int8", method=method).prepare([A, B, C])


@needs_embedded
@pytest.mark.slow
def test_the_embedded_model_finds_what_it_found() -> None:
    """Rounding would lose look-ups, which hang on a few keys."""
    text, rng = "The grass is green and the sky is blue. " * 50, random.Random(1)
    document = f"{text}{FACTS[3].statement(rng)} {text}{FACTS[1].statement(rng)} {text}"
    engines: Sequence[FocusEngine] = [FocusEngine.from_pretrained(kv_dtype=kv_dtype) for kv_dtype in (None, "int8")]
    questions = [question_about(fact) for fact in (FACTS[3], FACTS[1])]
    exact, rounded_ = (
        [a.text for a in engine.generate(questions, document, max_new_tokens=14, method="focus")] for engine in engines
    )
    assert exact == rounded_
    assert "71402" in exact[0]
    assert "Lisbon" in exact[1]
