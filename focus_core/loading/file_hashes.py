"""SHA-256 of large files, remembered between processes so that loading a model again does not read its files twice."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from focus_core.disk import replace_file
from focus_core.progress import sign_of_life

_LFS_BLOB = re.compile(r"[0-9a-f]{64}")  # the hub's cache names a large file by its SHA-256

_Stamp = list[int]  # size and times: if it has not changed, the content has not


def file_hashes(paths: Iterable[Path]) -> dict[Path, str]:
    """The SHA-256 of each file's content, as hex digits.

    A file is read if it has changed since it was last read on this machine; a large file in the hub's cache never is.

    Raises:
        OSError: a file that cannot be read
    """
    found: dict[Path, str] = {}
    remembered, new = _remembered(), {}
    with sign_of_life("checking the model's files"):
        for path in paths:
            target = path.resolve()
            digest = _in_blob_name(target) or _known(remembered, target)
            if digest is None:
                stamp = _stamp(target)
                digest = _read(target)
                if _stamp(target) == stamp:  # nobody wrote to it meanwhile
                    new[str(target)] = {"stamp": stamp, "sha256": digest}
            found[path] = digest
    if new:
        _remember(new)
    return found


def _in_blob_name(path: Path) -> str | None:
    return path.name if path.parent.name == "blobs" and _LFS_BLOB.fullmatch(path.name) else None


def _known(remembered: dict[str, Any], path: Path) -> str | None:
    entry = remembered.get(str(path))
    if not isinstance(entry, dict) or entry.get("stamp") != _stamp(path):
        return None
    digest = entry.get("sha256")
    return digest if isinstance(digest, str) else None


def _read(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamp(path: Path) -> _Stamp:
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]  # copying can keep the mtime, and cannot keep the ctime


def _cache_file() -> Path | None:
    """Where hashes are remembered; `None` without a home folder."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    try:
        folder = Path(cache) if Path(cache).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return folder / "focusllm" / "file_hashes.json"


def _remembered() -> dict[str, Any]:
    """The hashes on disk; none if the file is missing or damaged."""
    path = _cache_file()
    try:
        content = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def _remember(new: dict[str, Any]) -> None:
    """Add to the hashes on disk and forget files that are gone; without a writable folder nothing is remembered.

    Two processes that do this at the same time may lose each other's entries: those files are read once more.
    """
    path = _cache_file()
    if path is None:
        return
    kept = {name: entry for name, entry in _remembered().items() if os.path.exists(name)} | new
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, lambda partial: partial.write_text(json.dumps(kept, indent=1), encoding="utf-8"))
