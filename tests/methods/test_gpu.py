"""The exactness tests on a GPU: float32 against the oracle, bfloat16 and flash attention close to it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from focus_core import device as device_module
from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkSet
from focus_core.config import FocusConfig
from focus_core.engine import memory_plan
from focus_core.methods.continuation import continue_tokens
from focus_core.methods.focus import FocusDecoding, FocusModel
from tests.cases import (
    ANSWERS,
    CASE,
    CHUNKINGS,
    GOLDEN,
    QUESTIONS,
    Case,
    assert_equal_logits,
    computed,
    expected,
    focus_model,
    forced,
    prefilled,
    random_case,
    streamed,
)
from tests.engines import make_engine
from tests.model_zoo import FAMILIES, build, random_projections, random_tokens
from tests.reference import Reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
TOLERANCE = 1e-4  # sums in another order than on the CPU, over all layers

needs_flash_attention = pytest.mark.skipif(
    importlib.util.find_spec("flash_attn") is None, reason="flash_attn is not installed"
)


@pytest.fixture(autouse=True)
def _full_float32() -> Iterator[None]:
    """TF32 would round every product to ten bits."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32 = before


def _half_precision_error(case: Case, family: str, attention: str) -> tuple[float, float]:
    """Mean error of bfloat16 with `attention`, of the method and of the plain model, against float32."""
    model = build(family).cuda()
    projections = random_projections(model)
    ids = torch.tensor([case.chunks[0] + case.local], device="cuda")
    wanted = computed(focus_model(model, projections), case)
    with torch.no_grad():
        plain = model(ids).logits[:, -1]
    half = build(family).cuda().bfloat16()
    half.set_attn_implementation(attention)
    focus = focus_model(half, projections.bfloat16())
    error = (computed(focus, case).float() - wanted).abs().mean()
    with torch.no_grad():
        plain_error = (half(ids).logits[:, -1].float() - plain).abs().mean()
    return float(error), float(plain_error)


@pytest.mark.parametrize("parallel_chunks", [None, 3])
@pytest.mark.parametrize("folder", GOLDEN, ids=lambda folder: folder.name)
def test_golden_vectors(folder: Path, parallel_chunks: int | None) -> None:
    """The authors' numbers would be reproduced on a CPU only."""
    golden = load_file(folder / "golden.safetensors")
    config = FocusConfig(parallel_chunks=parallel_chunks)
    model = FocusModel.from_pretrained(folder, device="cuda", dtype="float32", config=config)
    generation = continue_tokens(
        model, golden["input_ids"], max_new_tokens=len(golden["generated"]), return_logits=True
    )
    assert generation.logits is not None
    assert_equal_logits(generation.logits[: len(golden["logits"])], golden["logits"], atol=TOLERANCE)
    assert generation.tokens.tolist() == golden["generated"].tolist()


@pytest.mark.parametrize("rank", [None, 4], ids=["full", "low_rank"])
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_the_oracle(family: str, rank: int | None) -> None:
    """A tensor would lie on the wrong device, or a kernel of the GPU would see another mask."""
    model = build(family).cuda()
    projections = random_projections(model, rank=rank)
    logits = computed(focus_model(model, projections), CASE)
    assert logits.device.type == "cuda"
    assert_equal_logits(logits, expected(Reference(model, projections), CASE), atol=TOLERANCE)


@pytest.mark.parametrize("parallel_chunks", [None, 1, 3])
@pytest.mark.parametrize("lengths", [[], *CHUNKINGS.values()], ids=["none", *CHUNKINGS])
def test_groups_of_chunks(lengths: list[int], parallel_chunks: int | None) -> None:
    """How many chunks pass the model together would change the answer."""
    model = build("llama").cuda()
    projections = random_projections(model)
    case = random_case(lengths, steps=2)
    logits = computed(focus_model(model, projections, parallel_chunks=parallel_chunks), case)
    assert_equal_logits(logits, expected(Reference(model, projections), case), atol=TOLERANCE)


def test_questions_together_with_tokens_from_the_gpu() -> None:
    """Tokens that a sampler chose on the GPU, and questions that leave, would meet tensors on the CPU."""
    model = build("llama").cuda()
    projections = random_projections(model)
    reference = Reference(model, projections)
    focus = focus_model(model, projections)
    locals_, prompts = [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS]
    decoding = FocusDecoding(focus, prefilled(focus, CASE), locals_, prompts)

    def check(logits: Tensor, alive: list[int], step: int) -> None:
        for row, i in enumerate(alive):
            question = QUESTIONS[i]
            wanted = reference.logits(question.chunks, question.prompt, question.local, ANSWERS[i][:step])
            assert_equal_logits(logits[row], wanted, atol=TOLERANCE)

    check(decoding.start(), [0, 1, 2, 3], 0)
    check(decoding.step(torch.tensor([answer[0] for answer in ANSWERS], device="cuda")), [0, 1, 2, 3], 1)
    decoding.keep([0, 3])
    check(decoding.step(torch.tensor([ANSWERS[i][1] for i in (0, 3)], device="cuda")), [0, 3], 2)


