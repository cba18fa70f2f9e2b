"""The three calls change nothing that they are given, and a batch can lose and gain questions at any step."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.methods.base import Decoding
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding
from tests.cases import Case, assert_equal_logits, focus_model, prefilled, random_case
from tests.model_zoo import build, random_projections, random_tokens
from tests.reference import Reference

CASE = random_case([24, 24, 15])
QUESTIONS = [
    CASE.asking(prompt=prompt, local=local, seed=seed)
    for prompt, local, seed in [(9, 14, 21), (4, 30, 22), (12, 12, 23), (1, 1, 24), (17, 20, 25)]
]
ANSWERS = [random_tokens(9, seed=seed) for seed in (31, 32, 33, 34, 35)]


@pytest.fixture(scope="module")
def focus() -> FocusModel:
    model = build("llama")
    return focus_model(model, random_projections(model))


@pytest.fixture(scope="module")
def reference(focus: FocusModel) -> Reference:
    return Reference(focus.model, focus.projections)


def _first_logits(focus: FocusModel, chunks: ChunkSet, question: Case) -> Tensor:
    memory = focus.decode_candidates(chunks, torch.tensor([question.prompt]))
    return focus.next_token_logits(torch.tensor([question.local]), memory)


def test_any_order_of_calls_gives_the_logits_of_a_fresh_copy(focus: FocusModel, reference: Reference) -> None:
    """A second question on the same chunks took its first token for the first question's candidate, in silence."""
    chunks = prefilled(focus, CASE)
    wanted = [reference.logits(CASE.chunks, question.prompt, question.local) for question in QUESTIONS]
    memories = [focus.decode_candidates(chunks, torch.tensor([question.prompt])) for question in QUESTIONS]
    for index in (3, 0, 4, 1, 2, 0):
        found = focus.next_token_logits(torch.tensor([QUESTIONS[index].local]), memories[index])
        assert_equal_logits(found[0], wanted[index])
    for index in (2, 2, 0):
        assert_equal_logits(_first_logits(focus, chunks, QUESTIONS[index])[0], wanted[index])


def test_steps_need_what_was_appended_and_leave_the_chunks(focus: FocusModel, reference: Reference) -> None:
    """Two answers over the same chunks, step by step in turn, each with a cache of its own."""
    chunks = prefilled(focus, CASE)
    kept = [(run.block.keys.clone(), run.block.values.clone()) for run in chunks.runs]
    appended = [focus.start_answer(chunks) for _ in range(2)]
    for cache, question in zip(appended, QUESTIONS, strict=False):
        focus.decode_candidates(chunks, torch.tensor([question.prompt]), cache)
    for step in range(1, 4):
        for cache, question, answer in zip(appended, QUESTIONS, ANSWERS, strict=False):
            previous, new = [question.prompt[-1], *answer][step - 1 : step + 1]
            local = torch.tensor([question.local + answer[:step]])
            logits = focus.decode_step(chunks, torch.tensor([[previous, new]]), local, cache)
            wanted = reference.logits(CASE.chunks, question.prompt, question.local, answer[:step])
            assert_equal_logits(logits[0], wanted)
    for run, (keys, values) in zip(chunks.runs, kept, strict=True):
        assert torch.equal(run.block.keys, keys)
        assert torch.equal(run.block.values, values)


def test_threads_share_chunks(focus: FocusModel, reference: Reference) -> None:
    chunks = prefilled(focus, CASE)
    wanted = [reference.logits(CASE.chunks, question.prompt, question.local) for question in QUESTIONS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda index: _first_logits(focus, chunks, QUESTIONS[index % 5]), range(20)))
    for index, logits in enumerate(found):
        assert_equal_logits(logits[0], wanted[index % 5])


def _decoding(focus: FocusModel, chunks: ChunkSet, plain: bool, questions: list[int]) -> Decoding:
    local = [QUESTIONS[index].local for index in questions]
    if plain:
        return PlainDecoding(focus, local)
    return FocusDecoding(focus, chunks, local, [QUESTIONS[index].prompt for index in questions])


