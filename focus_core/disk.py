"""Writing files so that a reader finds the old content or the new one, never a part of it; and where a store is."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import get_ident
from typing import Any

from focus_core.errors import ConfigError, shown


def replace_file(path: Path, write: Callable[[Path], Any], *, sync: bool = False) -> None:
    """Write a temporary file next to `path`, then rename it to `path`.

    If writing fails (a full disk, Ctrl-C), the old file stays and the temporary one is removed. The temporary name is
    unique to the thread, so that two writers of the same path cannot mix their contents: the last rename wins.

    Args:
        write: writes the whole content to the path it is called with
        sync: wait until the content is on the disk, so that a crash of the machine leaves no renamed file without it

    Raises:
        OSError: the folder cannot be written to; anything else that `write` raises
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{get_ident()}.partial")
    try:
        partial.touch()
        mode = (path if path.exists() else partial).stat().st_mode  # safetensors makes its files for their owner alone
        write(partial)
        with suppress(OSError):  # a file system without modes
            partial.chmod(mode)
        if sync:
            with partial.open("rb+") as file:
                os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def store_folder(folder: str | Path) -> Path:
    """The folder of a store, wherever the process goes afterwards.

    Raises:
        ConfigError: no name of a folder
    """
    if not isinstance(folder, str | Path):
        raise ConfigError(f"store={shown(folder)}: must be the name of a folder.")
    try:
        return Path(folder).expanduser().absolute()
    except (RuntimeError, OSError, ValueError) as error:  # nobody's home
        raise ConfigError(f"store={shown(str(folder))}: {error}") from error
