"""Documents as text, and an engine: commands need both before they can work."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from focus_core.progress import sign_of_life

if TYPE_CHECKING:
    from focus_core.config import FocusConfig
    from focus_core.engine.engine import FocusEngine
    from focus_core.errors import DocumentError

_NAMED_AT_MOST = 5  # files that could not be read are named up to this number


def read_documents(names: Sequence[str]) -> list[str]:
    """The texts of files, folders and standard input, in the order in which they were named.

    Raises:
        DocumentError: one of them cannot be read as text
    """
    if names.count("-") > 1:
        raise typer.BadParameter("standard input (-) can be read only once.")
    return [text for name in names for text in _texts(name)]


def load_engine(
    model: str | None,
    adapter: str | None,
    device: str,
    dtype: str,
    *,
    config: FocusConfig,
    method: str = "auto",
    progress: bool = True,
) -> FocusEngine:
    """The engine that the options ask for.

    Args:
        progress: show a bar while documents are read, as in `FocusEngine`

    Raises:
        FocusError: as `FocusEngine.from_pretrained`; an unknown method before the model is loaded
    """
    with sign_of_life("starting"):
        from transformers.utils import logging

        from focus_core.engine.engine import FocusEngine
        from focus_core.methods.table import checked_method
    checked_method(method)
    if not sys.stderr.isatty():
        logging.disable_progress_bar()  # of downloads; loading has a bar of ours
    return FocusEngine.from_pretrained(
        model, adapter=adapter, device=device, dtype=dtype, config=config, method=method, progress=progress
    )


def _texts(name: str) -> list[str]:
    from focus_core.loading.hub import is_folder
    from focus_core.text.files import document_text, read_file

    if name == "-":
        return [document_text(sys.stdin.buffer.read(), name="standard input")]
    if name and is_folder(name):
        return _folder_texts(Path(name))
    return [read_file(name)]


def _folder_texts(folder: Path) -> list[str]:
    from focus_core.text.files import read_folder

    unread: list[DocumentError] = []
    texts = [text for _, text in read_folder(folder, passed_over=unread.append)]
    for error in unread[:_NAMED_AT_MOST]:
        typer.echo(f"Passed over {error}", err=True)
    if len(unread) > _NAMED_AT_MOST:
        typer.echo(f"Passed over {len(unread) - _NAMED_AT_MOST} more files that could not be read.", err=True)
    return texts
