"""A store on disk: the next process reads nothing again, and every answer is that of an engine without one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from focus_core import ConfigError, FocusConfig, FocusEngine, FocusWarning
from focus_core.cache import disk as disk_module
from focus_core.cache.listing import list_documents, prune, verify_files
from focus_core.engine.verification import Verification
from tests.engines import QUESTION, A, B, C, cold, make_engine

ROOT = Path(__file__).parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def chunk_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def ask(engine: FocusEngine, *documents: str) -> str:
    return engine.generate(QUESTION, list(documents), max_new_tokens=8).text


def test_the_next_process_reads_no_chunk(folder: Path) -> None:
    """LMCache #562, #1175: the index was lost with the process. #2876: the disk was silently idle.

    SGLang #39147: a prefix could not be restored. LMCache #1291, #2026: few chunks were found again. Here every chunk
    is, in any order of documents.
    """
    first = make_engine(store=folder).generate(QUESTION, [A, B], max_new_tokens=8)
    again = make_engine(store=folder).generate(QUESTION, [B, A], max_new_tokens=8)
    assert first.text == cold(QUESTION, [A, B])
    assert again.text == cold(QUESTION, [B, A])
    assert (first.usage.cache_read, first.usage.cache_creation) == (0, len(A) + len(B))
    assert (again.usage.cache_read, again.usage.cache_creation) == (len(A) + len(B), 0)


def test_prepared_today_asked_tomorrow(folder: Path) -> None:
    make_engine(store=folder).prepare([A, B])
    engine = make_engine(store=folder)
    seen: list[tuple[int, int]] = []
    prepared = engine.prepare([B, A], report=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (6, 6)
    assert engine.generate(QUESTION, prepared, max_new_tokens=8).text == cold(QUESTION, [B, A])


def test_an_edited_document_reads_what_has_changed(folder: Path) -> None:
    make_engine(store=folder).prepare(A)
    changed = A[:-5] + "omega"
    answer = make_engine(store=folder).generate(QUESTION, [changed], max_new_tokens=8)
    assert answer.usage.cache_creation == len(A) - 2 * 64
    assert answer.text == cold(QUESTION, [changed])


def test_methods_share_files_as_far_as_layers_go(folder: Path) -> None:
    """FocusLLM leaves the last layer out, select needs it."""
    make_engine(store=folder).prepare(A)
    selecting = make_engine(store=folder, method="select", boundaries="tokens")
    assert selecting.generate(QUESTION, [A], max_new_tokens=4).usage.cache_read == 0
    selecting = make_engine(store=folder, method="select", boundaries="tokens")
    assert selecting.generate(QUESTION, [A], max_new_tokens=4).usage.cache_creation == 0
    assert make_engine(store=folder).generate(QUESTION, [A], max_new_tokens=8).usage.cache_creation == 0
    assert ask(make_engine(store=folder), A) == cold(QUESTION, [A])


def test_a_damaged_file_leaves_the_others_of_its_block_in_memory(folder: Path) -> None:
    text = "".join(f"line {number:04}\n" for number in range(100))
    chunks = make_engine(store=folder).prepare(text).chunks
    engine = make_engine(store=folder)
    assert engine.store.disk is not None
    path = engine.store.disk.path(chunks[0].key)
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.warns(FocusWarning, match="checksum"):
        engine.prepare(text)
    assert all(engine.store.memory.peek(chunk.key) for chunk in chunks)


def test_a_damaged_file_is_read_anew_with_one_warning(folder: Path) -> None:
    make_engine(store=folder).prepare([A, B])
    for path in chunk_files(folder)[:2]:
        path.write_bytes(path.read_bytes()[:100])
    engine = make_engine(store=folder)
    with pytest.warns(FocusWarning, match="2 stored chunks cannot be used") as warned:
        assert ask(engine, A, B) == cold(QUESTION, [A, B])
    assert len(warned) == 1
    assert make_engine(store=folder).generate(QUESTION, [A, B], max_new_tokens=1).usage.cache_creation == 0


def test_a_wrong_checksum_shows_only_when_the_chunk_is_loaded(folder: Path) -> None:
    make_engine(store=folder).prepare([A, B])
    path = chunk_files(folder)[3]
    content = bytearray(path.read_bytes())
    content[-9] ^= 4
    path.write_bytes(content)
    with pytest.warns(FocusWarning, match="checksum") as warned:
        answer = make_engine(store=folder).generate(QUESTION, [A, B], max_new_tokens=8)
    assert len(warned) == 1
    assert answer.text == cold(QUESTION, [A, B])
    assert 0 < answer.usage.cache_creation <= 64


def test_a_failing_disk_costs_one_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(disk_module, "write_chunk", failing)
    engine = make_engine(store=folder)
    with pytest.warns(FocusWarning, match="No space left on device") as warned:
        assert ask(engine, A, B) == cold(QUESTION, [A, B])
    assert len(warned) == 1


def test_a_folder_that_vanishes_between_two_questions(folder: Path) -> None:
    engine = make_engine(store=folder, store_bytes=0)
    assert ask(engine, A) == cold(QUESTION, [A])
    shutil.rmtree(folder)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        answers = [ask(engine, text) for text in (A, B)]
    assert answers == [cold(QUESTION, [text]) for text in (A, B)]
    assert ["not there any more" in str(warning.message) for warning in warned] == [True]


def test_what_has_been_asked_may_be_evicted(folder: Path) -> None:
    """Only running questions keep their chunks: an answer that is kept, with its sources, keeps none of them."""
    engine = make_engine(store=folder)
    assert engine.store.disk is not None
    kept = [engine.generate(QUESTION, [A], max_new_tokens=4, sources=True), engine.prepare([B])]
    assert not engine.store.disk._running
    stream = engine.stream(QUESTION, [A], max_new_tokens=4)
    next(stream)
    assert len(engine.store.disk._running) == 1
    stream.close()
    del stream
    assert not engine.store.disk._running
    assert kept


def test_an_interrupt_loses_what_was_being_read_and_no_more(folder: Path) -> None:
    engine = make_engine(store=folder, parallel_chunks=1)

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.prepare(A, report=stop)
    again = make_engine(store=folder).generate(QUESTION, [A], max_new_tokens=8)
    assert again.usage.cache_read == 2 * 64
    assert again.text == cold(QUESTION, [A])


def test_memory_keeps_what_an_interrupted_reading_has_read() -> None:
    engine = make_engine(parallel_chunks=1)

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.prepare(A, report=stop)
    assert engine.generate(QUESTION, [A], max_new_tokens=8).usage.cache_read == 2 * 64


@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_what_is_kept_is_what_is_read_anew(folder: Path, kv_dtype: str | None) -> None:
    engine = make_engine(store=folder, kv_dtype=kv_dtype)
    prepared = engine.prepare([A, B])
    engine.store.memory.clear()
    found = engine.verify(prepared, sample=4)
    assert (found.chunks, found.missing) == (4, 0)
    assert found.largest_difference <= 1e-5 * found.largest_value * (1 if kv_dtype is None else 2000)
    for path in chunk_files(folder):
        path.unlink()
    engine.store.memory.clear()
    assert engine.verify(prepared, sample=100) == Verification(0, 6, 0.0, 0.0)


def test_a_wrong_chunk_shows(folder: Path) -> None:
    engine = make_engine(store=folder)
    prepared = engine.prepare([A, B])
    row = engine.store.memory.get(prepared.chunks[0].key)
    assert row is not None
    row[0].keys[0, row[1], 0, 5] += 0.5
    assert engine.verify(prepared, sample=6).largest_difference == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("sample", [0, 1.5, True])
def test_an_impossible_sample(sample: Any) -> None:
    engine = make_engine()
    with pytest.raises(ConfigError, match="sample="):
        engine.verify(engine.prepare(A), sample=sample)


def test_what_was_read_before_the_folder_was_named_is_written(folder: Path) -> None:
    """LMCache #2876: the disk was silently idle, because everything was in memory already."""
    first = make_engine(store=folder.with_name("other"))
    first.prepare([A, B])
    config = FocusConfig(layout="raw", chunk_size=64, plain_up_to=0)
    second = FocusEngine(first.shared, config=config, method="focus", store=folder)
    assert second.generate(QUESTION, [A], max_new_tokens=1).usage.cache_creation == 0
    assert make_engine(store=folder).generate(QUESTION, [A], max_new_tokens=1).usage.cache_creation == 0


