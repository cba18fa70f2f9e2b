"""Engines for the wrappers: made for the first question, and shared by all wrappers with the same settings.

Frameworks build wrappers freely (`configurable_fields` makes a new one for every call), so an engine must not belong to
one of them.
"""

from __future__ import annotations

import json
import os
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from focus_core import FocusConfig, FocusEngine
from focus_core.config import ResolvedConfig
from focus_core.errors import ConfigError
from focus_core.loading.checkpoint import saved_window
from focus_core.methods.limits import longest_documents

EMBEDDED = "embedded"
MODEL_VARIABLE = "FOCUSLLM_MODEL"
_KEPT = 2  # engines that stay in memory although no wrapper holds them


@dataclass(frozen=True)
class EngineSettings:
    """Everything that two wrappers must have in common to share an engine."""

    model: str
    adapter: str | None = None
    revision: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    config: FocusConfig = field(default_factory=FocusConfig)


def default_model() -> str:
    """The model named in the environment as `FOCUSLLM_MODEL`, else the embedded one."""
    return os.environ.get(MODEL_VARIABLE) or EMBEDDED


_engines: OrderedDict[EngineSettings, FocusEngine] = OrderedDict()
_names: WeakKeyDictionary[FocusEngine, str] = WeakKeyDictionary()
_lock = Lock()  # guards both


def shared_engine(settings: EngineSettings) -> FocusEngine:
    """The engine for these settings, loaded now or long ago.

    Raises:
        FocusError: what `FocusEngine.from_pretrained` raises
    """
    with _lock:
        engine = _engines.get(settings)
    if engine is None:
        engine = _load(settings)  # outside the lock: it takes long, and other engines need not wait for it
    with _lock:
        engine = _engines.pop(settings, engine)  # of two that were made at the same time, the first
        _engines[settings] = engine
        while len(_engines) > _KEPT:
            _engines.popitem(last=False)
        return engine


def release_engines() -> None:
    """Let go of all engines that are kept for later: their weights leave memory when no wrapper uses them."""
    with _lock:
        _engines.clear()


def name_of(engine: FocusEngine) -> str:
    """A name that no other engine has, in any process: the weights of a model in Python may change at any time."""
    with _lock:
        return _names.setdefault(engine, uuid4().hex)


def _load(settings: EngineSettings) -> FocusEngine:
    revision: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    return FocusEngine.from_pretrained(
        None if settings.model == EMBEDDED else settings.model,
        adapter=settings.adapter,
        device=settings.device,
        dtype=settings.dtype,
        config=settings.config,
        **revision,
    )


def longest_input(settings: EngineSettings, new_tokens: int, engine: FocusEngine | None = None) -> int | None:
    """About how many tokens of documents fit, with `new_tokens` left for the answer; `None` if only loading could tell.

    Looks at an engine that is there, else at files that are there: loads no weights and asks no network.
    """
    engine = engine or _engines.get(settings)
    config = _sizes_on_disk(settings) if engine is None else engine.config
    return None if config is None else longest_documents(config, new_tokens)


def _sizes_on_disk(settings: EngineSettings) -> ResolvedConfig | None:
    folder = _folder(settings.model)
    window = saved_window(folder) if folder else None
    if folder is None or window is None:
        return None
    try:
        return settings.config.resolve(window, _trained_with(settings, folder))
    except ConfigError:
        return None


def _trained_with(settings: EngineSettings, folder: Path) -> FocusConfig | None:
    adapter = folder.parent / "adapter" if settings.model == EMBEDDED else Path(settings.adapter or folder)
    known = _json(adapter / "focusllm_adapter.json").get("config")
    return FocusConfig(**known) if isinstance(known, dict) else None


def _folder(model: str) -> Path | None:
    if model == EMBEDDED:
        import focus_core

        return Path(focus_core.__file__).parent / "embedded" / "base"
    if Path(model).is_dir():
        return Path(model)
    from huggingface_hub import try_to_load_from_cache

    try:
        cached = try_to_load_from_cache(model, "config.json")
    except ValueError:  # not the form of a hub id
        return None
    return Path(cached).parent if isinstance(cached, str) else None


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
