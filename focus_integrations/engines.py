"""Engines for the wrappers: made when the first question comes, and shared by all that ask for the same.

Frameworks build wrappers freely (`configurable_fields` makes a new one for every call), so an engine must not belong to
one of them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from weakref import WeakValueDictionary

from focus_core import FocusConfig, FocusEngine
from focus_core.errors import ConfigError
from focus_core.loading.embedded import EMBEDDED
from focus_core.loading.peek import settings_on_disk

MODEL_VARIABLE = "FOCUSLLM_MODEL"
_GIVEN = "engine://"  # begins the name of an engine that the user made, and no path or hub id
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
_given: WeakValueDictionary[str, FocusEngine] = WeakValueDictionary()
_lock = Lock()


def shared_engine(settings: EngineSettings) -> FocusEngine:
    """The engine for these settings, loaded now or long ago.

    Raises:
        FocusError: what `FocusEngine.from_pretrained` raises
    """
    with _lock:
        given = _given.get(settings.model)
        if given is not None:
            return given
        engine = _engines.get(settings)
    if engine is None:
        engine = _load(settings)  # takes long; whoever asks for another one has nothing to wait for
    with _lock:
        engine = _engines.pop(settings, engine)  # of two that were made at the same time, the first
        _engines[settings] = engine
        while len(_engines) > _KEPT:
            _engines.popitem(last=False)
        return engine


def name_engine(engine: FocusEngine) -> str:
    """A model name under which `shared_engine` finds an engine that the user made, for as long as it lives."""
    name = f"{_GIVEN}{engine.shared.loaded.model_id}#{id(engine):x}"
    with _lock:
        _given[name] = engine
    return name


def release_engines() -> None:
    """Let go of all engines that are kept for later: their weights leave memory when no wrapper uses them."""
    with _lock:
        _engines.clear()


def _load(settings: EngineSettings) -> FocusEngine:
    if settings.model.startswith(_GIVEN):
        raise ConfigError(f"The engine {settings.model!r} is gone. Keep it, or the wrapper made from it, alive.")
    revision: dict[str, Any] = {"revision": settings.revision} if settings.revision else {}
    return FocusEngine.from_pretrained(
        None if settings.model == EMBEDDED else settings.model,
        adapter=settings.adapter,
        device=settings.device,
        dtype=settings.dtype,
        config=settings.config,
        **revision,
    )


def longest_input(settings: EngineSettings, new_tokens: int) -> int | None:
    """About how many tokens of documents fit, with `new_tokens` left for the answer; `None` if only loading could tell.

    Asks an engine that is loaded, otherwise the files on this machine: loads no weights and uses no network.
    """
    engine = _given.get(settings.model) or _engines.get(settings)
    if engine is None:
        known = settings_on_disk(settings.model, settings.adapter, settings.config, revision=settings.revision)
    else:
        known = engine.config
    if known is None:
        return None
    read_plainly = known.window - new_tokens
    return max(read_plainly, (read_plainly - known.local_window) * known.chunk_size, 1)