def test_a_limit_without_a_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOCUSLLM_STORE", raising=False)
    with pytest.raises(ConfigError, match="store_limit=5: there is no store"):
        FocusEngine.from_pretrained(store_limit=5)


def test_a_model_that_was_handed_over_has_no_files() -> None:
    """llama.cpp #21133: models of a kind were not stored, without a word. Here naming a store is an error."""
    with pytest.raises(ConfigError, match=r"store='.*'.*FocusEngine.from_pretrained"):
        FocusEngine(make_engine().shared, store="somewhere")
    assert not Path("somewhere").exists()


def test_the_environment_names_the_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOCUSLLM_STORE", str(folder))
    engine = FocusEngine.from_pretrained(progress=False)
    assert engine.store.disk is not None
    assert engine.store.disk.folder == folder
    monkeypatch.setenv("FOCUSLLM_STORE", "")
    assert FocusEngine.from_pretrained(progress=False).store.disk is None


# --- killed, for real -------------------------------------------------------------------------------------------------

# One process forks a child for each moment, because importing takes longer than everything else.
_KILLED = """
import json, os, signal, sys, time, warnings
from pathlib import Path
import focus_core.disk as disk
from focus_core.cache import chunk_file, listing
from tests.engines import A, B, C, make_engine

def at(call, function, path_of, moment, kind, number):
    files = 0
    def reached(path):
        nonlocal files
        files += kind in str(path)
        if kind in str(path) and files == number:
            if moment == "before write":
                path.write_bytes(b"half a file")
            os.kill(os.getpid(), signal.SIGKILL)
    def called(*arguments, **options):
        path = path_of(*arguments)
        if moment == f"before {call}":
            reached(path)
        result = function(*arguments, **options)
        if moment == f"after {call}":
            reached(path)
        return result
    return called

def run(store, moment, kind, number, limit):
    where = moment, kind, number
    chunk_file.save_file = at("write", chunk_file.save_file, lambda tensors, path, metadata: path, *where)
    disk.os.replace = at("rename", disk.os.replace, lambda old, new: new, *where)
    disk.os.fsync = at("sync", disk.os.fsync, lambda file: os.readlink(f"/proc/self/fd/{file}"), *where)
    unlink = Path.unlink
    Path.unlink = at("remove", unlink, lambda path, **_: "" if path.suffix == ".partial" else path, *where)
    warnings.simplefilter("ignore")
    engine = make_engine(store=Path(store), store_limit=limit, parallel_chunks=1)
    engine.prepare([A, B])
    if "remove" in moment:
        time.sleep(0.1)  # what was used just now stays
        engine.prepare([C])
        listing.prune(Path(store), limit=0)

for arguments in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        try:
            run(*arguments)
        finally:
            os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL, arguments
"""
_WRITING = {
    ("before write", 1): 0,
    ("before write", 4): 3,
    ("before sync", 2): 1,
    ("before rename", 1): 0,
    ("before rename", 5): 4,
    ("after rename", 3): 3,
}
_LISTING = ("before rename", "after rename")
_REMOVING = [
    (moment, limit)
    for moment in (("before remove", 1), ("after remove", 2), ("before remove", 5))
    for limit in (None, 90_000)
]
_MOMENTS: list[tuple[str, str, int, int | None]] = [
    *((moment, "chunks", number, None) for moment, number in _WRITING),
    *((moment, "documents", 1, None) for moment in _LISTING),
    *((moment, "chunks", number, limit) for (moment, number), limit in _REMOVING),
]


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int, int | None], Path]:
    """A folder for each moment, in which a process was killed."""
    folders = {moment: tmp_path_factory.mktemp("killed") / "store" for moment in _MOMENTS}
    run = subprocess.run(
        [sys.executable, "-c", _KILLED, json.dumps([(str(folder), *moment) for moment, folder in folders.items()])],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "number"), _WRITING)
