"""The pages in docs/ are true: their Python runs from top to bottom, and prints what it says it prints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from focus_core.registry import EMBEDDED_FOLDER

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))
EMBEDDED_IS_HERE = (EMBEDDED_FOLDER / "base" / "config.json").is_file()


def python_blocks(page: str) -> list[tuple[int, str]]:
    """Each block with the number of its first line."""
    found = re.finditer(r"^```python\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [(page[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def promises(block: str) -> list[str]:
    """What `print(…)  # → …` says will be printed."""
    return re.findall(r"^ *print\(.*\)  # → (.+)$", block, flags=re.MULTILINE)


def name(path: Path) -> str:
    return path.stem


def test_there_are_pages() -> None:
    assert PAGES


@pytest.mark.skipif(not EMBEDDED_IS_HERE, reason="the embedded model is not in focus_core/embedded")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PAGES, ids=name)
def test_python_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks share their names, as for a reader who copies one after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOCUSLLM_MODEL", raising=False)
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, block in python_blocks(text):
        padded = "\n" * (line - 1) + block  # so that a traceback points into the page
        exec(compile(padded, str(path), "exec"), names)
        shown = capsys.readouterr().out
        for promised in promises(block):
            assert promised in shown.splitlines(), f"{path.name}, block at line {line}: printed {shown!r}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", path.read_text(encoding="utf-8"))
    assert not [one for one in targets if not one.startswith("https://") and not (path.parent / one).exists()]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_no_figure_is_missing(path: Path) -> None:
    """A line that was left to be filled in."""
    assert not re.findall(r"^(TODO|TBD|FEATURES)\b", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
