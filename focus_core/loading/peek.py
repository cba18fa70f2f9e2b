"""Settings of a model from its files: no weights are loaded and no network is used."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoConfig

from focus_core.attention.modules import Window, window_of
from focus_core.config import CHUNK_WITHOUT_ADAPTER, LARGEST_CHUNK, FocusConfig, ResolvedConfig
from focus_core.errors import AdapterError, ConfigError, UnsupportedModelError
from focus_core.loading.adapters import ADAPTER_CONFIG, adapter_settings
from focus_core.loading.authors import authors_settings
from focus_core.loading.gguf import gguf_config, gguf_path
from focus_core.loading.hub import local_folder
from focus_core.loading.named import EMBEDDED, named_model
from focus_core.parsing import parse_json


def settings_on_disk(
    model: str | Path | None,
    adapter: str | Path | None,
    config: FocusConfig,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
) -> ResolvedConfig | None:
    """The settings that an engine would have; `None` if the files do not tell, or are not on this machine.

    Args:
        model: a folder, hub id or GGUF file; `None` is the embedded model
        adapter: a folder or hub id
        config: the settings that the engine would be given
        revision: branch, tag or commit of the model, for a hub id
        gguf_file: the GGUF file of the model, for a hub id or a folder
    """
    try:
        name, own_adapter = named_model(EMBEDDED if model is None else str(model))
    except UnsupportedModelError:
        return None
    adapter = adapter or own_adapter
    if gguf_file:
        above = local_folder(name, gguf_file, revision=revision)
        folder = None if above is None else above / Path(gguf_file).name
    else:
        folder = _gguf_file(name) or local_folder(name, "config.json", revision=revision)
    window = None if folder is None else saved_window(folder)
    adapter_folder = local_folder(str(adapter), ADAPTER_CONFIG) if adapter else None
    if folder is None or window is None or (adapter and adapter_folder is None):
        return None
    try:
        trained_with = adapter_settings(adapter_folder) if adapter_folder else _authors_settings(folder, window)
        largest = LARGEST_CHUNK if trained_with else CHUNK_WITHOUT_ADAPTER
        return config.resolve(window.size, trained_with, window_is=window.reason, largest_chunk=largest)
    except (AdapterError, ConfigError):
        return None


def saved_window(folder: str | Path) -> Window | None:
    """The usable window of a model in a folder or GGUF file, from its config alone; `None` if that does not tell."""
    try:
        if Path(folder).is_file():
            return window_of(gguf_config(Path(folder)), str(folder))
        config = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        return window_of(config.get_text_config(), str(folder))
    except Exception:  # transformers raises many exception types on damaged files
        return None


def _gguf_file(name: str) -> Path | None:
    try:
        return gguf_path(name, {})
    except UnsupportedModelError:
        return None


def _authors_settings(folder: Path, window: Window) -> FocusConfig | None:
    if folder.is_file():
        return None
    settings = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    return authors_settings(settings, window.size) if "beacon_param" in settings else None
