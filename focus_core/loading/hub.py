"""Names of models and adapters: folders, and ids of the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, LocalTokenNotFoundError

from focus_core.errors import AdapterError, first_line

_OF_THE_NETWORK = ("httpx", "httpx2", "httpcore", "requests")  # packages whose errors the hub's library lets through


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


def upload(folder: Path, name: str, files: Sequence[str], *, private: bool) -> str:
    """Put some files of a folder into the repository of a hub id, which is made if there is none; returns its address.

    Args:
        files: patterns of file names

    Raises:
        AdapterError: the hub refuses it, nobody is logged in, or there is no network
    """
    hub = HfApi()
    try:
        address = hub.create_repo(name, private=private, exist_ok=True)
        hub.upload_folder(repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message="Adapter")
    except Exception as error:
        expected = isinstance(error, LocalTokenNotFoundError | HfHubHTTPError | HFValidationError | OSError)
        if not expected and type(error).__module__.partition(".")[0] not in _OF_THE_NETWORK:
            raise
        raise AdapterError(
            f"{folder} could not be put on the hub as {name!r}: {first_line(error)}. If you are not logged in: "
            "`hf auth login`, with a token that may write."
        ) from error
    return str(address)


def local_folder(
    name: str, file: str, *, revision: str | None = None, cache_dir: str | Path | None = None
) -> Path | None:
    """The folder that holds `file` of a folder name or hub id, without asking the network; `None` if it is not here.

    Args:
        file: a path below the folder or in the repository; the result is the folder directly above it
        revision: branch, tag or commit, for a hub id
        cache_dir: the hub's cache, if not the default one
    """
    if is_folder(name):
        path = Path(name) / file
        return path.parent if path.is_file() else None
    try:
        cached = try_to_load_from_cache(name, file, cache_dir=cache_dir, revision=revision)
    except (OSError, ValueError):  # `name` does not have the form of a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def snapshot_commit(folder: Path) -> str:
    """The commit of a folder in the hub's cache, `…/snapshots/<commit>` or below it."""
    below = len(folder.parts) - folder.parts[::-1].index("snapshots")
    return folder.parts[below]
