"""Chunks are prefilled once, found again, and never beyond the memory."""

from __future__ import annotations

import pytest

from focus_core import (
    ContextOverflowError,
    FocusEngine,
    OutOfMemoryError,
)
from focus_core import device as device_module
from tests.engines import QUESTION, A, B, C, cold, make_engine


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


def test_same_raw_text_is_read_once(engine: FocusEngine) -> None:
    first = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    second = engine.generate(QUESTION, [A, B], max_new_tokens=8)
    assert second.text == first.text
    assert (first.usage.cache_read, first.usage.cache_creation) == (0, len(A) + len(B))
    assert (second.usage.cache_read, second.usage.cache_creation) == (len(A) + len(B), 0)


def test_chunks_dropped_from_the_store_are_read_again() -> None:
    small = make_engine(store_bytes=0)
    prepared = small.prepare([A, B])
    answer = small.generate(QUESTION, prepared, max_new_tokens=8)
    assert answer.text == cold(QUESTION, [A, B])
    assert answer.usage.cache_read == 0
    assert small.store.memory.nbytes == 0


def test_room_for_questions_is_asked_for_before_any_work(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a question and its answer append to every chunk takes memory too."""
    monkeypatch.setattr(device_module, "free_memory", lambda _: 400 * engine.focus.cache_bytes_per_token)
    read: list[int] = []
    engine.generate(QUESTION, [A], max_new_tokens=8)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, [B], max_new_tokens=100, report=lambda done, _: read.append(done))
    assert read == []


def test_room_for_a_question_is_asked_for_where_all_has_been_read(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = engine.prepare(A)
    monkeypatch.setattr(device_module, "free_memory", lambda _: 20 * engine.focus.cache_bytes_per_token)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, prepared, max_new_tokens=8)


def test_what_the_question_itself_needs_does_not_give_way(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would stay in memory all the same, and be counted as free."""
    store = engine.shared.store
    engine.prepare(A)
    kept = store.nbytes
    monkeypatch.setattr(device_module, "free_memory", lambda _: kept - store.nbytes)
    with pytest.raises(OutOfMemoryError):
        engine.generate(QUESTION, [A, C], max_new_tokens=1)
    assert store.nbytes == kept


def test_a_batch_leaves_room_for_what_is_still_to_be_read(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that the questions' keys and values took would be missing for the documents, and the batch refused."""
    questions = [f"{QUESTION} {number}" for number in range(6)]
    alone = cold(questions[0], [A])
    chunks = sum(map(len, engine.prepare(A).chunks))
    engine = make_engine()
    one = 3 * (32 + 1 + 8)  # three chunks; a prompt, its BOS and an answer
    store, capacity = engine.shared.store, (chunks + 2 * one) * engine.focus.cache_bytes_per_token
    monkeypatch.setattr(device_module, "free_memory", lambda _: capacity - store.nbytes)
    answers = engine.generate(questions, [A], max_new_tokens=8)
    assert answers[0].text == alone
    assert len(answers) == 6


def test_documents_larger_than_the_memory_are_refused(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "free_memory", lambda _: 1000)
    with pytest.raises(OutOfMemoryError, match="GiB are free on cpu"):
        engine.generate(QUESTION, [A], max_new_tokens=8)


def test_what_is_kept_for_later_gives_way_to_what_is_needed(
    engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With memory taken by others since the start, a document would be refused for the sake of those before it."""
    store = engine.shared.store
    engine.generate(QUESTION, [A], max_new_tokens=1)
    capacity = store.nbytes + engine.count_tokens(B) * engine.focus.cache_bytes_per_token // 2
    monkeypatch.setattr(device_module, "free_memory", lambda _: capacity - store.nbytes)
    answer = engine.generate(QUESTION, [B], max_new_tokens=1)
    assert answer.usage.cache_creation == answer.usage.document_tokens
    assert 0 < store.nbytes <= capacity
    assert engine.generate(QUESTION, [A], max_new_tokens=1).usage.cache_creation > 0  # some of A had to go


def test_a_document_of_which_nothing_could_be_asked_is_not_prepared(engine: FocusEngine) -> None:
    read: list[int] = []
    with pytest.raises(ContextOverflowError, match="memory of 600 chunks"):
        engine.prepare(["short", "x" * 64 * 600], report=lambda done, _: read.append(done))
    assert read == []


def test_report_counts_chunks(engine: FocusEngine) -> None:
    seen: list[tuple[int, int]] = []
    engine.prepare([A, B], report=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] == 3 + 3


def test_chunks_are_counted_up_to_the_last(engine: FocusEngine) -> None:
    """The count would begin again with every block of chunks."""
    seen: list[tuple[int, int]] = []
    engine.prepare("".join(f"line {number}\n" for number in range(500)), report=lambda *done: seen.append(done))
    total = seen[-1][1]
    assert total > 64
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert seen[-1] == (total, total)


def test_every_document_is_seen_once_and_in_order(engine: FocusEngine) -> None:
    prepared = engine.prepare([A, B])
    assert len(prepared) == 2
    assert prepared.tokens == len(A) + len(B)
    assert engine.tokenizer.decode(prepared.documents[0].token_ids) == A
