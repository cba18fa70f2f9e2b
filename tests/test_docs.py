"""The pages in docs/ are true: their Python runs from top to bottom, and prints what it says it prints."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from focus_core.training.config import OBJECTIVES, TrainingConfig
from focus_core.training.records import read_records
from tests.embedded import needs_embedded

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(page: str, language: str) -> list[tuple[int, str]]:
    """Each block with the number of its first line."""
    found = re.finditer(rf"^```{language}\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL)
    return [(page[: match.start(1)].count("\n") + 1, match[1]) for match in found]


def promises(block: str) -> list[str]:
    """What `print(…)  # → …` says will be printed."""
    return re.findall(r"^ *print\(.*\)  # → (.+)$", block, flags=re.MULTILINE)


def name(path: Path) -> str:
    return path.stem


def test_there_are_pages() -> None:
    assert PAGES


def _slow(path: Path) -> Any:
    """The pages on the frameworks and on training take longest; what they use is tested elsewhere too."""
    marks = [pytest.mark.slow] if name(path) in ("langchain", "llama_index", "training") else []
    return pytest.param(path, marks=marks, id=name(path))


@needs_embedded
@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", [*map(_slow, PAGES)])
def test_python_runs(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Blocks share their names, as for a reader who copies one after the other."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FOCUSLLM_MODEL", raising=False)
    text = path.read_text(encoding="utf-8")
    names: dict[str, Any] = {"__name__": "__main__"}
    for line, block in blocks(text, "python"):
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


def test_the_training_file_shows_every_setting_with_its_default(tmp_path: Path) -> None:
    """A setting that the page forgets is one that nobody finds."""
    ((_, toml),) = blocks((ROOT / "docs/training.md").read_text(encoding="utf-8"), "toml")
    (tmp_path / "train.toml").write_text(toml, encoding="utf-8")
    shown = TrainingConfig.from_toml(tmp_path / "train.toml")
    assert shown == replace(
        TrainingConfig(shown.output), data=shown.data, model=shown.model, objectives=shown.objectives
    )
    assert set(re.findall(r"^(?:# )?(\w+) =", toml, flags=re.MULTILINE)) == {
        *(field.name for field in fields(TrainingConfig)),
        *OBJECTIVES,
    } - {"objectives", "used_with"}


def test_the_lines_of_training_data_are_read(tmp_path: Path) -> None:
    ((_, lines),) = blocks((ROOT / "docs/training.md").read_text(encoding="utf-8"), "json")
    (tmp_path / "data.jsonl").write_text(lines, encoding="utf-8")
    objectives = [record.objectives for record in read_records(tmp_path / "data.jsonl")]
    assert objectives == [("continuation", "reconstruction"), *[("answering",)] * 4]
