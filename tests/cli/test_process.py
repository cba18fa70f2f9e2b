"""The command as a process of its own: speed of the help, pipes, Ctrl-C."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from focus_core import __version__
from tests.tiny import save_tiny_model

COMMAND = [sys.executable, "-m", "focus_core.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that never ends an answer by itself, however slowly a signal arrives."""
    return save_tiny_model(tmp_path_factory.mktemp("endless") / "model", readable=True)


def long_answer(model_folder: Path) -> subprocess.Popen[bytes]:
    """A command that writes thousands of tokens."""
    command = [*COMMAND, "ask", "--model", str(model_folder), "--max-new-tokens", "4000", "--temperature", "1"]
    return subprocess.Popen(
        [*command, "Go on"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        env=ENVIRONMENT,
        # A shell starts what runs in the background with interrupts ignored, and its children inherit that.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )


def test_answers_from_a_pipe(model_folder: Path) -> None:
    command = [*COMMAND, "ask", "--model", str(model_folder), "--max-new-tokens", "4", "-d", "-", "What?"]
    done = subprocess.run(command, input="Ein Café.".encode("latin-1"), capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b"\n")
    assert done.stderr == b""


def test_error_has_no_traceback() -> None:
    done = subprocess.run([*COMMAND, "ask", "-d", "no-such-file", "What?"], capture_output=True, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stdout == b""
    assert done.stderr.decode().splitlines() == ["Error: no-such-file: there is no such file."]


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed(closed: str, model_folder: Path) -> None:
    """Services start programs so; Python has None in their place."""
    command = [*COMMAND, "ask", "--model", str(model_folder), "--max-new-tokens", "2", "What?"]
    done = subprocess.run(f"{shlex.join(command)} {closed}", shell=True, capture_output=True, env=ENVIRONMENT)
    assert (done.returncode, done.stderr) == (0, b"")
    assert bool(done.stdout) is (">&-" not in closed.replace("2>&-", ""))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is always full")
def test_a_full_disk_has_no_traceback(model_folder: Path) -> None:
    command = [*COMMAND, "ask", "--model", str(model_folder), "--max-new-tokens", "2", "What?"]
    done = subprocess.run(f"{shlex.join(command)} > /dev/full", shell=True, stderr=subprocess.PIPE, env=ENVIRONMENT)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines() == ["Error: The output: No space left on device."]


def test_ctrl_c_says_what_was_kept(endless: Path) -> None:
    process = long_answer(endless)
    assert process.stdout is not None
    assert process.stdout.read(1)  # it writes
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"Interrupted: the answer is not complete" in error
    assert b"Traceback" not in error


def test_reader_that_goes_away(endless: Path) -> None:
    """`focusllm ask … | head -c 10` must end in silence."""
    process = long_answer(endless)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 141


def test_terminal_without_unicode(model_folder: Path) -> None:
    """A letter that the terminal lacks becomes a question mark; it does not end the answer."""
    command = [*COMMAND, "ask", "--model", str(model_folder), "--temperature", "1", "--seed", "0", "What?"]
    shown = {}
    for encoding in ("utf-8", "latin-1"):
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
        done = subprocess.run(command, capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        shown[encoding] = done.stdout.decode(encoding)
    assert "\ufffd" in shown["utf-8"]  # random bytes are seldom UTF-8
    assert shown["latin-1"] == shown["utf-8"].encode("latin-1", errors="replace").decode("latin-1")


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
