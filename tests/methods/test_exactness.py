"""`FocusModel` computes what the paper defines: against the authors' own numbers and against the oracle."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from focus_core import device
from focus_core.attention import chunk_pass
from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.cache.chunks import ChunkSet
from focus_core.config import FocusConfig
from focus_core.errors import ConfigError, OutOfMemoryError
from focus_core.methods.continuation import continue_tokens
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding, shared_beginning
from tests.cases import (
    ANSWERS,
    CASE,
    CHUNKINGS,
    GOLDEN,
    QUESTIONS,
    TOLERANCE,
    Case,
    assert_equal_logits,
    computed,
    expected,
    focus_model,
    forced,
    prefilled,
    random_case,
)
from tests.model_zoo import BOS, FAMILIES, build, random_projections, random_tokens
from tests.reference import Reference

SHORT_CHUNKINGS = {name: lengths for name, lengths in CHUNKINGS.items() if name != "sixty"}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return build("llama")


@pytest.fixture(scope="module")
def projections(llama: PreTrainedModel) -> CandidateProjections:
    return random_projections(llama)


@pytest.fixture(scope="module")
def reference(llama: PreTrainedModel, projections: CandidateProjections) -> Reference:
    return Reference(llama, projections)


@pytest.fixture(scope="module")
def focus(llama: PreTrainedModel, projections: CandidateProjections) -> FocusModel:
    return focus_model(llama, projections)


# --- the authors' numbers, and the oracle -----------------------------------------------------------------------------


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden_vectors(folder: Path) -> None:
    """Loading a checkpoint of the authors would read its texts differently than their code does."""
    golden = load_file(folder / "golden.safetensors")
    model = FocusModel.from_pretrained(folder, device="cpu", dtype="float32")
    steps = len(golden["generated"])
    generation = continue_tokens(model, golden["input_ids"], max_new_tokens=steps, return_logits=True)
    assert generation.logits is not None
    rows = len(golden["logits"])  # the short input was recorded for its first step only
    assert_equal_logits(generation.logits[:rows], golden["logits"], atol=2e-5)  # both are float32, and rounded
    assert generation.tokens.tolist() == golden["generated"].tolist()


@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
@pytest.mark.long  # `test_groups_of_chunks` groups them in every way against the oracle
def test_golden_vectors_in_groups_of_chunks(folder: Path) -> None:
    """In float64, where no grouping rounds otherwise; what was recorded lies 2.7e-5 from it by its own rounding."""
    golden = load_file(folder / "golden.safetensors")
    steps, rows = len(golden["generated"]), len(golden["logits"])
    found = []
    for parallel_chunks in (None, 1, 3):
        config = FocusConfig(parallel_chunks=parallel_chunks)
        model = FocusModel.from_pretrained(folder, device="cpu", dtype="float64", config=config)
        generation = continue_tokens(model, golden["input_ids"], max_new_tokens=steps, return_logits=True)
        assert generation.tokens.tolist() == golden["generated"].tolist()
        assert generation.logits is not None
        found.append(generation.logits)
    assert_equal_logits(found[0][:rows], golden["logits"], atol=3e-5)
    for logits in found[1:]:
        assert_equal_logits(logits, found[0], atol=1e-6)


def test_golden_vectors_are_all_there() -> None:
    """An empty folder would make the test above pass without a single number."""
    assert len(GOLDEN) == 4


def _with_ranks(quick: tuple[str, ...]) -> Iterator[Any]:
    """Every family with full copies; low-rank projections differ in no family, so most of them are slow tests."""
    for family in FAMILIES:
        yield pytest.param(family, None, id=f"{family}-full")
        marks = [] if family in quick else [pytest.mark.slow]
        yield pytest.param(family, 4, id=f"{family}-low_rank", marks=marks)


@pytest.mark.parametrize(("family", "rank"), [*_with_ranks(("llama", "llama_bias", "gemma2", "phi3"))])
def test_equals_the_oracle(family: str, rank: int | None) -> None:
    """A family's attention, rotary embedding or cache would be used in another way than the family's own code does."""
    model = build(family)
    projections = random_projections(model, rank=rank)
    wanted = expected(Reference(model, projections), CASE)
    assert_equal_logits(computed(focus_model(model, projections), CASE), wanted)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3", "phi3", "cohere", "stablelm"])
def test_eager_base_models_equal_the_oracle(family: str) -> None:
    """Eager attention gets masks that sdpa does without: it would look ahead, or miss the memory."""
    model = build(family)
    model.set_attn_implementation("eager")
    projections = random_projections(model)
    focus = focus_model(model, projections)
    assert focus.model.config._attn_implementation == "eager"
    assert_equal_logits(computed(focus, CASE), expected(Reference(model, projections), CASE))


@pytest.mark.parametrize("family", FAMILIES)
def test_mistakes_show_in_the_logits(family: str) -> None:
    """With weights that hardly attend, a wrong order, a lost token or forgotten projections would pass all tests."""
    model = build(family)
    reference = Reference(model, random_projections(model))
    untrained = Reference(model, CandidateProjections(decoder_parts(model)))
    right = reference.logits(CASE.chunks, CASE.prompt, CASE.local)
    for mistake in (
        untrained.logits(CASE.chunks, CASE.prompt, CASE.local),
        reference.logits(CASE.chunks[::-1], CASE.prompt, CASE.local),
        reference.logits(CASE.chunks, CASE.prompt[1:], CASE.local),
        reference.logits([CASE.chunks[0][1:], *CASE.chunks[1:]], CASE.prompt, CASE.local),
    ):
        assert (right - mistake).abs().max() > 50 * TOLERANCE


def test_untrained_projections_are_the_models_own_maps(llama: PreTrainedModel) -> None:
    """A model without an adapter would be disturbed by projections that nobody trained."""
    parts = decoder_parts(llama)
    without = computed(focus_model(llama, CandidateProjections(parts)), CASE)
    low_rank = computed(focus_model(llama, CandidateProjections(parts, rank=2)), CASE)
    assert_equal_logits(low_rank, without)


# --- chunks -----------------------------------------------------------------------------------------------------------


@pytest.fixture(
    scope="module",
    params=[*SHORT_CHUNKINGS.values(), pytest.param(CHUNKINGS["sixty"], marks=pytest.mark.slow)],
    ids=CHUNKINGS,
)
def chunked(request: pytest.FixtureRequest, reference: Reference) -> tuple[Case, Tensor]:
    """A case, and the oracle's logits, which take longest and are the same for every grouping."""
    case = random_case(request.param, steps=2)
    return case, expected(reference, case)


