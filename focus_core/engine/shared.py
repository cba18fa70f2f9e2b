"""Weights that are loaded live here, once per adapter; engines and wrappers that name the same model share them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakValueDictionary

from transformers import PreTrainedTokenizerBase

from focus_core.attention.candidates import CandidateProjections
from focus_core.cache.store import ChunkStore
from focus_core.device import choose_device, choose_dtype, free_memory, naming_lack_of_memory
from focus_core.errors import ConfigError, UnsupportedModelError
from focus_core.loading.adapters import fresh_projections
from focus_core.loading.embedded import EMBEDDED, EMBEDDED_ADAPTER, EMBEDDED_BASE, EMBEDDED_FOLDER
from focus_core.loading.fingerprint import model_key, weights_content
from focus_core.loading.hub import is_folder
from focus_core.loading.models import LoadedModel, load_model
from focus_core.text.tokenizer import load_tokenizer

_STORE_SHARE = 0.5  # of the memory that is free once the weights are loaded


class Turn:
    """Holds a lock; may let others go first in between."""

    def __init__(self, lock: threading.Lock) -> None:
        self._lock, self._held = lock, False

    def __enter__(self) -> Turn:
        self._take()
        return self

    def __exit__(self, *error: object) -> None:
        if self._held:  # not after a Ctrl-C while waiting in `paused`: it is another thread's turn then
            self._lock.release()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Others may have their turn within this block."""
        self._held = False
        self._lock.release()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        self._lock.acquire()
        self._held = True


@dataclass(eq=False)
class SharedModel:
    """Weights, tokenizer, and what all who use them share: the chunks already read, and one turn at a time.

    Attributes:
        projections: the trained ones, or copies of the model's own maps
        key: what the keys and values of a chunk depend on, besides its tokens
        turn: held for one pass of the model (the first step of an answer takes several), never while somebody waits for
            a user
        reading: held by whoever reads chunks, so that nobody reads the same ones or counts on the same free memory;
            its holder may ask again, from a progress report
    """

    loaded: LoadedModel
    projections: CandidateProjections
    tokenizer: PreTrainedTokenizerBase
    store: ChunkStore
    key: str
    turn: threading.Lock = field(default_factory=threading.Lock)
    reading: threading.RLock = field(default_factory=threading.RLock)

    @classmethod
    def of(
        cls,
        loaded: LoadedModel,
        tokenizer: PreTrainedTokenizerBase,
        store_bytes: int | None = None,
        *,
        key: str | None = None,
    ) -> SharedModel:
        """Around a model that is already loaded.

        Args:
            key: its `model_key`; `None` for a model whose weights may change at any time, which shares with no other
        """
        projections = loaded.projections or fresh_projections(loaded.model)
        budget = int(free_memory(loaded.model.device) * _STORE_SHARE) if store_bytes is None else store_bytes
        return cls(loaded, projections, tokenizer, ChunkStore(budget), key or uuid4().hex)

    @contextmanager
    def one_pass(self) -> Iterator[Turn]:
        """Around a pass of the model.

        Raises:
            OutOfMemoryError: the device ran out of memory
        """
        with Turn(self.turn) as turn, naming_lack_of_memory():
            yield turn


_Key = tuple[Any, ...]  # all that two who ask must have in common to share weights

_shared: WeakValueDictionary[_Key, SharedModel] = WeakValueDictionary()
# Whoever loads holds it; others wait for the same weights only.
_loading: WeakValueDictionary[_Key, threading.Lock] = WeakValueDictionary()
_lock = threading.Lock()  # around the two


def shared_model(
    model: str | Path | None, *, adapter: str | Path | None, device: str, dtype: str, **arguments: Any
) -> SharedModel:
    """The weights of `model`, loaded now or long ago; `None` is the embedded model with its own adapter.

    Raises:
        UnsupportedModelError: no model or no tokenizer under this name
        AdapterError: the adapter is missing, damaged, or belongs to another model
        ConfigError: an empty name, or an unknown device or dtype
    """
    for what, given in (("model", model), ("adapter", adapter)):
        if given == "":
            raise ConfigError(f"{what}='': name a folder or a hub id, or leave it out.")
    if model is None and dtype == "auto":
        dtype = "float32"  # in bfloat16 it finds less (its card), and it is small enough for any device
    name = EMBEDDED if model is None else str(model)
    place = choose_device(device)
    key = (
        *(name, _files(name), str(adapter), _files(str(adapter)), str(place), choose_dtype(dtype, place)),
        *sorted((k, repr(v)) for k, v in arguments.items()),
    )
    with _lock:
        loading = _loading.setdefault(key, threading.Lock())
    with loading:
        with _lock:
            found = _shared.get(key)
        if found is None:
            path, own_adapter = _resolve(name)
            loaded = load_model(path, adapter=adapter or own_adapter, device=device, dtype=dtype, **arguments)
            tokenizer = load_tokenizer(path, arguments)
            weights = weights_content(path, arguments)
            found = SharedModel.of(
                loaded, tokenizer, key=model_key(loaded.model, tokenizer, weights) if weights else None
            )
            with _lock:
                _shared[key] = found
        return found


def _files(folder: str) -> tuple[tuple[str, int, int], ...]:
    """What tells that a folder has been written again; nothing for a hub id."""
    listed = sorted(Path(folder).glob("*")) if is_folder(folder) else []
    found = ((path.name, path.stat()) for path in listed if path.is_file())
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _resolve(name: str) -> tuple[str, Path | None]:
    if name != EMBEDDED:
        return name, None
    if not (EMBEDDED_BASE / "config.json").is_file():
        raise UnsupportedModelError(f"The embedded model is not installed at {EMBEDDED_FOLDER}. Reinstall focusllm.")
    return str(EMBEDDED_BASE), EMBEDDED_ADAPTER