@pytest.mark.parametrize("family", ["llama", "llama_yarn_rope", "qwen3", "gemma3", "cohere", "stablelm", "smollm3"])
def test_bfloat16_is_close_to_float32(family: str) -> None:
    """A softmax or a moved key would be computed in half precision where it must not."""
    error, plain_error = _half_precision_error(CASE, family, "sdpa")
    assert error < 2 * plain_error


@needs_flash_attention
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3"])
def test_flash_attention(family: str) -> None:
    """Flash attention would not see the memory in front of the local context, or see it with another mask."""
    error, plain_error = _half_precision_error(CASE, family, "flash_attention_2")
    assert error < 2 * plain_error


@needs_flash_attention
def test_flash_attention_with_padded_questions() -> None:
    """Padding between memory and local context would be attended to."""
    model = build("llama").cuda().bfloat16()
    projections = random_projections(model).bfloat16()
    outputs = []
    for attention in ("sdpa", "flash_attention_2"):
        model.set_attn_implementation(attention)
        focus = focus_model(model, projections)
        decoding = FocusDecoding(
            focus, prefilled(focus, CASE), [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS]
        )
        outputs.append(forced(decoding, [[answer[0] for answer in ANSWERS]]).float())
    assert (outputs[0] - outputs[1]).abs().mean() < 0.1 * outputs[0].std()


def test_a_step_copies_no_chunks() -> None:
    """A decoding step would allocate memory that grows with the documents."""
    model = build("llama", max_position_embeddings=8192, head_dim=128).cuda().bfloat16()
    config = FocusConfig(chunk_size=2048, local_window=64, dynamic_prompt=32)
    focus = FocusModel(model, random_projections(model).bfloat16(), config=config)
    cache = focus.prefill(list(torch.randint(3, 90, (128, 2048))))
    local = random_tokens(32, seed=1)
    decoding = FocusDecoding(focus, cache, [local], [local])
    decoding.start()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    decoding.step(torch.tensor([5]))
    # Of two stored layers, one layer's keys are a fourth; the step's own scores and states about a twentieth.
    assert torch.cuda.max_memory_allocated() - before < sum(run.block.nbytes for run in cache.runs) / 8


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
@pytest.mark.parametrize("every", [1, 2], ids=["all", "half"])
def test_chunks_in_host_memory(every: int, kv_dtype: str | None) -> None:
    """A copy would be read before it has arrived, or written again while it is read."""
    model = build("llama").cuda()
    case = random_case([24] * 20 + [15, 31], prompt=9, local=14)
    config = FocusConfig(chunk_size=32, local_window=32, dynamic_prompt=16, kv_dtype=kv_dtype)
    focus = FocusModel(model, random_projections(model), config=config)
    resident = prefilled(focus, case)

    def logits_of(chunks: ChunkSet) -> Tensor:
        return forced(FocusDecoding(focus, chunks, [case.local], [case.prompt]), [[t] for t in case.generated])

    wanted = logits_of(resident)
    for copy_bytes in (1, 2**26):
        bus = Bus(focus.device, copy_bytes=copy_bytes)
        chunks = streamed(resident, bus, every=every)
        assert all(run.block.keys.is_pinned() for run in chunks.runs if run.block.bus is not None)
        for _ in range(5):
            assert_equal_logits(logits_of(chunks), wanted, atol=TOLERANCE)
        assert bus.nbytes <= 2 * max(copy_bytes, resident.runs[0].block.nbytes) + 2**12


def test_copies_run_beside_the_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stream of the computing, every step would first wait for all its copies."""
    used: list[int] = []
    wait = torch.cuda.Stream.wait_stream

    def noted(stream: torch.cuda.Stream, other: torch.cuda.Stream) -> None:
        used.append(stream.cuda_stream)
        wait(stream, other)

    monkeypatch.setattr(torch.cuda.Stream, "wait_stream", noted)
    model = build("llama").cuda()
    focus = focus_model(model, random_projections(model))
    computed_on = torch.cuda.current_stream().cuda_stream
    chunks = streamed(prefilled(focus, CASE), Bus(focus.device, copy_bytes=1))
    FocusDecoding(focus, chunks, [CASE.local], [CASE.prompt]).start()
    of_copies = [stream for stream in used if stream != computed_on]
    assert len(of_copies) == len(CASE.chunks) * focus.cached_layers
    assert len(set(of_copies)) == 1


def test_an_engine_asks_about_more_than_the_gpu_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that are larger than the GPU would be refused, or answered otherwise."""
    texts, question = ["".join(f"line {number}\n" for number in range(500))], "Which?"
    answers = []
    for capacity in (2**34, 3 * 2**19):
        engine = make_engine(device="cuda", store_bytes=0, host_bytes=2**30)
        engine.shared.bus.copy_bytes = 2**14
        monkeypatch.setattr(memory_plan, "GROUP_BYTES", 2**16)
        monkeypatch.setattr(device_module, "free_memory", lambda _, capacity=capacity: capacity)
        plan = engine.plan(texts, question, max_new_tokens=4, calibrate=False)
        assert bool(plan.streamed.chunks) == (capacity < 2**34)
        answers.append(engine.generate(question, texts, max_new_tokens=4))
        assert engine.generate(question, texts, max_new_tokens=4).usage.cache_creation == 0
    assert answers[0].text == answers[1].text
