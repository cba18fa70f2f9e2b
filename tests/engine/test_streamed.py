"""Documents larger than the device: their chunks lie in host memory, and answers stay those of a large device.

The device is made up: a number of bytes, of which keys and values of chunks take theirs.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from focus_core import ConfigError, FocusEngine, OutOfMemoryError
from focus_core import device as device_module
from focus_core.cache.bus import Bus
from focus_core.cache.chunks import ChunkBlock
from focus_core.engine import memory_plan
from focus_core.engine import shared as shared_module
from tests.engines import QUESTION, A, B, C, make_engine

TEXTS = [A, B, C]


@dataclass
class MadeUpDevice:
    """Counts the bytes that chunks and copies of them take there."""

    capacity: int = 2**40
    peak: int = 0
    bus: Bus | None = None
    counting: bool = True
    _blocks: WeakSet[ChunkBlock] = field(default_factory=WeakSet)

    @property
    def taken(self) -> int:
        of_copies = 0 if self.bus is None else self.bus.nbytes
        return sum(block.nbytes for block in self._blocks) + of_copies

    def note(self, block: ChunkBlock) -> ChunkBlock:
        if self.counting and block.keys.device.type == "cpu":
            self._blocks.add(block)
            self.peak = max(self.peak, self.taken)
        return block

    def engine(self, **options: Any) -> FocusEngine:
        engine = make_engine(**{"store_bytes": 2**30, "host_bytes": 2**30, **options})
        self.bus = engine.shared.bus
        self.bus.copy_bytes = 1
        return engine

    def wanted(self, texts: list[str], *, kv_dtype: str | None = None, **options: Any) -> tuple[int, ...]:
        """The answer with everything on a large device, and no other memory."""
        capacity, self.capacity, self.counting = self.capacity, 2**40, False
        engine = make_engine(store_bytes=2**30, host_bytes=0, kv_dtype=kv_dtype)
        tokens = tuple(answer_on(engine, texts, **options).tokens)
        self.capacity, self.counting = capacity, True
        return tokens


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> MadeUpDevice:
    made = MadeUpDevice()
    empty, on_device = ChunkBlock.empty, ChunkBlock.on_device
    monkeypatch.setattr(ChunkBlock, "empty", lambda *args, **more: made.note(empty(*args, **more)))
    monkeypatch.setattr(ChunkBlock, "on_device", lambda *args, **more: made.note(on_device(*args, **more)))
    monkeypatch.setattr(device_module, "free_memory", lambda _: made.capacity - made.taken)
    monkeypatch.setattr(shared_module, "has_own_memory", lambda _: True)
    monkeypatch.setattr(memory_plan, "GROUP_BYTES", 1)
    return made


def answer_on(engine: FocusEngine, texts: list[str], **options: Any) -> Any:
    return engine.generate(QUESTION, texts, **{"max_new_tokens": 8, **options})


def shrunk(device: MadeUpDevice, engine: FocusEngine, texts: list[str], share: float, **options: Any) -> None:
    """A device that holds the question, the copies, a group, and a share of the documents."""
    plan = engine.plan(texts, QUESTION, max_new_tokens=8, calibrate=False, **options)
    layers = engine._planner.method(plan.method).cached_layers
    largest = engine._planner.method(plan.method).chunk_bytes(1, 65)
    copies = engine.shared.bus.missing_bytes(-(-largest // layers))
    device.capacity = plan.prompt_bytes + copies + largest + int(share * plan.cache_bytes) + device.taken


# --- answers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_dtype", [None, "int8"], ids=["exact", "int8"])
@pytest.mark.parametrize("method", ["focus", "select", "experts"])
def test_answers_are_those_of_a_large_device(method: str, kv_dtype: str | None, device: MadeUpDevice) -> None:
    expected = device.wanted(TEXTS, method=method, kv_dtype=kv_dtype)
    engine = device.engine(kv_dtype=kv_dtype)
    shrunk(device, engine, TEXTS, 0.4, method=method)
    plan = engine.plan(TEXTS, QUESTION, max_new_tokens=8, method=method, calibrate=False)
    assert plan.fits
    assert 0 < plan.streamed.chunks < plan.chunks
    device.peak = 0
    first = answer_on(engine, TEXTS, method=method)
    assert tuple(first.tokens) == expected
    assert first.usage.cache_creation == plan.to_read.tokens > 0  # equal chunks are read once
    assert device.peak <= device.capacity - plan.prompt_bytes
    second = answer_on(engine, TEXTS, method=method)
    assert (tuple(second.tokens), second.usage.cache_creation) == (expected, 0)
    assert device.peak <= device.capacity


def test_a_batch_and_its_sources(device: MadeUpDevice) -> None:
    questions = [QUESTION, "Who?", "What is third?"]
    device.counting = False
    large = make_engine(store_bytes=2**30, host_bytes=0)
    expected = large.generate(questions, TEXTS, max_new_tokens=4)
    likely = large.log_probs(expected[0], "yes")
    device.counting = True
    engine = device.engine()
    shrunk(device, engine, TEXTS, 0.2)
    device.capacity += 2 * engine.plan(TEXTS, "What is third?", max_new_tokens=4, calibrate=False).prompt_bytes
    found = engine.generate(questions, TEXTS, max_new_tokens=4)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]
    device.capacity += 2**20  # of the device, log-probabilities take more than was planned for the answer
    assert engine.log_probs(found[0], "yes") == pytest.approx(likely, abs=1e-3)


def test_nothing_at_all_fits_the_device(device: MadeUpDevice) -> None:
    engine = device.engine()
    shrunk(device, engine, TEXTS, 0.0)
    answer = answer_on(engine, TEXTS)
    assert tuple(answer.tokens) == device.wanted(TEXTS)
    assert engine.store.memory.nbytes == 0
    assert engine.store.host is not None
    assert engine.store.host.nbytes > 0


# --- up and down ------------------------------------------------------------------------------------------------------


def test_what_leaves_the_device_comes_back_without_a_prefill(device: MadeUpDevice) -> None:
    """LMCache #1061: what moved to host memory was read anew all the same."""
    engine = device.engine()
    prepared = engine.prepare(B)
    engine.store.memory._budget = engine.store.memory.nbytes
    engine.prepare(A)  # a little shorter
    plan = engine.plan(prepared, QUESTION, max_new_tokens=8, calibrate=False)
    assert (plan.in_memory.chunks, plan.in_host.chunks, plan.to_read.chunks, plan.streamed.chunks) == (0, 3, 0, 0)
    assert "in host " in str(plan)
    answer = answer_on(engine, [B])
    assert (answer.usage.cache_read, answer.usage.cache_creation) == (len(B), 0)
    assert tuple(answer.tokens) == device.wanted([B])
    assert engine.plan(B, QUESTION, calibrate=False).in_memory.chunks == 3
    found = engine.verify(prepared)
    assert (found.missing, found.chunks) == (0, 3)


