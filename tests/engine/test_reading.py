"""What `on_reading` is told: what was found, what is read, from the first look to the last pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from focus_core import ConfigError, FocusEngine, FocusWarning, Reading
from tests.engines import QUESTION, A, B, make_engine


def told(engine: FocusEngine, *documents: str, question: str | list[str] = QUESTION) -> list[tuple[int, int, int]]:
    """`total`, `cached` and `read` of every reading of one question."""
    seen: list[Reading] = []
    engine.generate(question, list(documents), max_new_tokens=2, on_reading=seen.append)
    seconds = [reading.seconds for reading in seen]
    assert seconds == sorted(seconds)
    assert all(0 <= one < 60 for one in seconds)
    return [(reading.total, reading.cached, reading.read) for reading in seen]


def test_one_before_the_first_pass_and_one_after_each() -> None:
    assert told(make_engine(parallel_chunks=1), A) == [(3, 0, 0), (3, 0, 1), (3, 0, 2), (3, 0, 3)]


def test_what_lies_in_memory_is_found() -> None:
    engine = make_engine(parallel_chunks=1)
    told(engine, A)
    assert told(engine, A) == [(3, 3, 0)]
    assert told(engine, A, B) == [(6, 3, 0), (6, 3, 1), (6, 3, 2), (6, 3, 3)]


def test_what_lies_in_the_folder_is_found(tmp_path: Path) -> None:
    make_engine(store=tmp_path).prepare(A)
    assert set(told(make_engine(store=tmp_path), A)) == {(3, 3, 0)}


def test_a_damaged_file_was_not_found_after_all(tmp_path: Path) -> None:
    """Its header is whole; that its content is not shows when it is loaded."""
    make_engine(store=tmp_path).prepare(A)
    path = sorted(tmp_path.rglob("*.safetensors"))[0]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(FocusWarning, match="read anew"):
        seen = told(make_engine(store=tmp_path), A)
    assert (seen[0], seen[-1]) == ((3, 3, 0), (3, 2, 1))


def test_questions_about_the_same_chunks_are_told_once() -> None:
    assert told(make_engine(parallel_chunks=1), A, question=["Which?", "Who?"])[1:] == [(3, 0, n) for n in (1, 2, 3)]


def test_a_text_that_comes_twice_counts_once() -> None:
    assert told(make_engine(), A, A)[-1] == (3, 0, 3)


def test_no_chunks_no_reading() -> None:
    """The plain model reads document and question in one row."""
    engine = make_engine()
    seen: list[Reading] = []
    engine.generate(QUESTION, [A], method="plain", max_new_tokens=2, on_reading=seen.append)
    engine.generate(QUESTION, max_new_tokens=2, on_reading=seen.append)
    assert seen == []


def test_what_it_raises_ends_the_reading() -> None:
    engine = make_engine(parallel_chunks=1)

    def stop(reading: Reading) -> None:
        if reading.read:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.generate(QUESTION, [A], on_reading=stop)
    assert engine.shared.scheduler.idle
    assert told(engine, A)[0] == (3, 1, 0)


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(ConfigError, match="on_reading='yes': must be a function of one Reading"):
        make_engine().generate(QUESTION, [A], on_reading="yes")  # type: ignore[arg-type]
