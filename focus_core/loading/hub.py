"""Names of models and adapters: folders, and ids of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from focus_core.errors import AdapterError, first_line


def is_folder(name: str | Path) -> bool:
    """Whether a folder of this name exists; `False` for a name that cannot be a path (too long, a zero byte)."""
    try:
        return Path(name).is_dir()
    except (OSError, ValueError):
        return False


def download(name: str, files: Sequence[str], trouble: str, hub_arguments: Mapping[str, Any]) -> Path:
    """The local folder with some files of a hub id, downloaded unless they are in the hub's cache.

    Args:
        files: patterns of file names
        trouble: how the message begins if the hub does not give them
        hub_arguments: passed on to the hub (`token`, `cache_dir`, …)

    Raises:
        AdapterError: no such id, no such revision, or no network
    """
    try:
        return Path(snapshot_download(name, allow_patterns=list(files), **hub_arguments))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = first_line(error)
        raise AdapterError(f"{trouble}, and the hub gave none ({reason})") from error
