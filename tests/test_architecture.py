"""Who may import whom. The table below is the architecture; a failure names file, line and rule."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Which modules of focus_core a module (or every module of a folder, `name.*`) may import. Not listed: anything.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "config": {"errors"},
    "chunking": {"config"},
    "planning": {"chunking", "config", "errors"},
    "chunk_cache": set(),
    "store": {"chunk_cache", "errors"},
    "device": {"errors"},
    "sampling": {"config"},
    "text_stream": set(),
    "documents": {"errors"},
    "progress": set(),
    "tokenizer": {"errors"},
    "decoding": {"chunk_cache", "errors", "config", "model"},  # model: for annotations only, see below
    "attention.*": {"attention.*", "errors"},
    "checkpoint": {"attention.*", "config", "device", "errors"},
    "model": {
        *("attention.*", "chunk_cache", "chunking", "config", "decoding", "device", "errors", "planning"),
        *("checkpoint", "progress"),
    },
    "training.*": {
        *("training.*", "attention.*", "chunk_cache", "chunking", "config", "decoding", "device", "errors", "model"),
        *("checkpoint", "planning", "progress", "tokenizer"),
    },
    "evaluation.*": {"evaluation.*", "engine", "config", "errors", "progress"},
}

# Modules that may be imported from a module for annotations only.
ONLY_FOR_TYPES: dict[str, set[str]] = {"decoding": {"model"}}

# Packages of others, and the only modules of focus_core that may import them.
ONLY_IN: dict[str, set[str]] = {
    "transformers": {
        *("attention.*", "model", "decoding", "checkpoint", "sampling", "training.*"),
        *(
            "device",
            "text_stream",
            "tokenizer",
            "registry",
            "engine",
            "cli.*",
        ),  # classes of models and tokenizers, and logging
    },
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
    *("checkpoint", "config", "device", "documents", "engine", "errors", "model"),
    *("training.*", "evaluation.*"),
}
# A benchmark restates the authors' way out of the same parts, so it may look inside.
ALSO_FOR = {"benchmarks": {"attention.*", "chunk_cache", "decoding"}}
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
    if imported.name and _is_module([*inside, imported.name]):  # from focus_core import chunking
        inside.append(imported.name)
    return ".".join(inside) or None


def _is_module(parts: list[str]) -> bool:
    path = ROOT.joinpath("focus_core", *parts)
    return path.is_dir() or path.with_suffix(".py").is_file()


def matches(module: str, patterns: set[str]) -> bool:
    return any(
        module == pattern or (pattern.endswith(".*") and f"{module}.".startswith(pattern[:-1])) for pattern in patterns
    )


def rule_for(module: str) -> set[str] | None:
    return next((allowed for pattern, allowed in MAY_IMPORT.items() if matches(module, {pattern})), None)


def assert_none(violations: list[str]) -> None:
    assert not violations, "\n" + "\n".join(violations)


def test_modules_import_only_what_the_table_says() -> None:
    """Layers would grow together until nothing could be read or tested alone."""
    violations = []
    for path in core_files():
        module = module_name(path)
        allowed = rule_for(module)
        for imported in imports_of(path):
            target = core_module(imported)
            if allowed is not None and target is not None and not matches(target, allowed):
                violations.append(f"{imported}: {module} may not import {target}, only {sorted(allowed)}")
    assert_none(violations)


def test_imports_for_annotations_stay_behind_type_checking() -> None:
    """A cycle of imports would begin where today there is only a name in a signature."""
    violations = [
        f"{imported}: {module_name(path)} may import {target} under TYPE_CHECKING only"
        for path in core_files()
        for imported in imports_of(path)
        if (target := core_module(imported)) in ONLY_FOR_TYPES.get(module_name(path), set()) and not imported.for_types
    ]
    assert_none(violations)


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
    """`from focus_core.methods.focus import _visible` would be as bad as a private module."""
    violations = [
        f"{imported}: {imported.name} is private to {imported.target}"
        for folder in (*USERS, "focus_core")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for imported in imports_of(path)
        if imported.target.startswith("focus_core") and (imported.name or "").startswith("_")
        if imported.name != "__version__"
    ]
    assert_none(violations)


def test_the_table_names_modules_that_exist() -> None:
    """A rule for a module that has been renamed would guard nothing."""
    names = {*MAY_IMPORT, *PUBLIC_MODULES, *ONLY_FOR_TYPES}
    names |= {pattern for allowed in [*MAY_IMPORT.values(), *ONLY_IN.values()] for pattern in allowed}
    missing = sorted(name for name in names if not _is_module(name.removesuffix(".*").split(".")))
    assert not missing, f"no such modules in focus_core: {missing}; update the table in {Path(__file__).name}"


def test_the_reader_of_imports_sees_them(tmp_path: Path) -> None:
    """If this file overlooked imports, all of it would pass for ever."""
    path = tmp_path / "example.py"
    path.write_text(
        "import transformers.utils\n"
        "from focus_core import chunking, FocusConfig\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from focus_core.methods.focus import FocusModel\n"
        "def f():\n    from focus_core.attention.memory import Memory\n"
    )
    found = list(imports_of(path))
    assert [core_module(imported) for imported in found if imported.target.startswith("focus_core")] == [
        *("chunking", None, "model", "attention.memory"),
    ]
    assert [imported.for_types for imported in found] == [False, False, False, False, True, False]
    assert matches("attention.memory", {"attention.*"})
    assert not matches("attention.memory", {"attention"})
    assert not matches("attentions", {"attention.*"})