def test_kill_9_at_every_point_of_writing_a_chunk(killed: Any, moment: str, number: int) -> None:
    """Nothing is wrong afterwards, and what was finished is there."""
    folder, finished = killed[moment, "chunks", number, None], _WRITING[moment, number]
    assert len(chunk_files(folder)) == finished
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = make_engine(store=folder).generate(QUESTION, [A, B], max_new_tokens=8)
    assert answer.text == cold(QUESTION, [A, B])
    assert answer.usage.cache_read == finished * 64  # the longest chunks are read first
    assert len(chunk_files(folder)) == 6


@pytest.mark.slow
@pytest.mark.parametrize("moment", _LISTING)
def test_kill_9_while_a_list_is_written(killed: Any, moment: str) -> None:
    folder = killed[moment, "documents", 1, None]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = make_engine(store=folder).generate(QUESTION, [A, B], max_new_tokens=8)
    assert answer.text == cold(QUESTION, [A, B])
    assert [one.chunks for one in list_documents(folder)] == [3, 3]


@pytest.mark.slow
@pytest.mark.parametrize(("moment", "limit"), _REMOVING)
def test_kill_9_while_chunks_are_evicted_or_pruned(killed: Any, moment: tuple[str, int], limit: int | None) -> None:
    folder = killed[moment[0], "chunks", moment[1], limit]
    left = len(chunk_files(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        answer = make_engine(store=folder).generate(QUESTION, [A, B, C], max_new_tokens=8)
    assert answer.text == cold(QUESTION, [A, B, C])
    assert 0 < answer.usage.cache_read <= left * 64


# --- several processes ------------------------------------------------------------------------------------------------

_ASKING = """
import json, sys, warnings
from pathlib import Path
from tests.engines import QUESTION, A, B, C, make_engine

warnings.simplefilter("error")
answers, read = [], 0
for turn in range(int(sys.argv[2])):
    engine = make_engine(store=Path(sys.argv[1]), store_bytes=0)
    documents = [(A, B, C)[(turn + number) % 3] for number in range(2)]
    answer = engine.generate(QUESTION, documents, max_new_tokens=8)
    answers.append([documents, answer.text])
    read += answer.usage.cache_creation
print(json.dumps([answers, read]))
"""


def asking(folder: Path, turns: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", _ASKING, str(folder), str(turns)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def told(process: subprocess.Popen[str]) -> tuple[list[tuple[list[str], str]], int]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answers, read = json.loads(out)
    return answers, read


@pytest.mark.slow
def test_another_process_reads_no_chunk(folder: Path) -> None:
    """LMCache #562, #1175: the index lived in the process. llama.cpp #25913, #28276: what was restored was not used."""
    make_engine(store=folder).prepare([A, B, C])
    answers, read = told(asking(folder, 3))
    assert read == 0
    assert all(text == cold(QUESTION, documents) for documents, text in answers)


@pytest.mark.slow
def test_two_processes_ask_while_a_third_prunes(folder: Path) -> None:
    """SGLang #10969: two writers of one page. llm-d: nothing ever left."""
    processes = [asking(folder, 12) for _ in range(2)]
    pruned = 0
    while any(process.poll() is None for process in processes):
        if folder.exists():
            pruned += prune(folder, limit=40_000) > 0
        time.sleep(0.05)
    for process in processes:
        answers, _ = told(process)
        assert all(text == cold(QUESTION, documents) for documents, text in answers)
    assert pruned
    assert all(reason is None for _, reason in verify_files(chunk_files(folder)))


# --- any sequence of operations ---------------------------------------------------------------------------------------


class StoreAgainstNone(RuleBasedStateMachine):
    """Prepare, ask, edit, evict, restart, damage, prune, other settings, another model, files of others.

    Answers are always those of a cold engine without a store.
    """

    cold: ClassVar[dict[Any, str]] = {}
    settings: ClassVar[list[dict[str, Any]]] = [
        {},
        {"chunk_size": 48},
        {"method": "select", "boundaries": "tokens"},
        {"kv_dtype": "int8"},
        {"seed": 7, "key": "fedcba9876543210" * 4},  # another model
    ]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.suffix = ""

    @initialize(limit=st.sampled_from([10**9, 150_000, 60_000]))
    def begin(self, limit: int) -> None:
        self.limit = limit
        self.engines = [self.start(number) for number in range(len(self.settings))]

    def start(self, number: int) -> FocusEngine:
        return make_engine(store=self.folder, store_limit=self.limit, **self.settings[number])

    def documents(self, names: list[int]) -> list[str]:
        return [(A, B, C)[name] + self.suffix for name in names]

    @rule(number=st.integers(0, 4), names=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def prepare(self, number: int, names: list[int]) -> None:
        self.engines[number].prepare(self.documents(names))

    @rule(number=st.integers(0, 4), names=st.lists(st.integers(0, 2), min_size=1, max_size=3))
    def ask(self, number: int, names: list[int]) -> None:
        documents = self.documents(names)
        key = (number, *documents)
        if key not in self.cold:
            self.cold[key] = ask(make_engine(**self.settings[number]), *documents)
        assert ask(self.engines[number], *documents) == self.cold[key]

    @rule(suffix=st.sampled_from(["", " The end.", " An afterword, longer than a line."]))
    def edit(self, suffix: str) -> None:
        self.suffix = suffix

    @rule(number=st.integers(0, 4))
    def evict(self, number: int) -> None:
        self.engines[number].store.memory.clear()

    @rule(number=st.integers(0, 4))
    def restart(self, number: int) -> None:
        self.engines[number] = self.start(number)

    @rule(position=st.floats(0, 1, exclude_max=True), byte=st.floats(0, 1, exclude_max=True))
    def damage(self, position: float, byte: float) -> None:
        files = chunk_files(self.folder)
        if files:
            path = files[int(position * len(files))]
            content = bytearray(path.read_bytes())
            content[int(byte * len(content))] ^= 0x55
            path.write_bytes(content)

    @rule(position=st.floats(0, 1, exclude_max=True))
    def remove(self, position: float) -> None:
        files = chunk_files(self.folder)
        if files:
            files[int(position * len(files))].unlink()

    @rule(limit=st.sampled_from([0, 60_000, 10**9]))
    def prune(self, limit: int) -> None:
        prune(self.folder, limit=limit)

    @rule(nbytes=st.sampled_from([0, 30_000]))
    def foreign(self, nbytes: int) -> None:
        (self.folder / "holiday.jpg").write_bytes(b"x" * nbytes)

    @rule(position=st.floats(0, 1, exclude_max=True), text=st.sampled_from(["", "{}", "\0"]))
    def damage_a_list(self, position: float, text: str) -> None:
        lists = sorted(self.folder.rglob("*.json"))
        if lists:
            lists[int(position * len(lists))].write_text(text)

    @invariant()
    def within_the_limit(self) -> None:
        files = [path for path in self.folder.rglob("*") if path.is_file() and path.suffix != ".jpg"]
        assert sum(path.stat().st_size for path in files) <= self.limit

    def teardown(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


TestStoreAgainstNone = StoreAgainstNone.TestCase
TestStoreAgainstNone.settings = settings(max_examples=30, stateful_step_count=12, deadline=None)
TestStoreAgainstNone.pytestmark = [
    pytest.mark.filterwarnings("ignore::focus_core.FocusWarning"),
    pytest.mark.slow,
]
