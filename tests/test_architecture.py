"""Who may import whom. The tables below are the architecture, and `docs/architecture.md` is printed from them.

    python -m tests.test_architecture        # after a change here: writes the page anew

A failure names file, line and rule.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"

# The floors of focus_core, the highest first, and the rooms on each: a folder, or a module beside them. A room may
# import rooms of lower floors, and only those that are named; inside a room there is no circle either.
FLOORS: list[dict[str, tuple[str, str]]] = [
    {
        "cli": (
            "the commands of `focusllm`: ask, info, plan, prepare, store, train, eval",
            "evaluation engine training methods loading text cache config progress errors",
        )
    },
    {
        "evaluation": (
            "how often a model answers right: tasks, contenders, intervals",
            "engine methods device progress errors",  # every method is a contender by its name
        )
    },
    {
        "engine": (
            "text in, text out: options, plans, the scheduler, answers",
            "methods loading text attention cache config device disk progress errors",
        ),
        "training": (
            "candidate projections for a model: examples, loss, loop",
            "methods loading text attention cache config device progress disk parsing errors",
        ),
    },
    {
        "methods": (
            "how chunks become logits: one file for each method, and what fits the window",
            "loading text attention cache config device progress errors",
        )
    },
    {
        "loading": (
            "weights from disk and hub: models, adapters, the authors' checkpoints, identity",
            "attention config device progress disk parsing errors",
        ),
        "text": ("strings and tokens: documents, chunks, templates, files", "cache config errors"),
    },
    {
        "attention": ("the inside of transformers: attention over chunks, candidates, RoPE", "errors"),
        "cache": ("keys and values: of chunks, of what is appended to them, and where they are kept", "disk errors"),
    },
    {
        "config": ("settings of the method and of sampling", "errors"),
        "device": ("device, dtype, free memory", "errors"),
        "progress": ("bars and spinners", ""),
        "disk": ("one way to replace a file, where a store is", "errors"),
        "parsing": ("JSON and TOML from anybody", ""),
    },
    {"errors": ("what can go wrong for a user", "")},
]
ROOMS = {room: rule for floor in FLOORS for room, rule in floor.items()}

# The way of a document, and of a question, through the house.
DOCUMENT = [
    ("text.documents", "a string becomes a `Document` at the door: its name, its metadata, one hash of its content"),
    ("text.tokenizer", "its tokens, and the character at which each begins; equal segments are tokenized once"),
    ("text.chunking", "cut into `Chunk`s, each with its document, span, opening and key"),
    ("cache.tiers", "chunks that were read before are found by their key, in memory or on disk"),
    ("methods.decoder", "the others go through the frozen model, each alone, one pass at a time"),
    ("cache.chunks", "their keys and values are written once, into blocks, and never change"),
]
QUESTION = [
    ("engine.options", "options are checked; a wrong name is answered with the right one"),
    ("text.tokenizer", "the question goes through the chat template and becomes a `Prompt`"),
    ("engine.planning", "the method is chosen, and refused before any work if `methods.limits` says it does not fit"),
    ("engine.requests", "a `QuestionRequest`: plan, sampler, text so far, notices for its client"),
    ("engine.scheduler", "waits for its chunks, joins the questions about the same ones, takes a token per step"),
    ("methods.focus", "candidates condense the chunks into a memory, from which the frozen decoder goes on"),
    ("cache.appended", "what the question appends to the chunks is its own, and leaves with it"),
    ("engine.sampling", "logits become the next token"),
    ("text.stream", "tokens become text: no half characters, no stop string"),
    ("engine.answers", "`Piece`s while it runs, one `Finished`, or an `Answer`"),
]

# Packages of others, and the only modules of focus_core that may import them.
ONLY_IN: dict[str, set[str]] = {
    "transformers": {
        *("attention.*", "methods.*", "loading.*", "training.*", "engine.sampling"),
        # classes of models and tokenizers, and logging
        *("device", "text.control", "text.segments", "text.stream", "text.template"),
        *("text.tokenizer", "text.tokenizer_checks"),
        *("engine.shared", "engine.scheduler", "engine.engine", "cli.*"),
        "evaluation.embedding",  # the sentence encoder of a rival
    },
    "jinja2": {"text.template"},
    "accelerate": {"training.*"},
    "typer": {"cli.*"},
    "langchain": set(),
    "langchain_core": set(),
    "llama_index": set(),
    "focus_integrations": set(),
}

# What only one folder of focus_integrations may import: prefixes of package names.
FRAMEWORK_OF = {"langchain": "langchain", "llama_index": "llama_index"}
NEVER_IN_INTEGRATIONS = ("torch", "transformers")  # the engine's business

# What the folders around focus_core may use of it, besides the names in its root.
PUBLIC_MODULES = {
    *("config", "errors", "device", "text.chat", "text.documents", "text.files", "text.tokenizer"),
    *("engine.answers", "engine.engine", "engine.options", "engine.prepared"),
    *("engine.sources", "engine.source_page"),
    *("loading.adapters", "loading.authors", "loading.named", "loading.models", "loading.peek"),
    *("methods.focus", "methods.limits", "methods.table", "methods.continuation", "cache.chunks"),
    *("training.*", "evaluation.*"),
}
# A benchmark restates the authors' way out of the same parts, so it may look inside.
ALSO_FOR = {"benchmarks": {"attention.*", "cache.*", "methods.*", "text.*"}}
USERS = ("focus_integrations", "cookbook", "benchmarks")


@dataclass(frozen=True)
class Import:
    path: Path
    line: int
    target: str  # "focus_core.attention.memory", "transformers.cache_utils", …
    name: str | None  # what is taken from it, for `from target import name`
    for_types: bool

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"


def imports_of(path: Path) -> Iterator[Import]:
    """All imports of a file, also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(path, node.lineno, alias.name, None, id(node) in typing_only)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; write the whole name"
            for alias in node.names:
                yield Import(path, node.lineno, node.module or "", alias.name, id(node) in typing_only)