@pytest.mark.parametrize("parallel_chunks", [None, 1, 3])
def test_groups_of_chunks(
    chunked: tuple[Case, Tensor], parallel_chunks: int | None, llama: PreTrainedModel, projections: CandidateProjections
) -> None:
    """How many chunks pass the model together would change the answer, or a group's border would lose a chunk."""
    case, wanted = chunked
    model = focus_model(llama, projections, parallel_chunks=parallel_chunks)
    assert_equal_logits(computed(model, case), wanted)


def test_tiles_of_attention(focus: FocusModel, reference: Reference, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that do not fit one tile of scores would be attended with another chunk's prompt."""
    scores_per_chunk = 4 * len(CASE.prompt) * (24 + len(CASE.prompt))
    for tile in (1, 2 * scores_per_chunk):  # one chunk at a time, then two of the three of equal length
        monkeypatch.setitem(chunk_pass._SCORES_PER_TILE, "cpu", tile)
        assert_equal_logits(computed(focus, CASE), expected(reference, CASE))


@pytest.mark.parametrize("family", ["llama", "gemma3", "smollm3"])
def test_no_chunk(family: str) -> None:
    """A text that is all local context would crash, or be read at other positions than the model's own."""
    model = build(family)
    projections = random_projections(model)
    case = random_case([])
    logits = computed(focus_model(model, projections), case)
    assert_equal_logits(logits, expected(Reference(model, projections), case))
    plain = model(torch.tensor([case.local])).logits[0, -1]
    assert_equal_logits(logits[0], plain.detach())


def test_order_and_origin_of_chunks(focus: FocusModel, reference: Reference) -> None:
    """Chunks of several documents, asked in an order of the user's, would get each other's slots in the memory."""
    first, second = random_case([24, 24, 24], seed=1), random_case([24, 10], seed=2)
    blocks = [(run.block, case) for case in (first, second) for run in prefilled(focus, case).runs]
    (a, _), (b, _), (c, _) = blocks
    rows = [(c, 0), (a, 2), (a, 0), (b, 0), (a, 1), (a, 2)]
    chunks = [
        second.chunks[1],
        *(first.chunks[i] for i in (2, 0)),
        second.chunks[0],
        *(first.chunks[i] for i in (1, 2)),
    ]
    decoding = FocusDecoding(focus, ChunkSet.of(rows), [CASE.local], [CASE.prompt])
    logits = forced(decoding, [[token] for token in CASE.generated])[:, 0]
    asked = random_case(steps=3)
    wanted = [reference.logits(chunks, asked.prompt, asked.local, asked.generated[:step]) for step in range(4)]
    assert_equal_logits(logits, torch.stack(wanted))


def test_documents_that_end_in_shorter_chunks_make_few_runs(focus: FocusModel) -> None:
    """With a run for every change of length, a step over many documents would go through them one by one."""
    case = random_case([24, 24, 10, 24, 24, 11, 24, 10])
    cache = prefilled(focus, case)
    assert [run.chunks for run in cache.runs] == [5, 2, 1]
    lengths = [len(case.chunks[chunk]) for chunk in cache.order]
    assert cache.lengths.tolist() == lengths


@pytest.mark.parametrize("parallel_chunks", [None, 2])
def test_slots_are_in_the_order_of_the_chunks(
    llama: PreTrainedModel, projections: CandidateProjections, parallel_chunks: int | None
) -> None:
    focus = focus_model(llama, projections, parallel_chunks=parallel_chunks)
    case = random_case([24, 10, 24, 11, 10])
    prompt = torch.tensor([case.prompt])
    memory = focus.decode_candidates(prefilled(focus, case), prompt)
    for slot, chunk in enumerate(case.chunks):
        alone = focus.decode_candidates(ChunkSet.of(focus.prefill([chunk])), prompt)
        torch.testing.assert_close(memory.values[:, :, :, slot], alone.values[:, :, :, 0], atol=2e-5, rtol=0)


def test_questions_leave_stored_chunks_as_they_are(focus: FocusModel) -> None:
    """A question would write into chunks that the next question reads."""
    stored = prefilled(focus, CASE)
    before = [(run.block.keys.clone(), run.block.values.clone()) for run in stored.runs]
    answers = []
    for _ in range(2):
        decoding = FocusDecoding(focus, stored, [CASE.local], [CASE.prompt])
        answers.append(forced(decoding, [[token] for token in CASE.generated]))
    for run, (keys, values) in zip(stored.runs, before, strict=True):
        assert torch.equal(run.block.keys, keys)
        assert torch.equal(run.block.values, values)
    assert torch.equal(answers[0], answers[1])


def test_prefill_reports_progress(llama: PreTrainedModel, projections: CandidateProjections) -> None:
    """A progress bar would jump back, stop before the end, or count beyond it."""
    seen: list[tuple[int, int]] = []
    model = focus_model(llama, projections, parallel_chunks=2)
    model.prefill(CASE.chunks, progress=lambda done, all_: seen.append((done, all_)))
    done = [chunks for chunks, _ in seen]
    assert done == sorted(set(done))
    assert max(b - a for a, b in zip([0, *done], done, strict=False)) <= 2
    assert seen[-1] == (5, 5)


# --- questions --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel_chunks", [None, 2], ids=["one_pass", "groups"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gemma3", "phi3", "cohere", "stablelm", "smollm3"])
def test_questions_together_equal_each_alone(family: str, parallel_chunks: int | None) -> None:
    """Padding would be seen, or questions of other lengths would stand at wrong positions."""
    model = build(family)
    projections = random_projections(model)
    reference = Reference(model, projections)
    focus = focus_model(model, projections, parallel_chunks=parallel_chunks)
    locals_, prompts = [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS]
    decoding = FocusDecoding(focus, prefilled(focus, CASE), locals_, prompts)
    logits = forced(decoding, [[answer[step] for answer in ANSWERS] for step in range(2)])
    for i, (question, answer) in enumerate(zip(QUESTIONS, ANSWERS, strict=True)):
        for step in (0, 2):
            wanted = reference.logits(question.chunks, question.prompt, question.local, answer[:step])
            assert_equal_logits(logits[step, i], wanted)


@pytest.mark.parametrize("parallel_chunks", [None, 2, 5])
def test_a_step_is_one_pass_unless_chunks_need_several(parallel_chunks: int | None, llama: PreTrainedModel) -> None:
    """Weights would be read twice for every token."""
    focus = focus_model(copy.deepcopy(llama), random_projections(llama), parallel_chunks=parallel_chunks)
    decoding = FocusDecoding(focus, prefilled(focus, CASE), [CASE.local], [CASE.prompt])
    decoding.start()
    tokens: list[int] = []
    for model in (focus.model, focus.candidate_model):
        model.get_decoder().embed_tokens.register_forward_hook(lambda _, given, __: tokens.append(given[0].numel()))
    decoding.step(torch.tensor([3]))
    local = len(CASE.local) + 1
    assert tokens == ([4, 4, 2, local] if parallel_chunks == 2 else [2 * len(CASE.chunks) + local])


def test_long_local_contexts_have_a_pass_of_their_own(focus: FocusModel, reference: Reference) -> None:
    """What passes the model together would take more memory than one pass may."""
    cache = prefilled(focus, CASE)
    decoding = FocusDecoding(focus, cache, [CASE.local], [CASE.prompt])
    decoding.start()
    decoding._appended.tokens_per_pass = 2 * len(CASE.chunks)
    passes: list[int] = []
    hook = focus.model.get_decoder().embed_tokens.register_forward_hook(lambda *_: passes.append(1))
    logits = decoding.step(torch.tensor([3]))
    hook.remove()
    assert passes == [1]  # of the decoder itself; a single pass would go through the candidate model
    assert_equal_logits(logits[0], reference.logits(CASE.chunks, CASE.prompt, CASE.local, [3]))


def test_tokens_are_the_same_without_logits(focus: FocusModel) -> None:
    text = random_tokens(150, seed=8)
    with_logits = continue_tokens(focus, text, max_new_tokens=6, return_logits=True)
    without = continue_tokens(focus, text, max_new_tokens=6)
    assert without.logits is None
    assert torch.equal(without.tokens, with_logits.tokens)
    assert len(set(without.tokens.tolist())) > 1


def test_the_last_layer_of_a_step_is_computed_for_one_token(llama: PreTrainedModel) -> None:
    """A layer of work on tokens of which only keys and values are used would come with every token."""
    focus = focus_model(llama, random_projections(llama))
    decoding = FocusDecoding(focus, prefilled(focus, CASE), [CASE.local], [CASE.prompt])
    decoding.start()
    with FlopCounterMode(display=False) as counter:
        decoding.step(torch.tensor([3]))
    by_layer = counter.get_flop_counts()
    mlp = {name.split("layers.")[1]: sum(of.values()) for name, of in by_layer.items() if name.endswith(".mlp")}
    last = max(mlp)
    assert len(mlp) == llama.config.num_hidden_layers
    assert mlp[last] * (2 * len(CASE.chunks) + len(CASE.local) + 1) == mlp["0.mlp"]


def test_finished_questions_leave(focus: FocusModel, reference: Reference) -> None:
    """After a question has finished, the others would go on with its keys, its padding or its tokens."""
    locals_, prompts = [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS]
    decoding = FocusDecoding(focus, prefilled(focus, CASE), locals_, prompts)
    decoding.start()
    alive = [0, 1, 2, 3]
    for step, leaving in enumerate([None, 1, None, 0]):
        logits = decoding.step(torch.tensor([ANSWERS[i][step] for i in alive]))
        for row, i in enumerate(alive):
            question = QUESTIONS[i]
            wanted = reference.logits(question.chunks, question.prompt, question.local, ANSWERS[i][: step + 1])
            assert_equal_logits(logits[row], wanted)
        if leaving is not None:
            decoding.keep([row for row, i in enumerate(alive) if i != leaving])
            alive.remove(leaving)
    logits = decoding.step(torch.tensor([ANSWERS[i][4] for i in alive]))
    for row, i in enumerate(alive):
        wanted = reference.logits(CASE.chunks, QUESTIONS[i].prompt, QUESTIONS[i].local, ANSWERS[i])
        assert_equal_logits(logits[row], wanted)


def test_padding_leaves_with_the_question_that_needed_it(focus: FocusModel, reference: Reference) -> None:
    """Until the last answer ended, every step would compute the columns of the longest question that there was."""
    cache = prefilled(focus, CASE)
    decoding = FocusDecoding(focus, cache, [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS])
    forced(decoding, [[answer[0] for answer in ANSWERS]])
    decoding.keep([2, 3])  # local contexts of 12 and 1, of up to 30; prompts of 12 and 1
    sizes: list[int] = []
    focus.candidate_model.get_decoder().embed_tokens.register_forward_hook(
        lambda _, given, __: sizes.append(given[0].numel())
    )
    decoding.step(torch.tensor([ANSWERS[2][1], ANSWERS[3][1]]))
    assert sizes == [2 * 2 * len(CASE.chunks) + 2 * (12 + 2)]
    decoding.keep([1])
    logits = decoding.step(torch.tensor([ANSWERS[3][2]]))
    assert decoding._appended.length == 1 + 3
    question = QUESTIONS[3]
    wanted = reference.logits(question.chunks, question.prompt, question.local, ANSWERS[3][:3])
    assert_equal_logits(logits[0], wanted)


def test_long_questions_together_equal_each_alone(focus: FocusModel, reference: Reference) -> None:
    """Prompts of many tokens attend to a copy of the chunks, where rows of chunks and questions could be mixed up."""
    questions = [CASE.asking(prompt=prompt, local=20, seed=prompt) for prompt in (20, 17, 5)]
    decoding = FocusDecoding(focus, prefilled(focus, CASE), [q.local for q in questions], [q.prompt for q in questions])
    logits = forced(decoding, [[answer[step] for answer in ANSWERS[:3]] for step in range(2)])
    for i, question in enumerate(questions):
        for step in (0, 2):
            wanted = reference.logits(question.chunks, question.prompt, question.local, ANSWERS[i][:step])
            assert_equal_logits(logits[step, i], wanted)


def test_chunks_that_come_again_are_a_run_of_their_own(focus: FocusModel) -> None:
    """In single rows a step over them would take twice the time."""
    stored = focus.prefill(random_case([24] * 6).chunks)
    again = ChunkSet.of([*stored, *stored[2:5], *stored])
    assert [run.chunks for run in again.runs] == [6, 6, 3]
    found = [(run.block, row) for run in again.runs for row in range(run.first, run.last)]
    assert [found[again.order.index(slot)] for slot in range(15)] == [*stored, *stored[2:5], *stored]


def test_chunks_between_which_others_were_read(focus: FocusModel) -> None:
    """Prepared together and asked without one of them."""
    stored = focus.prefill(random_case([24] * 4).chunks)
    cache = ChunkSet.of([stored[0], stored[2]])
    assert cache.order == (0, 1)
    assert [run.chunks for run in cache.runs] == [1, 1]


def test_prefill_refuses_what_the_memory_does_not_hold(focus: FocusModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: 1000)
    with pytest.raises(OutOfMemoryError, match="300 tokens"):
        focus.prefill([torch.ones(300, dtype=torch.long)])


def test_a_step_needs_a_dynamic_prompt_first(focus: FocusModel) -> None:
    chunks = prefilled(focus, CASE)
    appended = focus.start_answer(chunks)
    with pytest.raises(ConfigError, match="decode_candidates"):
        focus.decode_step(chunks, torch.tensor([[1, 2]]), torch.tensor([CASE.local]), appended)


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_plain_decoding(family: str) -> None:
    """Below the window, questions of unequal length would disturb each other or stand at wrong positions."""
    model = build(family)
    prompts = [question.local for question in QUESTIONS]
    decoding = PlainDecoding(FocusModel(model), prompts)
    alive = [0, 1, 2, 3]

    def check(logits: Tensor, step: int) -> None:
        for row, i in enumerate(alive):
            with torch.no_grad():
                wanted = model(torch.tensor([prompts[i] + ANSWERS[i][:step]])).logits[0, -1]
            assert_equal_logits(logits[row], wanted)

    check(decoding.start(), 0)
    check(decoding.step(torch.tensor([answer[0] for answer in ANSWERS])), 1)
    decoding.keep([3, 1])
    alive = [3, 1]
    check(decoding.step(torch.tensor([ANSWERS[i][1] for i in alive])), 2)


def test_questions_about_a_text_in_the_window_read_it_once(focus: FocusModel) -> None:
    text, passed = random_tokens(100, seed=3), list[int]()
    rows = [[*text, *random_tokens(length, seed=length)] for length in (12, 9, 11, 12)]
    embeddings = focus.model.get_input_embeddings()
    handle = embeddings.register_forward_pre_hook(lambda _, args: passed.append(args[0].numel()))
    PlainDecoding(focus, rows).start()
    handle.remove()
    assert passed == [100, 4 * 12]


def test_a_token_of_the_plain_model_copies_none_of_those_before(focus: FocusModel) -> None:
    """But where the room behind them is used up, once in many tokens, and where questions leave."""
    decoding = PlainDecoding(focus, [random_tokens(50, seed=3), random_tokens(40, seed=4)])
    decoding.start()
    layer = decoding._cache.layers[0]
    room, moved = layer.keys._base.shape[-2] - 50, 0
    assert room > 60
    for _ in range(room + 1):
        before = layer.keys.data_ptr()
        decoding.step(torch.tensor([1, 2]))
        moved += layer.keys.data_ptr() != before
    assert moved == 1
    decoding.keep([1])
    decoding.step(torch.tensor([1]))
    before = layer.keys.data_ptr()
    decoding.step(torch.tensor([1]))
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape == (1, *layer.keys.shape[1:2], 50 + room + 3, layer.keys.shape[-1])


@pytest.mark.parametrize(
    ("rows", "shared"),
    [
        ([[1] * 400], 0),  # nothing to share it with
        ([[1] * 300, [1] * 300], 299),  # each has a token of its own
        ([[1] * 250 + [2] * 9, [1] * 250 + [3] * 9], 0),  # not worth a pass
        ([[1] * 300 + [2] * 9, [1] * 300 + [3] * 9], 300),
        ([[1] * 300 + [2] * 400, [1] * 300 + [3] * 9], 0),  # the short row would have less than nothing of it
        ([[2] + [1] * 300, [1] * 300], 0),
        ([[1] * 300 + [2], [1] * 300 + [3], [1] * 200 + [2]], 0),
    ],
)
def test_which_beginnings_are_shared(rows: list[list[int]], shared: int) -> None:
    assert shared_beginning(rows) == shared


def test_long_answers(focus: FocusModel, reference: Reference) -> None:
    """When an answer outgrows the reserved columns, keys already stored would be lost or misplaced."""
    case = random_case([20, 20, 7], steps=140)
    logits = computed(focus, case)
    for step in (60, 64, 65, 66, 129, 140):
        wanted = reference.logits(case.chunks, case.prompt, case.local, case.generated[:step])
        assert_equal_logits(logits[step], wanted)


def test_long_answers_of_several_questions(focus: FocusModel, reference: Reference) -> None:
    """The same with padding in front, and after a question has left."""
    questions = QUESTIONS[:3]
    answers = [random_tokens(70, seed=seed) for seed in (41, 42, 43)]
    locals_, prompts = [q.local for q in questions], [q.prompt for q in questions]
    decoding = FocusDecoding(focus, prefilled(focus, CASE), locals_, prompts)
    forced(decoding, [[answer[step] for answer in answers] for step in range(50)])
    decoding.keep([1, 2])
    for step in range(50, 70):
        logits = decoding.step(torch.tensor([answers[1][step], answers[2][step]]))
    for row, i in enumerate((1, 2)):
        wanted = reference.logits(CASE.chunks, questions[i].prompt, questions[i].local, answers[i])
        assert_equal_logits(logits[row], wanted)


def test_up_to_the_last_position_of_a_sliding_window() -> None:
    """At the usable window's border a sliding layer would no longer see the first chunk token or the first slot."""
    window = 48
    model = build("mistral", sliding_window=window)
    projections = random_projections(model)
    case = random_case([window - 9 - 3] * 4, prompt=9, local=window - 4 - 3, steps=3)
    focus = FocusModel(model, projections, config=FocusConfig(chunk_size=20, local_window=20, dynamic_prompt=9))
    assert focus.parts.window.size == window
    assert_equal_logits(computed(focus, case), expected(Reference(model, projections), case))


# --- generation -------------------------------------------------------------------------------------------------------


def test_generate_reads_a_long_prompt(llama: PreTrainedModel, projections: CandidateProjections) -> None:
    """The default BOS rule, the cut of the text or the dynamic prompt would differ from what the design says."""
    config = FocusConfig(chunk_size=20, local_window=16, dynamic_prompt=6, plain_up_to=40)
    model = FocusModel(llama, projections, config=config)
    text = random_tokens(20 + 20 + 7 + 16, seed=8)
    generation = continue_tokens(model, text, max_new_tokens=3, return_logits=True)
    chunks = [[BOS, *text[:20]], [BOS, *text[20:40]], [BOS, *text[40:47]]]
    reference = Reference(llama, projections)
    answer: list[int] = []
    assert generation.logits is not None
    for row in generation.logits:
        wanted = reference.logits(chunks, [BOS, *text[-6:]], [BOS, *text[-16:]], answer)
        assert_equal_logits(row, wanted)
        answer.append(int(wanted.argmax()))
    assert generation.tokens.tolist() == answer[:3]


def test_generate_without_chunks_is_the_plain_model(llama: PreTrainedModel, projections: CandidateProjections) -> None:
    """Up to `plain_up_to` the answer would not be the model's own; one token more, and it still would be."""
    config = FocusConfig(chunk_size=20, local_window=16, dynamic_prompt=6, plain_up_to=40)
    model = FocusModel(llama, projections, config=config)
    text = random_tokens(41, seed=9)
    generation = continue_tokens(model, text[:40], max_new_tokens=5, return_logits=True)
    own = llama.generate(torch.tensor([text[:40]]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert generation.tokens.tolist() == own[0, 40:].tolist()
    with torch.no_grad():
        plain = llama(torch.tensor([text])).logits[:, -1]
    longer = continue_tokens(model, text, max_new_tokens=0, return_logits=True).logits
    assert longer is not None
    assert (longer - plain).abs().max() > 50 * TOLERANCE


def test_generate_with_a_text_as_long_as_the_local_window(llama: PreTrainedModel) -> None:
    """With `plain_up_to=0` a text that leaves nothing to chunk would crash, or not be read as it is."""
    config = FocusConfig(chunk_size=20, local_window=16, dynamic_prompt=6, plain_up_to=0)
    text = random_tokens(16, seed=9)
    logits = continue_tokens(FocusModel(llama, config=config), text, max_new_tokens=0, return_logits=True).logits
    assert logits is not None
    with torch.no_grad():
        assert_equal_logits(logits, llama(torch.tensor([text])).logits[:, -1])


# --- the base model ---------------------------------------------------------------------------------------------------


def _state(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}


@pytest.mark.parametrize("family", ["llama", "gemma2", "stablelm"])
def test_base_model_is_left_alone(family: str) -> None:
    """Whoever goes on using the model would get other logits, or another kind of attention."""
    model = build(family)
    ids = torch.tensor([random_tokens(40, seed=3)])
    with torch.no_grad():
        logits = model(ids).logits
    state, config = _state(model), copy.deepcopy(model.config.to_dict())
    computed(focus_model(model, random_projections(model)), CASE)
    for name, tensor in _state(model).items():
        assert torch.equal(tensor, state[name]), f"{name} has changed"
    assert model.config.to_dict() == config
    assert model.config._attn_implementation != chunk_pass.CHUNK_ATTENTION
    with torch.no_grad():
        assert torch.equal(model(ids).logits, logits)


def test_reading_leaves_the_rotary_embedding_alone() -> None:
    """Some kinds overwrite their frequencies in every pass: a long pass of another thread would get the short ones."""
    model = build("phi3_longrope")
    focus = focus_model(model, random_projections(model))
    cache = prefilled(focus, CASE)
    with torch.no_grad():
        model(torch.tensor([random_tokens(300, seed=3)]))  # beyond the 256 positions of the short frequencies
    frequencies = model.get_decoder().rotary_emb.inv_freq.clone()
    focus.decode_candidates(cache, torch.tensor([CASE.prompt]))
    assert torch.equal(model.get_decoder().rotary_emb.inv_freq, frequencies)


def test_no_second_copy_of_the_weights(llama: PreTrainedModel, focus: FocusModel) -> None:
    """The reader would double the memory that a model takes."""
    own = {parameter.data_ptr() for parameter in llama.parameters()}
    candidates = {parameter.data_ptr() for parameter in focus.projections.parameters()}
    assert {parameter.data_ptr() for parameter in focus.candidate_model.parameters()} == own | candidates


def test_base_model_and_questions_in_several_threads(llama: PreTrainedModel, focus: FocusModel) -> None:
    """Candidate projections or the reader's attention would leak into passes of another thread."""
    ids = torch.tensor([random_tokens(40, seed=3)])
    other = random_case([12, 12, 30], seed=7)

    @torch.no_grad()
    def plain() -> Tensor:
        logits: Tensor = llama(ids).logits
        return logits

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the same sums in the same order, so that equal means equal bit by bit
    try:
        alone = plain(), computed(focus, CASE), computed(focus, other)
        with ThreadPoolExecutor(4) as pool:
            jobs = [
                (pool.submit(plain), pool.submit(computed, focus, CASE), pool.submit(computed, focus, other))
                for _ in range(15)
            ]
            for futures in jobs:
                for future, result in zip(futures, alone, strict=True):
                    assert torch.equal(future.result(), result)
    finally:
        torch.set_num_threads(threads)


# --- other settings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llama", "llama_yarn_rope", "qwen3", "gemma3", "cohere"])
def test_bfloat16_is_close_to_float32(family: str) -> None:
    """A sum, a softmax or a moved key would be computed in half precision where it must not."""
    model = build(family)
    projections = random_projections(model)
    exact = computed(focus_model(model, projections), CASE)
    with torch.no_grad():
        plain = model(torch.tensor([CASE.local])).logits[:, -1]
        model, projections = model.bfloat16(), projections.bfloat16()
        plain_error = (model(torch.tensor([CASE.local])).logits[:, -1].float() - plain).abs().mean()
    error = (computed(focus_model(model, projections), CASE).float() - exact).abs().mean()
    assert error < 2 * plain_error  # what the model itself loses by rounding, chunk and memory together


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_model_with_hooks_of_accelerate(family: str, reference: Reference) -> None:
    """A model that accelerate has spread over devices may not leave a pass early: its hooks would be skipped."""
    model = build(family)
    projections = random_projections(model)
    wanted = expected(Reference(model, projections), CASE)
    for module in model.modules():
        add_hook_to_module(module, ModelHook())
    assert_equal_logits(computed(focus_model(model, projections), CASE), wanted)


def test_model_with_layers_offloaded_by_accelerate(tmp_path: Path) -> None:
    """Weights that lie on disk and come for the length of a layer's pass would be missing in the reader."""
    model = build("llama")
    projections = random_projections(model)
    wanted = expected(Reference(model, projections), CASE)
    places: dict[str, str | int] = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu"}
    places |= {"model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk", "model.layers.2": "disk"}
    dispatch_model(model, places, main_device="cpu", offload_dir=tmp_path)
    assert_equal_logits(computed(focus_model(model, projections), CASE), wanted)
