"""Engines for the wrappers: made for the first question, and shared by all wrappers with the same settings.

Frameworks build wrappers freely (`configurable_fields` makes a new one for every call), so an engine must not belong to
one of them.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from uuid import uuid4
from weakref import WeakKeyDictionary

from focus_core import ConfigError, FocusConfig, FocusEngine
from focus_core.loading.named import EMBEDDED
from focus_core.loading.peek import settings_on_disk
from focus_core.methods.limits import check_sizes, longest_documents

MODEL_VARIABLE = "FOCUSLLM_MODEL"
_KEPT = 2  # engines that stay in memory although no wrapper holds them


@dataclass(frozen=True)
class EngineSettings:
    """Everything that two wrappers must have in common to share an engine."""

    model: str
    adapter: str | None = None
    revision: str | None = None
    gguf_file: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    config: FocusConfig = field(default_factory=FocusConfig)
    store: str | None = None
    store_limit: int | None = None


def default_model() -> str:
    """The model named in the environment as `FOCUSLLM_MODEL`, else the embedded one."""
    return os.environ.get(MODEL_VARIABLE) or EMBEDDED


_engines: OrderedDict[EngineSettings, FocusEngine] = OrderedDict()
_names: WeakKeyDictionary[FocusEngine, str] = WeakKeyDictionary()
_lock = Lock()  # guards both


def shared_engine(settings: EngineSettings) -> FocusEngine:
    """The engine for these settings; loads it if it is not loaded yet.

    Raises:
        FocusError: as from `FocusEngine.from_pretrained`
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
    named = {"revision": settings.revision, "gguf_file": settings.gguf_file}
    which: dict[str, Any] = {name: value for name, value in named.items() if value}
    return FocusEngine.from_pretrained(
        None if settings.model == EMBEDDED else settings.model,
        adapter=settings.adapter,
        device=settings.device,
        dtype=settings.dtype,
        config=settings.config,
        store=settings.store,
        store_limit=settings.store_limit,
        **which,
    )


def longest_input(settings: EngineSettings, new_tokens: int, engine: FocusEngine | None = None) -> int | None:
    """About how many tokens of documents fit, with `new_tokens` left for the answer; `None` if only loading could tell.

    Asks an engine that is loaded, otherwise the files on this machine: loads no weights and uses no network.
    """
    engine = engine or _engines.get(settings)
    if engine is not None:
        return longest_documents(engine.config, new_tokens)
    known = settings_on_disk(
        settings.model,
        settings.adapter,
        settings.config,
        revision=settings.revision,
        gguf_file=settings.gguf_file,
    )
    try:
        return None if known is None else longest_documents(check_sizes(known), new_tokens)
    except ConfigError:  # loading will say why
        return None