def test_documents_that_were_prepared_leave_bytes_for_a_question(device: MadeUpDevice) -> None:
    """Preparing would fill the device to its last byte, and every question be refused."""
    engine = device.engine()
    device.capacity = engine.plan(TEXTS, QUESTION, calibrate=False).cache_bytes + 100
    prepared = engine.prepare(TEXTS)
    answer = engine.generate(QUESTION, prepared, max_new_tokens=8)
    assert (tuple(answer.tokens), answer.usage.cache_creation) == (device.wanted(TEXTS), 0)
    assert engine.store.host is not None
    assert engine.store.host.nbytes > 0


def test_from_disk_into_host_memory(device: MadeUpDevice, tmp_path: Path) -> None:
    device.counting = False
    make_engine(store=tmp_path, host_bytes=0).prepare(TEXTS)
    device.counting = True
    engine = device.engine(store=tmp_path)
    shrunk(device, engine, TEXTS, 0.3)
    answer = answer_on(engine, TEXTS)
    assert (tuple(answer.tokens), answer.usage.cache_creation) == (device.wanted(TEXTS), 0)
    assert engine.store.memory.nbytes < answer.usage.chunks * 64 * engine.focus.cache_bytes_per_token


# --- budgets ----------------------------------------------------------------------------------------------------------


def test_what_host_memory_cannot_hold_is_refused_before_any_work(device: MadeUpDevice) -> None:
    engine = device.engine(host_bytes=1000)
    shrunk(device, engine, TEXTS, 0.3)
    plan = engine.plan(TEXTS, QUESTION, max_new_tokens=8, calibrate=False)
    read: list[int] = []
    with pytest.raises(OutOfMemoryError, match="host_bytes") as error:
        answer_on(engine, TEXTS, report=lambda done, _: read.append(done))
    assert (plan.fits, plan.problem, read) == (False, str(error.value), [])


def test_without_a_tier_in_host_memory_it_is_refused_as_before(device: MadeUpDevice) -> None:
    engine = make_engine(store_bytes=2**30, host_bytes=0)
    assert engine.store.host is None
    device.capacity = 10_000
    with pytest.raises(OutOfMemoryError, match=r"GiB are free on cpu\. Hand over"):
        answer_on(engine, TEXTS)