def core_files() -> list[Path]:
    return sorted((ROOT / "focus_core").rglob("*.py"))


def module_name(path: Path) -> str:
    """`focus_core/attention/memory.py` is `attention.memory`; the root's `__init__` is empty."""
    parts = path.relative_to(ROOT / "focus_core").with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def core_module(imported: Import) -> str | None:
    """The module of focus_core that is imported; `None` for anything else, and for names of the root."""
    if imported.target.split(".")[0] != "focus_core":
        return None
    inside = imported.target.split(".")[1:]
    if imported.name and _is_module([*inside, imported.name]):  # from focus_core import config
        inside.append(imported.name)
    return ".".join(inside) or None


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath("focus_core", *parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def matches(module: str, patterns: set[str]) -> bool:
    return any(
        module == pattern or (pattern.endswith(".*") and f"{module}.".startswith(pattern[:-1])) for pattern in patterns
    )


def room_of(module: str) -> str:
    return module.split(".")[0]


def floor_of(room: str) -> int:
    """Counted from the top."""
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def assert_none(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_rooms_import_only_what_the_table_says() -> None:
    """Layers would grow together until nothing could be read or tested alone."""
    violations = []
    for path in core_files():
        module = module_name(path)
        if not module or module == "embedded":
            continue
        _, allowed = ROOMS[room_of(module)]
        for imported in imports_of(path):
            target = core_module(imported)
            if target is None or room_of(target) in (room_of(module), *allowed.split()):
                continue
            violations.append(f"{imported}: {module} may not import {target}, only {allowed or 'nothing'}")
    assert_none(violations)


def test_every_arrow_points_down() -> None:
    """The picture could not be drawn."""
    violations = [
        f"{room} (floor {floor_of(room)}) may import {other} (floor {floor_of(other)})"
        for room, (_, allowed) in ROOMS.items()
        for other in allowed.split()
        if floor_of(other) <= floor_of(room)
    ]
    assert_none(violations)


def test_every_permission_is_used() -> None:
    """The picture would show arrows that are not there."""
    used = {
        (room_of(module_name(path)), room_of(target))
        for path in core_files()
        for imported in imports_of(path)
        if (target := core_module(imported)) is not None
    }
    unused = [
        (room, other) for room, (_, allowed) in ROOMS.items() for other in allowed.split() if (room, other) not in used
    ]
    assert not unused


def test_there_is_no_circle() -> None:
    """Also not inside a room, in a function, or for annotations."""
    targets: dict[str, set[str]] = {}
    for path in core_files():
        module = module_name(path)
        found = {target for imported in imports_of(path) if (target := core_module(imported)) is not None}
        targets[module] = found - {module}
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " → ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in sorted(targets.get(module, ())):
                visit(target, (*way, module))
            done.add(module)

    for module in targets:
        visit(module, ())


def test_the_page_is_printed_from_the_tables() -> None:
    """A reader would learn the architecture of last month."""
    assert PAGE.read_text(encoding="utf-8") == page(), "run: python -m tests.test_architecture"


def test_foreign_packages_stay_where_they_belong() -> None:
    """An upgrade of transformers would touch everything; the engine would need a framework."""
    violations = []
    for path in core_files():
        for imported in imports_of(path):
            package = imported.target.split(".")[0]
            homes = next((homes for name, homes in ONLY_IN.items() if package == name), None)
            if homes is None and package.startswith(("langchain", "llama_index")):
                homes = set()
            if homes is not None and not matches(module_name(path), homes):
                violations.append(f"{imported}: {package} may be imported only in {sorted(homes) or 'no module'}")
    assert_none(violations)


def test_frameworks_stay_in_their_folders() -> None:
    """Whoever installs one framework would need the other; and what the wrappers share would belong to one of them."""
    violations = []
    folder = ROOT / "focus_integrations"
    for path in sorted(folder.rglob("*.py")):
        home = path.relative_to(folder).parts[0]
        for imported in imports_of(path):
            package = imported.target.split(".")[0]
            foreign = any(package.startswith(name) and home != of for of, name in FRAMEWORK_OF.items())
            if foreign or package in NEVER_IN_INTEGRATIONS:
                violations.append(f"{imported}: {package} may not be imported here")
    assert_none(violations)


@pytest.mark.parametrize("folder", USERS)
def test_users_take_root_names_or_public_modules(folder: str) -> None:
    """What is private today could never change again."""
    violations = [
        f"{imported}: {folder} may use focus_core's root names or {sorted(PUBLIC_MODULES)}, not {target}"
        for path in sorted((ROOT / folder).rglob("*.py"))
        for imported in imports_of(path)
        if (target := core_module(imported)) is not None
        and not matches(target, PUBLIC_MODULES | ALSO_FOR.get(folder, set()))
    ]
    assert_none(violations)


def test_users_import_public_names() -> None:
    """`from focus_core.methods.focus import _shifts` would be as bad as a private module."""
    violations = [
        f"{imported}: {imported.name} is private to {imported.target}"
        for folder in (*USERS, "focus_core")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for imported in imports_of(path)
        if imported.target.startswith("focus_core") and (imported.name or "").startswith("_")
        if imported.name != "__version__"
    ]
    assert_none(violations)


def test_the_tables_name_modules_that_exist() -> None:
    """A rule for a module that has been renamed would guard nothing."""
    names = {*ROOMS, *PUBLIC_MODULES, *(module for module, _ in (*DOCUMENT, *QUESTION))}
    names |= {pattern for homes in [*ONLY_IN.values(), *ALSO_FOR.values()] for pattern in homes}
    missing = sorted(name for name in names if not _is_module(name.removesuffix(".*").split(".")))
    assert not missing, f"no such modules in focus_core: {missing}; update the table in {Path(__file__).name}"
    rooms = {room_of(module_name(path)) for path in core_files() if module_name(path)} - {"embedded"}
    assert rooms == set(ROOMS)


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """If this file overlooked imports, all of it would pass for ever."""
    path = tmp_path / "example.py"
    path.write_text(
        "import transformers.utils\n"
        "from focus_core import config, FocusConfig\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from focus_core.methods.focus import FocusModel\n"
        "def f():\n    from focus_core.attention.memory import Memory\n"
    )
    found = list(imports_of(path))
    assert [core_module(imported) for imported in found if imported.target.startswith("focus_core")] == [
        *("config", None, "methods.focus", "attention.memory"),
    ]
    assert [imported.for_types for imported in found] == [False, False, False, False, True, False]
    assert matches("attention.memory", {"attention.*"})
    assert not matches("attention.memory", {"attention"})
    assert not matches("attentions", {"attention.*"})


# --- the page ---------------------------------------------------------------------------------------------------------


def page() -> str:
    """`docs/architecture.md`."""
    lines = [
        "# Architecture",
        "",
        "<!-- Printed from the tables of tests/test_architecture.py by `python -m tests.test_architecture`. -->",
        "",
        "`focus_core` is a house. A room imports only rooms on the floors below it, and there is no circle.",
        "",
        "```",
        *_drawing(),
        "```",
        "",
        *(line for room, (what, allowed) in ROOMS.items() for line in _room(room, what, allowed)),
        "",
        "`focus_integrations` knows no torch: it turns LangChain's and LlamaIndex's calls into calls of the engine.",
        "`embedded/` holds the small model that comes with the package.",
        "",
        "## The way of a document",
        "",
        *(f"{number}. `{module}`: {what}." for number, (module, what) in enumerate(DOCUMENT, 1)),
        "",
        "## The way of a question",
        "",
        *(f"{number}. `{module}`: {what}." for number, (module, what) in enumerate(QUESTION, 1)),
        "",
        "How to add a method, a task, a tier or a model family: [CONTRIBUTING](../CONTRIBUTING.md).",
        "",
    ]
    return "\n".join(lines)


def _drawing() -> list[str]:
    """One row of boxes for each floor, all equally wide."""
    width = 62
    rows = [f"┌{'─' * width}┐"]
    for number, floor in enumerate(FLOORS):
        share, rest = divmod(width - (len(floor) - 1), len(floor))
        cells = [room.center(share + (index < rest)) for index, room in enumerate(floor)]
        rows.append(f"│{'│'.join(cells)}│")
        last = number == len(FLOORS) - 1
        rows.append(f"└{'─' * width}┘" if last else f"├{'─' * width}┤")
    return rows


def _room(room: str, what: str, allowed: str) -> list[str]:
    files = sorted(path.stem for path in (ROOT / "focus_core" / room).glob("*.py") if not path.stem.startswith("__"))
    inside = f" ({', '.join(files)})" if files else ""
    return [f"- **{room}**{inside}: {what}. Imports {', '.join(allowed.split()) or 'nothing'}."]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
