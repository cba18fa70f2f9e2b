"""What `engine.plan` says is what then happens; and a plan changes nothing."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from focus_core import ConfigError, ContextOverflowError, DocumentError, FocusEngine, OutOfMemoryError
from focus_core import device as device_module
from focus_core.cache.disk import DiskTier
from focus_core.cache.folder import FolderContent
from focus_core.cache.planner import Room
from focus_core.device import activation_bytes
from focus_core.engine.calibration import Calibration, DiskSpeed, Line
from focus_core.engine.reading_plan import ReadingPlan, Share
from tests.engines import QUESTION, A, B, C, make_engine

TEXTS = [A, B]


def plan_of(engine: FocusEngine, documents: Any = TEXTS, **options: Any) -> ReadingPlan:
    return engine.plan(documents, QUESTION, calibrate=False, **options)


def assert_happens(engine: FocusEngine, plan: ReadingPlan, documents: Any = TEXTS, **options: Any) -> None:
    """Ask the question that was planned, and compare."""
    memory, disk = engine.store.memory.nbytes, folder_bytes(engine)
    answer = engine.generate(QUESTION, documents, **{"max_new_tokens": 4, **options})
    usage = answer.usage
    assert (plan.method, plan.chunks) == (answer.method, usage.chunks)
    assert plan.to_read.tokens == usage.cache_creation
    assert plan.tokens == usage.document_tokens
    assert plan.tokens + plan.question_tokens == usage.input_tokens
    assert (plan.on_disk.nbytes + plan.to_read.nbytes if plan.chunks else 0) == engine.store.memory.nbytes - memory
    if plan.folder is not None:
        written = folder_bytes(engine) - disk
        assert written <= plan.folder.write_bytes <= written + 2**11 * plan.to_read.chunks


def folder_bytes(engine: FocusEngine) -> int:
    disk = engine.store.disk
    return 0 if disk is None else sum(path.stat().st_size for path in disk.folder.rglob("*.safetensors"))


@pytest.mark.parametrize("method", ["focus", "plain", "select", "experts"])
def test_cold(method: str) -> None:
    engine = make_engine()
    plan = plan_of(engine, method=method, max_new_tokens=4)
    assert (plan.in_memory, plan.on_disk) == (Share(), Share())
    assert plan.fits
    assert_happens(engine, plan, method=method)


def test_the_largest_pass_is_in_the_peak() -> None:
    """Of four chunks that are read two by two, of what is known, and of a row for the plain model."""
    engine = make_engine(parallel_chunks=2)
    of_token = activation_bytes(engine.focus.model)
    plan = plan_of(engine, method="focus", max_new_tokens=4)
    together = min(2 * engine.config.chunk_size, plan.to_read.tokens)
    assert plan.pass_bytes == together * of_token
    assert plan.peak_bytes == plan.needed_bytes + plan.pass_bytes
    engine.prepare(TEXTS)
    known = plan_of(engine, method="focus", max_new_tokens=4)
    assert 0 < known.pass_bytes <= 2 * of_token
    plain = plan_of(engine, method="plain", max_new_tokens=4)
    assert plain.pass_bytes == (plain.tokens + plain.question_tokens + 4) * of_token


def test_in_eight_bits(tmp_path: Path) -> None:
    engine = make_engine(store=tmp_path, kv_dtype="int8")
    plan = plan_of(engine, max_new_tokens=4)
    assert plan.to_read.nbytes < plan_of(make_engine()).to_read.nbytes
    assert_happens(engine, plan)
    assert plan_of(make_engine(store=tmp_path)).on_disk == Share()
    assert plan_of(make_engine(store=tmp_path, kv_dtype="int8")).on_disk.nbytes == plan.cache_bytes
    assert engine.plan([C], QUESTION).first_token is not None


def test_prepared_in_memory() -> None:
    engine = make_engine()
    engine.prepare(TEXTS)
    plan = plan_of(engine, max_new_tokens=4)
    assert (plan.in_memory.chunks, plan.to_read) == (6, Share())
    assert plan.in_memory.nbytes == engine.store.memory.nbytes == plan.cache_bytes
    assert_happens(engine, plan)


def test_from_disk_and_in_part(tmp_path: Path) -> None:
    make_engine(store=tmp_path / "store").prepare(A)
    engine = make_engine(store=tmp_path / "store")
    engine.prepare(B)
    plan = plan_of(engine, [B, A, C], max_new_tokens=4)
    assert [share.tokens for share in (plan.on_disk, plan.in_memory, plan.to_read)] == [len(A), len(B), len(C)]
    assert plan.folder is not None
    assert plan.folder.there_bytes == plan.on_disk.nbytes + plan.in_memory.nbytes
    assert_happens(engine, plan, [B, A, C])


def test_a_handle_and_an_edited_document(tmp_path: Path) -> None:
    make_engine(store=tmp_path / "store").prepare(A)
    engine = make_engine(store=tmp_path / "store")
    edited = A[:-5] + "omega"
    plan = plan_of(engine, [edited, engine.prepare(B)], max_new_tokens=4)
    assert (plan.on_disk.tokens, plan.in_memory.tokens, plan.to_read.tokens) == (128, len(B), len(A) - 128)
    assert_happens(engine, plan, [edited, B])


def test_a_chunk_that_occurs_twice_is_read_once() -> None:
    engine = make_engine()
    plan = plan_of(engine, [A, A], max_new_tokens=4)
    assert (plan.chunks, plan.to_read.chunks, plan.to_read.tokens) == (6, 3, len(A))
    assert plan.tokens == 2 * len(A)
    assert_happens(engine, plan, [A, A])


def test_one_long_prompt_without_documents() -> None:
    engine = make_engine()
    question = "word " * 100
    plan = engine.plan(None, question, max_new_tokens=4, calibrate=False)
    usage = engine.generate(question, max_new_tokens=4).usage
    assert (plan.documents, plan.chunks, plan.to_read.tokens) == (0, usage.chunks, usage.cache_creation)
    assert plan.tokens == usage.document_tokens > 0


def test_without_a_question_a_short_one_is_assumed() -> None:
    plan = make_engine().plan(TEXTS, calibrate=False)
    assert plan.fits
    assert 0 < plan.question_tokens < 128


# --- nothing changes --------------------------------------------------------------------------------------------------


def test_a_plan_leaves_the_order_of_use_and_the_folder_as_they_are(tmp_path: Path) -> None:
    engine = make_engine(store=tmp_path)
    for text in (A, B):
        engine.prepare(text)

    def state() -> list[Any]:
        files = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in tmp_path.rglob("*") if path.is_file()}
        return [list(engine.store.memory._keys_of), engine.store.memory.nbytes, files]

    before = state()
    engine.plan([A, C], QUESTION)  # measured, too
    assert state() == before


def test_a_damaged_file_is_to_be_read_and_warned_of_when_it_is_asked_for(tmp_path: Path) -> None:
    make_engine(store=tmp_path).prepare(A)
    path = next(tmp_path.rglob("*.safetensors"))
    path.write_bytes(path.read_bytes()[:100])
    engine = make_engine(store=tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plan = plan_of(engine, A, max_new_tokens=4)
    assert (plan.on_disk.chunks, plan.to_read.chunks) == (2, 1)
    with pytest.warns(UserWarning, match="1 stored chunk cannot be used"):
        engine.generate(QUESTION, A, max_new_tokens=1)


def test_nothing_is_measured_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()

    def never(*_: object) -> None:
        raise AssertionError

    for figure in ("prefill", "first_token", "disk"):
        monkeypatch.setattr(Calibration, figure, never)
    assert plan_of(engine).first_token is None
    engine.generate(QUESTION, [A], max_new_tokens=1)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_what_does_not_fit_the_window_says_what_the_error_says() -> None:
    engine, texts = make_engine(), ["x" * 64 * 600]
    plan = engine.plan(texts, QUESTION, max_new_tokens=4)
    with pytest.raises(ContextOverflowError) as error:
        engine.generate(QUESTION, texts, max_new_tokens=4)
    assert (plan.problem, plan.fits, plan.first_token) == (str(error.value), False, None)
    assert plan.chunks == 600
    assert "It does not fit. A memory of 600 chunks" in str(plan)


def test_what_does_not_fit_the_memory_says_what_the_error_says(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    monkeypatch.setattr(device_module, "free_memory", lambda _: 1000)
    plan = engine.plan(TEXTS, QUESTION, max_new_tokens=4)
    with pytest.raises(OutOfMemoryError) as error:
        engine.generate(QUESTION, TEXTS, max_new_tokens=4)
    assert plan.problem == str(error.value)
    assert plan.lacking_bytes == plan.needed_bytes - 1000


def test_other_documents_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine()
    store = engine.store.memory
    engine.prepare(A)
    kept = store.nbytes
    needed = plan_of(engine, [C], max_new_tokens=1).needed_bytes
    monkeypatch.setattr(device_module, "free_memory", lambda _: needed - 100 + kept - store.nbytes)
    plan = plan_of(engine, [C], max_new_tokens=1)
    assert (plan.fits, plan.evict_bytes) == (True, 100)
    assert "give way" in str(plan)
    assert engine.generate(QUESTION, [C], max_new_tokens=1).usage.cache_creation == len(C)
    assert store.nbytes < kept + plan.cache_bytes  # of A a block is gone


def test_a_budget_that_is_too_small_to_keep_all_of_it_is_said() -> None:
    """The second question would read everything again, and nobody would know why."""
    engine = make_engine(store_bytes=10_000)
    plan = plan_of(engine, [A, B])
    assert plan.store_bytes == 10_000
    assert plan.unkept_bytes == plan.cache_bytes - 10_000 > 0
    assert "Raise store_bytes" in str(plan)
    enough = plan_of(make_engine(store_bytes=plan.cache_bytes), [A, B])
    assert enough.unkept_bytes == 0
    assert "store_bytes" not in str(enough)
    assert plan_of(engine, [A, B], method="plain").unkept_bytes == 0  # nothing of it is ever kept


def test_a_folder_with_too_small_a_limit(tmp_path: Path) -> None:
    """Older files give way; what is over the limit is said."""
    make_engine(store=tmp_path).prepare(A)
    there = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    stays = there - FolderContent(tmp_path).removable
    folder = plan_of(make_engine(store=tmp_path, store_limit=there + 1000), C).folder
    assert folder is not None
    assert (folder.remove_bytes, folder.lacking_bytes) == (folder.write_bytes - 1000, 0)
    plan = plan_of(make_engine(store=tmp_path, store_limit=stays), B)
    assert plan.folder is not None
    assert plan.folder.lacking_bytes == plan.folder.write_bytes
    assert "Raise store_limit" in str(plan)


def test_the_disk_keeps_what_is_used_now(tmp_path: Path) -> None:
    make_engine(store=tmp_path).prepare(A)
    keys = [bytes.fromhex(path.stem) for path in tmp_path.rglob("*.safetensors")]
    engine = make_engine(store=tmp_path, store_limit=0)
    assert isinstance(engine.store.disk, DiskTier)
    there = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    lists = sum(path.stat().st_size for path in tmp_path.rglob("*.json"))  # which may go
    assert engine.store.disk.room_for(7, keys) == Room(evict=lists, lacking=7 + there - lists)


@pytest.mark.parametrize(
    ("documents", "options", "error"),
    [
        (TEXTS, {"method": "fokus"}, ConfigError),
        (TEXTS, {"max_new_tokens": 0}, ConfigError),
        ([" "], {}, DocumentError),
    ],
)
def test_what_is_wrong_is_refused(documents: Any, options: Any, error: type[Exception]) -> None:
    with pytest.raises(error):
        plan_of(make_engine(), documents, **options)


@pytest.mark.parametrize(
    ("config", "options", "reason"),
    [
        ({"plain_up_to": None, "window": 500}, {}, "fit the window of 500 positions"),
        ({}, {}, "there is an adapter"),
        ({"focus_up_to": 4}, {}, "in more than 4 chunks (focus_up_to)"),
        ({"focus_up_to": 400}, {}, "there is an adapter"),
        ({"trained": False}, {}, "there is no adapter"),
        ({}, {"method": "experts"}, "as asked"),
    ],
)
def test_a_plan_says_why(config: Any, options: Any, reason: str) -> None:
    plan = plan_of(make_engine(**config), max_new_tokens=4, **options)
    assert reason in plan.reason
    assert reason in str(plan)


def test_an_adapter_that_was_trained_on_few_chunks_leaves_many_to_select(recwarn: pytest.WarningsRecorder) -> None:
    for limit, method in ((0, "select"), (4, "select"), (400, "focus"), (None, "focus")):
        answer = make_engine(focus_up_to=limit).generate("Which?", TEXTS, max_new_tokens=2)
        assert answer.method == method
    assert make_engine(focus_up_to=0).generate("Which?", TEXTS, max_new_tokens=2, method="focus").method == "focus"
    assert not [warning for warning in recwarn if "no adapter" in str(warning.message)]


# --- seconds ----------------------------------------------------------------------------------------------------------


class Fixed(Calibration):
    """A machine of known speed."""

    def prefill(self, plan: Any) -> float:
        return 0.01

    def first_token(self, plan: Any) -> Line:
        return Line(1.0, 0.5)

    def disk(self, *_: Any) -> DiskSpeed:
        return DiskSpeed(read=1e-6, write=2e-6)


def test_seconds_add_up(tmp_path: Path) -> None:
    make_engine(store=tmp_path).prepare(A)
    engine = make_engine(store=tmp_path)
    engine.shared.calibration = Fixed(engine.shared.scheduler, engine.focus.device, engine.shared.tokenizer)
    plan = engine.plan(TEXTS, QUESTION)
    assert plan.first_token is not None
    first = 1 + 6 * 0.5
    written, read = plan.to_read.nbytes * 2e-6, plan.on_disk.nbytes * 1e-6
    assert plan.first_token.prepared == pytest.approx(first)
    assert plan.first_token.now == pytest.approx(first + len(B) * 0.01 + written + read)
    assert plan.first_token.cold == pytest.approx(first + (len(A) + len(B)) * 0.01 + plan.cache_bytes * 2e-6)
    in_one_row = engine.plan(TEXTS, QUESTION, method="plain").first_token
    assert in_one_row is not None
    assert in_one_row.now == in_one_row.cold == in_one_row.prepared == 1 + (len(A) + len(B)) * 0.5


@pytest.mark.parametrize("method", ["focus", "plain", "select", "experts"])
def test_the_machine_is_measured_once(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make_engine(store=tmp_path)
    first = engine.plan(TEXTS, QUESTION, method=method, max_new_tokens=4)
    seconds = first.first_token
    assert seconds is not None
    assert 0 < seconds.prepared <= seconds.now == seconds.cold
    monkeypatch.setattr(Calibration, "_run", None)  # a second measurement would fail
    assert engine.plan(TEXTS, QUESTION, method=method, max_new_tokens=4).first_token == seconds
    assert not list(tmp_path.rglob("*.safetensors"))
    assert engine.shared.scheduler.idle


def test_a_line_through_samples() -> None:
    assert Line.through({2: 5.0, 4: 9.0})(10) == pytest.approx(21.0)
    assert Line.through({3: 6.0})(5) == pytest.approx(10.0)  # through zero
    assert Line.through({1: 3.0, 4: 2.0}) == Line(2.0, 0.0)  # never falls


def test_a_plan_as_json_and_as_a_table() -> None:
    plan = plan_of(make_engine(), max_new_tokens=4)
    assert json.loads(json.dumps(asdict(plan)))["to_read"]["tokens"] == len(A) + len(B)
    lines = str(replace(plan, first_token=None)).splitlines()
    assert lines[0] == f"2 documents, {len(A) + len(B)} tokens: 6 chunks, method focus."
    assert any(line.split() == ["to", "be", "read", "6", str(len(A) + len(B)), "0.1", "MiB"] for line in lines)
    assert lines[-1] == "It fits."
