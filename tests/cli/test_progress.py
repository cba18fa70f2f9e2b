"""Bars and spinners: over what takes long, on a terminal, and nowhere else."""

from __future__ import annotations

import io
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from focus_core import Document, FocusConfig, FocusEngine, progress
from focus_core.cli import loading
from focus_core.loading import base
from focus_core.text.documents import TokenizedDocument
from focus_core.training.trainer import train
from tests.engines import A, B, make_engine
from tests.training.cases import config_for, focus_model, numbered


class Screen(io.StringIO):
    """Standard error, for somebody who watches or for a file."""

    def __init__(self, *, terminal: bool) -> None:
        super().__init__()
        self._terminal = terminal

    def isatty(self) -> bool:
        return self._terminal


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)


def watch(monkeypatch: pytest.MonkeyPatch, *, terminal: bool) -> Screen:
    """Standard error from here to the end of the test. Not a fixture: pytest would put its own back after it."""
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):  # rich believes them more than the stream
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = Screen(terminal=terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    return screen


def _shows(screen: Screen, text: str, *, within: float = 5.0) -> bool:
    """Whether a text comes up; another thread draws it."""
    end = time.monotonic() + within
    while text not in screen.getvalue() and time.monotonic() < end:
        time.sleep(0.002)
    return text in screen.getvalue()


def _until_shown(screen: Screen, text: str) -> progress.Report:
    """A report that waits for the bar."""

    def wait(done: int, total: int) -> None:
        assert _shows(screen, text)

    return wait


@pytest.mark.usefixtures("impatient")
def test_a_spinner_inside_another_one_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would overwrite each other's line; and the first one must not keep all later ones from being shown."""
    terminal = watch(monkeypatch, terminal=True)
    with progress.sign_of_life("outer"):
        with progress.sign_of_life("inner"):
            assert _shows(terminal, "outer")
        assert not _shows(terminal, "inner", within=0.2)
    with progress.sign_of_life("later"):
        assert _shows(terminal, "later")


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_reading_shows_a_bar_and_goes_on_reporting(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    seen: list[tuple[int, int]] = []
    engine = make_engine(parallel_chunks=1)
    slowly = _until_shown(terminal, "reading chunks")

    def report(done: int, total: int) -> None:
        slowly(done, total)
        seen.append((done, total))

    engine.prepare([A, B], report=report)
    assert "reading chunks" in terminal.getvalue()
    assert "6/6" in terminal.getvalue()
    assert seen == [(done, 6) for done in range(1, 7)]


@pytest.mark.usefixtures("impatient")
def test_a_question_shows_the_bar_too(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    slowly = _until_shown(terminal, "reading chunks")
    make_engine(parallel_chunks=1).generate("Which?", [A], max_new_tokens=1, report=slowly)
    assert "reading chunks" in terminal.getvalue()


@pytest.mark.usefixtures("impatient")
def test_the_bar_is_gone_before_the_answer_comes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One that stays would be drawn between the pieces of the answer."""
    terminal = watch(monkeypatch, terminal=True)
    pieces = make_engine(parallel_chunks=1).stream(
        "Which?", [A], max_new_tokens=6, report=_until_shown(terminal, "reading chunks")
    )
    next(pieces)
    shown = terminal.getvalue()
    assert "reading chunks" in shown
    print("a", end="")
    assert capsys.readouterr().out == "a"
    time.sleep(0.2)  # a bar that goes on would have been drawn again
    assert terminal.getvalue() == shown
    list(pieces)


@pytest.mark.usefixtures("impatient")
def test_a_bar_comes_up_before_anything_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of a few long documents may take minutes."""
    terminal = watch(monkeypatch, terminal=True)
    with progress.progress_bar("trials"):
        assert _shows(terminal, "trials")


@pytest.mark.usefixtures("impatient")
def test_a_bar_leaves_standard_output_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = watch(monkeypatch, terminal=True)
    for shown in (progress.progress_bar("reading"), progress.sign_of_life("reading")):
        with shown:
            assert _shows(terminal, "reading")
            print("an answer in another thread")
        assert capsys.readouterr().out == "an answer in another thread\n"


def test_what_is_quick_leaves_nothing_on_a_simple_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    monkeypatch.setenv("TERM", "dumb")
    with progress.progress_bar("reading"), progress.sign_of_life("starting"):
        pass
    assert terminal.getvalue() == ""


def test_a_program_without_a_console_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with progress.progress_bar("reading") as report, progress.sign_of_life("starting"):
        report(1, 2)


@pytest.mark.usefixtures("impatient")
def test_tokenizing_shows_a_spinner(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    engine = make_engine()
    tokenize = engine.shared.tokenizer.document

    def slowly(document: Document, *, in_turn: bool) -> TokenizedDocument:
        assert _shows(terminal, "tokenizing")
        return tokenize(document, in_turn=in_turn)

    monkeypatch.setattr(engine.shared.tokenizer, "document", slowly)
    engine.generate("Which?", [A], max_new_tokens=1)
    assert "tokenizing" in terminal.getvalue()


@pytest.mark.usefixtures("impatient")
def test_no_bar_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    log_file = watch(monkeypatch, terminal=False)
    make_engine(parallel_chunks=1).prepare(A)
    assert log_file.getvalue() == ""


@pytest.mark.usefixtures("impatient")
def test_no_bar_where_it_is_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    config = FocusConfig(chunk_size=64, parallel_chunks=1, plain_up_to=0)
    assert FocusEngine(make_engine().shared, config=config, progress=False).prepare(A).chunks
    assert terminal.getvalue() == ""


def test_no_bar_over_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    make_engine(parallel_chunks=1).prepare(A)
    assert terminal.getvalue() == ""


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("impatient")
def test_a_spinner_says_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    with progress.sign_of_life("starting"):
        assert _shows(terminal, "starting")
    shown = terminal.getvalue()
    time.sleep(0.2)  # a spinner that goes on would have moved
    assert terminal.getvalue() == shown


@pytest.mark.usefixtures("impatient")
def test_loading_shows_a_bar_and_what_it_takes(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A large model takes a minute to load, in which nothing would tell that the command works."""
    terminal, shown = watch(monkeypatch, terminal=True), []
    load = base.AutoModelForCausalLM.from_pretrained

    def loaded(*names: Any, **arguments: Any) -> Any:
        shown.append(_shows(terminal, "loading model: 0.00 GiB in float32"))
        found = load(*names, **arguments)
        shown.append(_shows(terminal, "30/30"))  # tensors
        return found

    monkeypatch.setattr(base.AutoModelForCausalLM, "from_pretrained", loaded)
    loading.load_engine(str(model_folder), None, None, "cpu", "auto", config=FocusConfig())
    assert shown == [True, True]
    assert "Loading weights" not in terminal.getvalue()  # the bar of transformers


@pytest.mark.usefixtures("impatient")
def test_no_spinner_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    log_file = watch(monkeypatch, terminal=False)
    with progress.sign_of_life("starting"):
        assert not _shows(log_file, "starting", within=0.1)
    assert log_file.getvalue() == ""


def test_no_spinner_over_what_is_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watch(monkeypatch, terminal=True)
    with progress.sign_of_life("starting"):
        pass
    assert terminal.getvalue() == ""


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_shows_a_bar_with_its_losses(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    terminal = watch(monkeypatch, terminal=True)
    train(config_for(tmp_path, steps=2), model=focus_model(), examples=numbered)
    assert "training · answering" in terminal.getvalue()
    assert "2/2" in terminal.getvalue()
    assert '{"step"' not in terminal.getvalue()


def test_training_writes_json_lines_into_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log_file = watch(monkeypatch, terminal=False)
    train(config_for(tmp_path, steps=2), model=focus_model(), examples=numbered)
    lines = [json.loads(line) for line in log_file.getvalue().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all("loss/answering" in line for line in lines)
