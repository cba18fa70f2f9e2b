"""The cookbook runs: notebooks from a clean kernel, in step with their text pairs; and the demo."""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

from cookbook import your_model
from focus_core import FocusEngine
from tests.embedded import needs_embedded
from tests.models import needs_model
from tests.tiny import save_tiny_model

COOKBOOK = Path(__file__).parents[1] / "cookbook"
NOTEBOOKS = sorted(COOKBOOK.glob("[0-9]*.ipynb"))
OWN_MODEL = COOKBOOK / "04_your_own_model.ipynb"  # on a real model


def names(path: Path) -> str:
    return path.stem


def cells(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_every_notebook_has_a_text_pair() -> None:
    """Reviews read the text; a notebook without one, or a text without notebook, would never be seen."""
    assert NOTEBOOKS
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in sorted(COOKBOOK.glob("[0-9]*.py"))]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_pair_is_in_step(path: Path) -> None:
    """After a change in the text, `make notebooks`."""
    assert cells(nbformat.read(path, as_version=4)) == cells(jupytext.read(path.with_suffix(".py")))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names)
def test_every_cell_is_python(path: Path) -> None:
    """Notebooks run in `make test-slow` and `make test-long` only; a slip of the pen is to show sooner."""
    for number, (kind, source) in enumerate(cells(nbformat.read(path, as_version=4))):
        if kind == "code":
            compile(source, f"{path.name}, cell {number}", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def _when(path: Path) -> Any:
    """The first one in every run of CI; what the others show is run by pages in docs/ and by tests, too."""
    marker = pytest.mark.slow if path.stem == "01_quickstart" else pytest.mark.long
    return pytest.param(path, marks=marker, id=path.stem)


def facts_right(path: Path) -> int:
    """Runs a notebook, and counts the facts that it prints beside their answers, all of which are right.

    `execute` raises at the first cell that fails.
    """
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(COOKBOOK)}}).execute()
    shown = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))
    stated = re.findall(r"^(.*)\(stated: (.*?)\)", shown, flags=re.MULTILINE)
    assert [value for answer, value in stated if value not in answer] == []
    assert len(stated) == shown.count("(stated:")
    return len(stated)


@needs_embedded
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [_when(path) for path in NOTEBOOKS if path != OWN_MODEL])
def test_notebook_runs_from_a_clean_kernel(path: Path) -> None:
    assert facts_right(path) or path.stem != "01_quickstart"


@needs_model("smollm2")
@pytest.mark.long
@pytest.mark.timeout(900)
def test_notebook_on_ones_own_model_runs_from_a_clean_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MODEL", raising=False)
    assert facts_right(OWN_MODEL)


# --- the demo ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def demo() -> ModuleType:
    """`cookbook/demo.py` as a module, with a shorter text."""
    spec = importlib.util.spec_from_file_location("demo", COOKBOOK / "demo.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["demo"] = module  # dataclasses look their module up there
    spec.loader.exec_module(module)
    module.TOKENS = 6000
    return module


@pytest.mark.slow
def test_demo_fails_where_an_answer_is_wrong(demo: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A random model finds nothing; the demo must not call that a success."""
    folder = save_tiny_model(tmp_path)
    engine = FocusEngine.from_pretrained(folder, adapter=folder / "adapter", progress=False)
    monkeypatch.setattr(FocusEngine, "from_pretrained", lambda: engine)
    assert demo.main() == 1


def test_demo_hides_what_it_asks_for(demo: ModuleType, tmp_path: Path) -> None:
    """Every expected answer stands in the text once, at the depth that the table shows."""
    text = demo.long_text(FocusEngine.from_pretrained(save_tiny_model(tmp_path), progress=False))
    for fact, depth, _ in demo.HIDDEN:
        assert text.count(fact.value) in (1, 2)  # some statements of the pass key say it twice
        assert abs(text.index(fact.value) / len(text) - depth) < 0.03


@needs_embedded
@pytest.mark.parametrize(
    "tokens", [pytest.param(6000, marks=pytest.mark.slow), pytest.param(100_000, marks=pytest.mark.long)]
)
def test_demo_finds_everything(demo: ModuleType, tokens: int, capsys: pytest.CaptureFixture[str]) -> None:
    """What `make demo` shows, on a shorter text and on its own."""
    demo.TOKENS = tokens
    assert demo.main() == 0, capsys.readouterr().out


# --- the demo with a real model ---------------------------------------------------------------------------------------


@needs_model("smollm2")
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_of_ones_own_model_answers_from_the_story(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What `make demo MODEL=smollm2` shows, with one of its questions."""
    asked = [(question, expected) for question, expected in your_model.QUESTIONS if expected == "oranges"]
    monkeypatch.setattr(your_model, "QUESTIONS", asked)
    assert your_model.main("smollm2") == 0
    shown = capsys.readouterr().out
    assert "method select answers" in " ".join(shown.split())
    assert shown.count("oranges") == 2  # in the answer and beside it, and not without the story