@pytest.mark.parametrize("plain", [False, True], ids=["focus", "plain"])
@given(data=st.data())
@settings(max_examples=6, deadline=None)
def test_questions_come_and_go(focus: FocusModel, reference: Reference, plain: bool, data: st.DataObject) -> None:
    """Random arrivals and departures, each question against the oracle at every step."""
    chunks = prefilled(focus, CASE)
    waiting = list(range(5))
    running: list[int] = []
    done: dict[int, int] = {}
    decoding: Decoding | None = None

    def check(logits: Tensor, questions: list[int]) -> None:
        for row, index in enumerate(questions):
            question, answer = QUESTIONS[index], ANSWERS[index][: done[index]]
            if plain:
                with torch.no_grad():
                    wanted = focus.model(torch.tensor([question.local + answer])).logits[0, -1]
            else:
                wanted = reference.logits(CASE.chunks, question.prompt, question.local, answer)
            assert_equal_logits(logits[row], wanted)

    for _ in range(7):
        if running and decoding is not None:
            for index in running:
                done[index] += 1
            check(decoding.step(torch.tensor([ANSWERS[i][done[i] - 1] for i in running])), running)
            stay = [row for row in range(len(running)) if data.draw(st.booleans()) or data.draw(st.booleans())]
            if not stay:
                decoding, running = None, []
            elif len(stay) < len(running):
                decoding.keep(stay)
                running = [running[row] for row in stay]
        count = data.draw(st.integers(0, min(2, len(waiting))))
        new, waiting = waiting[:count], waiting[count:]
        if new:
            done |= dict.fromkeys(new, 0)
            joining = _decoding(focus, chunks, plain, new)
            check(joining.start(), new)
            if decoding is None:
                decoding = joining
            else:
                decoding.join(joining)
            running += new


@pytest.mark.parametrize("family", ["gemma2", "gemma3", "phi3", "qwen3", "stablelm", "smollm3"])
@pytest.mark.parametrize("plain", [False, True], ids=["focus", "plain"])
def test_joined_questions_of_every_kind_of_attention(family: str, plain: bool) -> None:
    """Soft caps, sliding windows, fused maps and layers without RoPE: padding that came by joining would be seen."""
    model = build(family)
    projections = random_projections(model)
    focus, reference = focus_model(model, projections), Reference(model, projections)
    chunks = prefilled(focus, CASE)
    first, second = _decoding(focus, chunks, plain, [0, 3]), _decoding(focus, chunks, plain, [1, 2])
    first.start()
    first.step(torch.tensor([ANSWERS[0][0], ANSWERS[3][0]]))
    second.start()
    first.join(second)
    counts = {0: 2, 3: 2, 1: 1, 2: 1}
    logits = first.step(torch.tensor([ANSWERS[i][count - 1] for i, count in counts.items()]))
    for row, (i, count) in enumerate(counts.items()):
        question, answer = QUESTIONS[i], ANSWERS[i][:count]
        if plain:
            with torch.no_grad():
                wanted = model(torch.tensor([question.local + answer])).logits[0, -1]
        else:
            wanted = reference.logits(CASE.chunks, question.prompt, question.local, answer)
        assert_equal_logits(logits[row], wanted)


@pytest.mark.parametrize("parallel_chunks", [None, 2])
@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "phi3", "smollm3"])
def test_ordinary_tokens_after_a_chunk_are_the_plain_model_on_that_chunk(
    family: str, parallel_chunks: int | None
) -> None:
    """What the model says after each chunk alone, from the chunks' keys and values of all layers."""
    model = build(family)
    focus = focus_model(model, random_projections(model), parallel_chunks=parallel_chunks)
    rows = {}
    for read in focus.prefill_passes(CASE.chunks, layers=focus.parts.num_layers):
        rows |= read
    chunks = ChunkSet.of([rows[2], rows[0], rows[1]])
    prompts = [QUESTIONS[0].prompt, QUESTIONS[4].prompt[-9:]]
    appended = focus.new_appended(chunks, [0, 0], layers=focus.parts.num_layers)
    found = focus.append(chunks, torch.tensor(prompts), appended)
    again = focus.append(chunks, torch.tensor([[5], [6]]), appended)
    for slot, chunk in enumerate((2, 0, 1)):
        for number, prompt in enumerate(prompts):
            with torch.no_grad():
                row = [*CASE.chunks[chunk], *prompt, [5, 6][number]]
                wanted = model(torch.tensor([row])).logits[0]
            assert_equal_logits(found[slot, number, 0], wanted[-2])
            assert_equal_logits(again[slot, number, 0], wanted[-1])