def test_threads_and_the_budget_of_host_memory(device: MadeUpDevice, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two requests would take bytes of the same host memory, or write copies over each other's."""
    expected = {name: device.wanted([text]) for name, text in (("A", A), ("B", B))}
    engine = device.engine()
    host, peaks, make = engine.store.host, list[int](), ChunkBlock.in_host_memory
    assert host is not None
    shrunk(device, engine, [A], 0.0)

    def noted(block: ChunkBlock, chunks: int, bus: Bus) -> ChunkBlock:
        made = make(block, chunks, bus)
        peaks.append(host.taken + made.nbytes)
        return made

    monkeypatch.setattr(ChunkBlock, "in_host_memory", noted)
    host._budget = engine.plan([A, B], QUESTION, calibrate=False).cache_bytes
    found: dict[str, tuple[int, ...]] = {}

    def ask(name: str, text: str) -> None:
        found[name] = tuple(answer_on(engine, [text]).tokens)

    threads = [threading.Thread(target=ask, args=of) for of in (("A", A), ("B", B))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected
    assert all(peak <= host.budget for peak in peaks)
    assert host.reserved == 0


def test_a_cancelled_reading_keeps_what_it_has_read_and_frees_the_rest(device: MadeUpDevice) -> None:
    engine = device.engine()
    shrunk(device, engine, TEXTS, 0.0)

    def stop(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        answer_on(engine, TEXTS, report=stop)
    assert engine.store.host is not None
    assert engine.store.host.reserved == 0
    answer = answer_on(engine, TEXTS)
    assert tuple(answer.tokens) == device.wanted(TEXTS)
    assert 0 < answer.usage.cache_read < answer.usage.document_tokens


# --- many at a time ---------------------------------------------------------------------------------------------------


def room_for_one(device: MadeUpDevice, engine: FocusEngine) -> None:
    """Both memories hold A, or B, with both questions; and not A with B."""
    shrunk(device, engine, [B], 0.0)
    device.capacity += engine.plan([A], QUESTION, max_new_tokens=8, calibrate=False).prompt_bytes
    assert engine.store.host is not None
    engine.store.host._budget = int(engine.plan([B], QUESTION, calibrate=False).cache_bytes * 1.2)


def test_a_question_waits_for_what_another_one_holds(device: MadeUpDevice) -> None:
    """It was refused; and asked again afterwards, it was answered."""
    expected = device.wanted([B])
    engine = device.engine()
    room_for_one(device, engine)
    answers = engine.stream(QUESTION, [A], max_new_tokens=8)
    next(answers)
    answer = answer_on(engine, [B])
    assert (tuple(answer.tokens), answer.usage.cache_creation) == (expected, len(B))
    assert device.taken <= device.capacity
    assert sum(len(piece.text) for piece in answers) > 0


@pytest.mark.parametrize("asked", [True, False])
def test_a_question_waits_for_what_is_read(asked: bool, device: MadeUpDevice) -> None:
    expected = device.wanted([B])
    engine = device.engine()
    room_for_one(device, engine)
    found: list[tuple[int, ...]] = []

    def ask(done: int, total: int) -> None:
        if not found:
            found.append(())
            found[0] = tuple(answer_on(engine, [B]).tokens)

    if asked:
        answer_on(engine, [A], report=ask)
    else:
        engine.prepare(A, report=ask)
    assert found == [expected]


def test_what_can_never_fit_waits_for_nobody(device: MadeUpDevice) -> None:
    engine = device.engine(host_bytes=0)
    engine.prepare(A)
    kept = engine.store.memory.nbytes
    answers = engine.stream(QUESTION, [A], max_new_tokens=50)
    next(answers)
    device.capacity = device.taken + kept // 2
    with pytest.raises(OutOfMemoryError):
        answer_on(engine, [B * 4])
    assert engine.store.memory.nbytes == kept
    assert not engine.shared.scheduler.idle


# --- the plan, and a CPU ----------------------------------------------------------------------------------------------


def test_a_plan_says_what_is_streamed(device: MadeUpDevice) -> None:
    engine = device.engine()
    shrunk(device, engine, TEXTS, 0.4)
    plan = engine.plan(TEXTS, QUESTION, max_new_tokens=8)
    assert plan.first_token is None
    assert plan.host is not None
    assert plan.host.take_bytes == plan.streamed.nbytes
    assert plan.needed_bytes <= device.capacity
    assert "do not fit the device and stay in host memory" in str(plan)


def test_a_plan_of_lengths_says_it_too(device: MadeUpDevice) -> None:
    engine, lengths = device.engine(), [len(text) for text in TEXTS]
    large = engine.plan_lengths(lengths)
    assert large.streamed.chunks == 0
    device.capacity = large.needed_bytes - large.cache_bytes // 4
    plan = engine.plan_lengths(lengths)
    assert plan.fits
    assert 0 < plan.streamed.tokens < plan.tokens
    assert plan.needed_bytes <= device.capacity


def test_a_cpu_has_one_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks would be copied from memory to memory for every token."""

    def never(*_: object) -> None:
        raise AssertionError

    engine = make_engine()
    for copying in ("on_device", "in_host_memory", "copy_row"):
        monkeypatch.setattr(ChunkBlock, copying, never)
    monkeypatch.setattr(Bus, "fetch", never)
    assert engine.store.host is None
    assert answer_on(engine, TEXTS).tokens == answer_on(engine, TEXTS).tokens
    plan = engine.plan(TEXTS, QUESTION, calibrate=False)
    assert (plan.host, plan.in_host.chunks, plan.streamed.chunks) == (None, 0, 0)
    with pytest.raises(ConfigError, match="host_bytes=1000: the model is on cpu"):
        make_engine(host_bytes=1000)
