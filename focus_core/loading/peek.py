"""Settings of a model from its files: no weights are loaded and no network is used."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from focus_core.attention.modules import window_of
from focus_core.errors import UnsupportedModelError


def saved_window(folder: str | Path) -> int | None:
    """The usable window of a saved model, from its `config.json` alone; `None` if that does not tell."""
    try:
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return window_of(config.get_text_config(), str(folder)).size
    except (OSError, ValueError, KeyError, TypeError, UnsupportedModelError):
        return None
