"""Documents as text, and an engine: commands need both before they can work."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from focus_core.config import FocusConfig
from focus_core.errors import ConfigError
from focus_core.progress import sign_of_life

if TYPE_CHECKING:
    from focus_core.engine.engine import FocusEngine
    from focus_core.errors import DocumentError
    from focus_core.text.documents import Document

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_NAMED_AT_MOST = 5  # files that could not be read are named up to this number


def read_documents(names: Sequence[str]) -> list[Document]:
    """The texts of files, folders and standard input, in the order in which they were named.

    Raises:
        DocumentError: one of them cannot be read as text
    """
    if names.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once.")
    return [document for name in names for document in _documents(name)]


def load_engine(
    model: str | None,
    gguf_file: str | None,
    adapter: str | None,
    device: str,
    dtype: str,
    *,
    config: FocusConfig,
    method: str = "auto",
    progress: bool = True,
    store: str | None = None,
    store_limit: str | None = None,
) -> FocusEngine:
    """The engine that the options ask for.

    Args:
        gguf_file: the GGUF file of a hub id or folder
        progress: show a bar while documents are read, as in `FocusEngine`
        store: a folder for read chunks, as in `FocusEngine`

    Raises:
        FocusError: as `FocusEngine.from_pretrained`; an unknown method before the model is loaded
    """
    with sign_of_life("starting"):
        from transformers.utils import logging

        from focus_core.engine.engine import FocusEngine
        from focus_core.methods.table import checked_method
    checked_method(method)
    limit = parse_bytes(store_limit)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of downloads; loading has a bar of ours
    which: dict[str, Any] = {"gguf_file": gguf_file} if gguf_file else {}
    return FocusEngine.from_pretrained(
        model,
        adapter=adapter,
        device=device,
        dtype=dtype,
        config=config,
        method=method,
        progress=progress,
        store=store,
        store_limit=limit,
        **which,
    )


def required_store(store: str | None) -> str:
    """The folder of `--store` or of the environment.

    Raises:
        ConfigError: none is named, or it is no name of a folder
    """
    from focus_core.engine.options import chosen_store

    chosen = chosen_store(store) if store else None
    if not chosen:
        raise ConfigError("No store is named. Use --store FOLDER, or set FOCUSLLM_STORE.")
    return chosen


def config_of(further: Sequence[str] | None, **named: int | str | None) -> FocusConfig:
    """From `NAME=VALUE`, and from options of their own.

    Raises:
        ConfigError: an unknown name, one that has an option of its own, or an impossible value
    """
    known = [field.name for field in fields(FocusConfig) if field.name not in named]
    settings: dict[str, Any] = dict(named)
    for pair in further or ():
        name, _, value = pair.partition("=")
        if name not in known:
            raise ConfigError(f"--setting {pair}: choose from {', '.join(known)}, as boundaries=tokens.")
        try:
            settings[name] = json.loads(value)  # 3, true
        except ValueError:
            settings[name] = value
    return FocusConfig(**settings)


def parse_bytes(text: str | None) -> int | None:
    """`20G`, `500 MB`, `1.5GiB` or a plain number, as bytes.

    Raises:
        ConfigError: anything else
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", text, re.IGNORECASE)
    if found is None:
        raise ConfigError(f"{text!r} is not a number of bytes: write 20G, 500M or 1000000.")
    return int(float(found[1]) * _UNITS[found[2].upper()])


def _documents(name: str) -> list[Document]:
    from focus_core.loading.hub import is_folder
    from focus_core.text.documents import Document
    from focus_core.text.files import document_text, read_file

    if name == "-":
        return [Document(document_text(sys.stdin.buffer.read(), name="standard input"), "standard input")]
    if name and is_folder(name):
        return _of_folder(Path(name))
    return [Document(read_file(name), name)]


def _of_folder(folder: Path) -> list[Document]:
    from focus_core.text.documents import Document
    from focus_core.text.files import read_folder

    unread: list[DocumentError] = []
    documents = [Document(text, str(path)) for path, text in read_folder(folder, passed_over=unread.append)]
    for error in unread[:_NAMED_AT_MOST]:
        typer.echo(f"Passed over {error}", err=True)
    if len(unread) > _NAMED_AT_MOST:
        typer.echo(f"Passed over {len(unread) - _NAMED_AT_MOST} more files that could not be read.", err=True)
    return documents
