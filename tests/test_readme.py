"""The README is true: its Python runs, and its file tree is that of the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from focus_core.cli import app
from tests.embedded import needs_embedded

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    found = re.findall(r"^```(\w*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [block for name, block in found if name == language]


def tree() -> list[str]:
    """Paths in the file tree; two spaces stand for one folder."""
    listing = next(block for block in blocks("") if block.startswith("focus_core/"))
    paths: list[str] = []
    folders: list[str] = []
    for line in listing.splitlines():
        name = line.split()[0]
        depth = (len(line) - len(line.lstrip())) // 2
        folders = [*folders[:depth], name.rstrip("/")]
        paths.append("/".join(folders))
    return paths


def test_the_two_commands_are_shown_and_exist() -> None:
    rules = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    shown = set(re.findall(r"^make (\w+)", "\n".join(blocks("")), flags=re.MULTILINE))
    assert {"demo", "test"} <= shown <= set(rules)


@needs_embedded
def test_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The first thing that a reader copies must work, and find what it asks for."""
    filler = "The grass is green and the sky is blue. " * 120
    facts = ("The pass key is 71402. ", "The access code of the amber falcon is 48213. ")
    (tmp_path / "book.txt").write_text(filler + facts[0] + filler + facts[1] + filler)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for number, block in enumerate(blocks("python"), 1):
        exec(compile(block, f"README.md, Python block {number}", "exec"), names)
    shown = capsys.readouterr().out
    assert "71402" in shown
    assert "48213" in shown
    assert "Lisbon" in shown


def test_every_path_of_the_file_tree_exists() -> None:
    missing = [path for path in tree() if not (ROOT / path).exists() and path != "focus_core/embedded"]
    assert not missing


def test_every_module_is_in_the_file_tree() -> None:
    """A newcomer looks for it there."""
    core = ROOT / "focus_core"
    modules = {
        f"focus_core/{path.name}"
        for path in core.iterdir()
        if path.suffix == ".py" or (path.is_dir() and any(path.glob("*.py")))
    }
    modules |= {f"focus_core/attention/{path.name}" for path in (core / "attention").glob("[a-z]*.py")}
    assert not sorted(modules - set(tree()))


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README)
    assert targets
    assert not [target for target in targets if not target.startswith("https://") and not (ROOT / target).exists()]


def test_every_command_exists() -> None:
    """`focusllm …` and `make …` in the README."""
    shown = "\n".join([*blocks(""), *re.findall(r"`([^`\n]+)`", README)])
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    commands |= {group.name for group in app.registered_groups if group.name}
    assert set(re.findall(r"^focusllm (\w+)", shown, flags=re.MULTILINE)) <= commands
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    assert set(re.findall(r"^make ([a-z-]+)", shown, flags=re.MULTILINE)) <= targets
