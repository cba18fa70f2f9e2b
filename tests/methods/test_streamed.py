"""Chunks in host memory: the logits of chunks on the device, and never more than two copies there.

Both memories are the CPU's here; the way from one to the other is that of a GPU, without its streams.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from focus_core.attention import chunk_pass
from focus_core.cache import bus as bus_module
from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkRow, ChunkRun, ChunkSet
from focus_core.config import FocusConfig
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding
from tests.cases import ANSWERS, CASE, CHUNKINGS, QUESTIONS, Case, assert_equal_logits, forced, random_case, streamed
from tests.model_zoo import build, random_projections

CPU = torch.device("cpu")
LONG_PROMPT = random_case(prompt=20, local=30)  # takes the fused attention


def model_of(family: str = "llama", *, kv_dtype: str | None = None, parallel_chunks: int | None = None) -> FocusModel:
    base = build(family)
    sizes = {"chunk_size": 32, "local_window": 64, "dynamic_prompt": 32}
    config = FocusConfig(**sizes, kv_dtype=kv_dtype, parallel_chunks=parallel_chunks)
    return FocusModel(base, random_projections(base), config=config)


def logits_of(model: FocusModel, chunks: ChunkSet, case: Case) -> Tensor:
    decoding = FocusDecoding(model, chunks, [case.local], [case.prompt])
    return forced(decoding, [[token] for token in case.generated])


@pytest.mark.parametrize("kv_dtype", [None, "int8"], ids=["exact", "int8"])
@pytest.mark.parametrize("case", [CASE, LONG_PROMPT], ids=["short", "long"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3", "phi3"])
def test_bit_for_bit_as_on_the_device(family: str, case: Case, kv_dtype: str | None) -> None:
    """In tiles of the same chunks every number is computed in the same order."""
    model = model_of(family, kv_dtype=kv_dtype)
    resident = ChunkSet.of(model.prefill(case.chunks))
    wanted = logits_of(model, resident, case)
    assert torch.equal(logits_of(model, streamed(resident, Bus(CPU)), case), wanted)


@pytest.mark.parametrize("parallel_chunks", [None, 1, 3], ids=["all", "one", "three"])
@pytest.mark.parametrize("every", [1, 2], ids=["all_streamed", "half_streamed"])
@pytest.mark.parametrize("lengths", CHUNKINGS.values(), ids=CHUNKINGS)
def test_any_lengths_in_any_groups(lengths: list[int], every: int, parallel_chunks: int | None) -> None:
    """A copy of another chunk or layer would be read, or one that is written again already."""
    model, case = model_of(parallel_chunks=parallel_chunks), random_case(lengths, steps=2)
    resident = ChunkSet.of(model.prefill(case.chunks))
    wanted = logits_of(model, resident, case)
    for copied in (1, 3 * max(lengths) * model.bytes_per_layer):  # a chunk at a time, and at least three
        found = logits_of(model, streamed(resident, Bus(CPU, copy_bytes=copied), every=every), case)
        assert_equal_logits(found, wanted)


def test_questions_together_and_questions_that_leave() -> None:
    model = model_of()
    resident = ChunkSet.of(model.prefill(CASE.chunks))
    found = []
    for chunks in (resident, streamed(resident, Bus(CPU, copy_bytes=1))):
        decoding = FocusDecoding(model, chunks, [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS])
        logits = [*forced(decoding, [[answer[0] for answer in ANSWERS]])]
        decoding.keep([0, 3])
        found.append([*logits, decoding.step(torch.tensor([5, 7]))])
    for mine, theirs in zip(*found, strict=True):
        assert_equal_logits(mine, theirs)


@pytest.mark.parametrize("kv_dtype", [None, "int8"], ids=["exact", "int8"])
def test_scores_and_rows_of_the_plain_model(kv_dtype: str | None) -> None:
    """The two other ways to read chunks: likelihoods after each, and an ordinary cache that begins with them."""
    model, rows = model_of(kv_dtype=kv_dtype), dict[int, ChunkRow]()
    for read in model.prefill_passes(CASE.chunks, layers=model.parts.num_layers):
        rows |= read
    resident = ChunkSet.of([rows[index] for index in range(len(CASE.chunks))])
    moved = streamed(resident, Bus(CPU, copy_bytes=1))
    words = torch.tensor([CASE.prompt]), [0], [(0, len(CASE.prompt))]
    assert_equal_logits(model.likelihoods(moved, *words), model.likelihoods(resident, *words))
    prompts = [CASE.prompt] * len(CASE.chunks)
    wanted = PlainDecoding(model, prompts, resident.rows).start()
    assert_equal_logits(PlainDecoding(model, prompts, moved.rows).start(), wanted)


@pytest.mark.parametrize("copied", [1, 5])
def test_two_copies_at_most_and_each_layer_of_a_chunk_once_a_step(copied: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies would fill the device that has no bytes for the chunks, or cross the bus twice."""
    model, case = model_of(), random_case([16] * 12, prompt=2, local=24)
    resident = ChunkSet.of(model.prefill(case.chunks))
    of_chunk = resident.runs[0].block.nbytes // 12 // model.cached_layers
    bus, fetched, fetch = Bus(CPU, copy_bytes=copied * of_chunk), list[int](), ChunkRun.fetch
    chunks = streamed(resident, bus)
    decoding = FocusDecoding(model, chunks, [case.local], [case.prompt])
    decoding.start()

    def counted(run: ChunkRun, index: int) -> object:
        fetched.append(run.chunks)
        return fetch(run, index)

    monkeypatch.setattr(ChunkRun, "fetch", counted)
    decoding.step(torch.tensor([3]))
    assert max(fetched) == copied
    assert sum(fetched) == 12 * model.cached_layers
    assert bus.nbytes <= 2 * (copied * of_chunk + bus_module._SLACK)
    assert bus.missing_bytes(of_chunk) == 0


def test_the_next_copy_is_under_way_while_one_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without that a GPU waits for every copy."""
    model, case = model_of(), random_case([16] * 3, prompt=2, local=24)
    chunks = streamed(ChunkSet.of(model.prefill(case.chunks)), Bus(CPU, copy_bytes=1))
    order, fetch, attend = list[str](), ChunkRun.fetch, chunk_pass._attend_in_place

    def fetched(run: ChunkRun, index: int) -> object:
        order.append(f"copy {index}.{run.first}")
        return fetch(run, index)

    def computed(*args: Tensor, **more: object) -> Tensor:
        order.append("compute")
        return attend(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(ChunkRun, "fetch", fetched)
    monkeypatch.setattr(chunk_pass, "_attend_in_place", computed)
    FocusDecoding(model, chunks, [case.local], [case.prompt]).start()
    copies = [f"copy {layer}.{chunk}" for layer in range(model.cached_layers) for chunk in range(3)]
    alternating = [step for copy in copies[1:] for step in (copy, "compute")]
    assert order == [copies[0], *alternating, "compute"]


def test_chunks_on_the_device_are_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU there is one memory: a copy would be for nothing."""
    model = model_of()
    resident = ChunkSet.of(model.prefill(CASE.chunks))
    for run in resident.runs:
        keys, values = run.fetch(0)()
        assert keys.data_ptr() == run.block.keys[0, run.first].data_ptr()
        assert values.data_ptr() == run.block.values[0, run.first].data_ptr()
