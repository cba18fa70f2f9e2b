"""The command as its user starts it: streams, Ctrl-C, exit codes, and how quick the help is.

Importing torch takes seconds in each process, so only three tests that need one of their own start it; the others call
`main` here, with streams of theirs.
"""

from __future__ import annotations

import io
import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Protocol, TextIO

import pytest

from focus_core import __version__
from focus_core.cli import main
from tests.tiny import save_tiny_model

COMMAND = [sys.executable, "-m", "focus_core.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself, however slowly a signal arrives."""
    return save_tiny_model(tmp_path_factory.mktemp("endless") / "model", readable=True)


def short_answer(model_folder: Path) -> list[str]:
    return ["ask", "--model", str(model_folder), "--max-new-tokens", "2", "What?"]


def long_answer(model_folder: Path) -> list[str]:
    """Thousands of tokens."""
    return ["ask", "--model", str(model_folder), "--max-new-tokens", "4000", "--temperature", "1", "Go on"]


# --- in a process of its own ------------------------------------------------------------------------------------------


def started(arguments: list[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        # A shell starts what runs in the background with interrupts ignored, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.slow
def test_all_streams_are_closed(model_folder: Path) -> None:
    """Services start programs so. The first files that are opened take the places of the streams."""
    command = shlex.join([*COMMAND, *short_answer(model_folder)])
    done = subprocess.run(f"{command} <&- >&- 2>&-", shell=True, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.slow
def test_ctrl_c_says_what_was_kept(endless: Path) -> None:
    process = started(long_answer(endless))
    assert process.stdout is not None
    assert process.stdout.read(1)  # it writes
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Interrupted: the answer is not complete" in error
    assert b"Traceback" not in error


@pytest.mark.slow
def test_reader_that_goes_away(endless: Path) -> None:
    """`focusllm ask … | head -c 10` must end in silence."""
    process = started(long_answer(endless))
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


# --- in this process --------------------------------------------------------------------------------------------------


class Command(Protocol):
    """Runs `focusllm` with arguments and gives its exit code; streams that are not named are files in memory."""

    def __call__(self, arguments: list[str], **streams: TextIO | None) -> int: ...


@pytest.fixture
def focusllm(monkeypatch: pytest.MonkeyPatch) -> Command:
    def run(arguments: list[str], **streams: TextIO | None) -> int:
        monkeypatch.setattr(sys, "argv", ["focusllm", *arguments])
        for name in ("stdin", "stdout", "stderr"):
            monkeypatch.setattr(sys, name, streams.get(name, in_memory()))
        with pytest.raises(SystemExit) as ended:
            main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    return run


def in_memory(content: bytes = b"", *, encoding: str = "utf-8") -> io.TextIOWrapper:
    return io.TextIOWrapper(io.BytesIO(content), encoding=encoding)


def written(stream: io.TextIOWrapper) -> str:
    stream.flush()
    content: bytes = stream.buffer.getvalue()  # type: ignore[attr-defined]
    return content.decode(stream.encoding)


def test_answers_from_a_pipe(focusllm: Command, model_folder: Path) -> None:
    """Its bytes may be in any encoding, whatever that of the terminal is."""
    output, error = in_memory(), in_memory()
    command = ["ask", "--model", str(model_folder), "--max-new-tokens", "4", "-d", "-", "What?"]
    assert focusllm(command, stdin=in_memory("Ein Café.".encode("latin-1")), stdout=output, stderr=error) == 0
    assert written(output).endswith("\n")
    assert written(error) == ""


def test_error_has_no_traceback(focusllm: Command) -> None:
    output, error = in_memory(), in_memory()
    assert focusllm(["ask", "-d", "no-such-file", "What?"], stdout=output, stderr=error) == 1
    assert written(output) == ""
    assert written(error).splitlines() == ["Error: no-such-file: there is no such file."]


@pytest.mark.parametrize("closed", ["stdin", "stdout", "stderr"])
def test_a_stream_that_is_closed(focusllm: Command, closed: str, model_folder: Path) -> None:
    """Python has None in its place. What is open gets what it always gets."""
    output, error = in_memory(), in_memory()
    assert focusllm(short_answer(model_folder), **{"stdout": output, "stderr": error, closed: None}) == 0
    assert bool(written(output)) is (closed != "stdout")
    assert written(error) == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_has_no_traceback(focusllm: Command, model_folder: Path) -> None:
    """Python writes what is left when it closes the output, and must not fail a second time."""
    error = in_memory()
    with open("/dev/full", "w") as output:
        assert focusllm(short_answer(model_folder), stdout=output, stderr=error) == 1
    assert written(error).splitlines() == ["Error: The output: No space left on device."]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], []])
def test_help_for_a_full_disk_has_no_traceback(focusllm: Command, arguments: list[str]) -> None:
    """It is written before there is a command that could catch the error."""
    error = in_memory()
    with open("/dev/full", "w") as output:
        assert focusllm(arguments, stdout=output, stderr=error) == 1
    assert written(error).splitlines() == ["Error: The output: No space left on device."]


def test_terminal_without_unicode(focusllm: Command, model_folder: Path) -> None:
    """A letter that the terminal lacks becomes a question mark; it does not end the answer."""
    command = ["ask", "--model", str(model_folder), "--temperature", "1", "--seed", "0", "What?"]
    shown = {}
    for encoding in ("utf-8", "latin-1"):
        output = in_memory(encoding=encoding)
        assert focusllm(command, stdout=output) == 0
        shown[encoding] = written(output)
    assert "\ufffd" in shown["utf-8"]  # random bytes are seldom UTF-8
    assert shown["latin-1"] == shown["utf-8"].encode("latin-1", errors="replace").decode("latin-1")


# --- without torch ----------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True)
    assert done.stdout == f"focusllm {__version__}\n"


@pytest.mark.parametrize("arguments", [["--help"], ["ask", "--help"], ["--version"]])
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    """Importing torch takes seconds."""
    check = (
        "import sys; sys.argv[1:] = {!r}\n"
        "from focus_core.cli import main\n"
        "try: main()\n"
        "finally: assert not {{'torch', 'transformers'}} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", check.format(arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
