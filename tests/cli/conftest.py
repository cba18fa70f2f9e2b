"""A tiny model in a folder, and a way to call the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import pytest
from typer.testing import CliRunner, Result

from focus_core.cli import app
from tests.tiny import save_tiny_model


class Focusllm(Protocol):
    """Runs `focusllm` with arguments, in this process."""

    def __call__(self, *arguments: str | Path, stdin: bytes = b"") -> Result: ...


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, with its adapter in `adapter/`."""
    return save_tiny_model(tmp_path_factory.mktemp("cli") / "model")


@pytest.fixture
def focusllm() -> Focusllm:
    """The command line in this process; pass `--model` yourself."""

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)

    return run


@pytest.fixture
def ask(focusllm: Focusllm, model_folder: Path) -> Focusllm:
    """`focusllm ask` with the tiny model and its adapter, at most 8 new tokens."""
    fixed = ("ask", "--model", model_folder, "--adapter", model_folder / "adapter", "--max-new-tokens", "8")

    def run(*arguments: str | Path, stdin: bytes = b"") -> Result:
        return focusllm(*fixed, *arguments, stdin=stdin)

    return run
