"""Weights are loaded once per process: models and all that their engines share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4
from weakref import WeakSet, WeakValueDictionary

import torch
from transformers import PreTrainedTokenizerBase

from focus_core.attention.candidates import CandidateProjections
from focus_core.cache.bus import Bus
from focus_core.cache.chunk_file import StateShape
from focus_core.cache.disk import DiskTier
from focus_core.cache.store import DeviceTier, HostTier
from focus_core.device import choose_device, choose_dtype, free_memory, has_own_memory
from focus_core.engine.calibration import Calibration
from focus_core.engine.scheduler import Scheduler
from focus_core.errors import ConfigError
from focus_core.loading.adapters import fresh_projections
from focus_core.loading.fingerprint import SOFTWARE, model_key, weights_content
from focus_core.loading.gguf import gguf_path, load_gguf_tokenizer
from focus_core.loading.hub import is_folder
from focus_core.loading.models import LoadedModel, load_model
from focus_core.loading.named import EMBEDDED, named_model
from focus_core.progress import sign_of_life
from focus_core.text.tokenizer import TextTokenizer, load_tokenizer

_STORE_SHARE = 0.5  # of the memory, of device and host each, that is free once the weights are loaded
_HOST = torch.device("cpu")


@dataclass(eq=False, repr=False)
class SharedModel:
    """A model, its tokenizer, and what its engines share: prefilled chunks and the scheduler.

    Attributes:
        key: what a chunk's keys and values depend on besides its tokens
        lasting: whether another process that loads the same model finds the same key
        warned: notices that its users have got
    """

    loaded: LoadedModel
    tokenizer: TextTokenizer
    key: str
    lasting: bool = False
    warned: set[str] = field(default_factory=set)
    _tiers: WeakSet[DeviceTier] = field(default_factory=WeakSet)
    _store: DeviceTier | None = None
    _bus: Bus | None = None
    _untrained: CandidateProjections | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)  # engines are made and used in any thread

    def __post_init__(self) -> None:
        self.scheduler = Scheduler(self.loaded.model)
        self.calibration = Calibration(self.scheduler, self.loaded.model.device, self.tokenizer)

    @classmethod
    def of(cls, loaded: LoadedModel, tokenizer: PreTrainedTokenizerBase, *, key: str | None = None) -> SharedModel:
        """Around a model that is already loaded.

        Args:
            key: its `model_key`; by default a unique one, for a model whose weights may change at any time
        """
        vocabulary = loaded.model.get_input_embeddings().weight.shape[0]
        return cls(loaded, TextTokenizer(tokenizer, vocabulary=vocabulary), key or uuid4().hex, lasting=bool(key))

    def __repr__(self) -> str:
        return f"<SharedModel {self.loaded.model_id!r}>"

    @property
    def store(self) -> DeviceTier:
        """The store of all engines that name no budget: half of the memory that is free when it is first used."""
        with self._lock:
            if self._store is None:
                self._store = self.new_store()
            return self._store

    def new_store(self, store_bytes: int | None = None, host_bytes: int | None = None) -> DeviceTier:
        """A store with budgets of its own; where one is not given, half of the memory that is free now.

        Raises:
            ConfigError: not a number of bytes; a budget for host memory where the device has no other
        """
        device = self.loaded.model.device
        if store_bytes is None:
            store_bytes = int(free_memory(device) * _STORE_SHARE)
        store = DeviceTier(store_bytes, self._new_host(host_bytes, device))
        with self._lock:
            self._tiers.add(store)
        return store

    def _new_host(self, host_bytes: int | None, device: torch.device) -> HostTier | None:
        if not has_own_memory(device):
            if host_bytes:
                raise ConfigError(
                    f"host_bytes={host_bytes!r}: the model is on {device}, whose memory is the host's, so chunks have "
                    "no second memory to move to. Use store_bytes."
                )
            return None
        if host_bytes is None:
            host_bytes = int(free_memory(_HOST) * _STORE_SHARE)
        tier = HostTier(host_bytes, self.bus)
        return tier if host_bytes else None

    @property
    def bus(self) -> Bus:
        """The way from host memory to the device, which all engines share, because one pass runs at a time."""
        with self._lock:
            if self._bus is None:
                self._bus = Bus(self.loaded.model.device)
            return self._bus

    def new_disk(self, folder: str | Path, states: StateShape, limit: int | None) -> DiskTier:
        """The files of this model in a folder.

        Args:
            states: what the model's keys and values look like

        Raises:
            ConfigError: the model was not loaded from files; the folder cannot be used
        """
        if not self.lasting:
            raise ConfigError(
                f"store={str(folder)!r}: what is kept on disk belongs to the content of a model's files, and "
                f"{self.loaded.model_id} was handed over loaded, or its files were not found. Load it by its name, "
                "with FocusEngine.from_pretrained."
            )
        return DiskTier(folder, self.key, states=states, software=SOFTWARE, limit=limit)

    @property
    def tiers(self) -> list[DeviceTier]:
        """The stores of all engines."""
        with self._lock:
            return list(self._tiers)

    @property
    def projections(self) -> CandidateProjections | Callable[[], CandidateProjections]:
        """The trained ones, or copies of the model's own maps, which all engines share."""
        return self.loaded.projections or self._untrained_projections

    def _untrained_projections(self) -> CandidateProjections:
        with self._lock:
            if self._untrained is None:
                self._untrained = fresh_projections(self.loaded.model)
            return self._untrained


_Key = tuple[Any, ...]  # all that two callers must have in common to share weights

_shared: WeakValueDictionary[_Key, SharedModel] = WeakValueDictionary()
# Held while loading; others wait for the same weights only.
_loading: WeakValueDictionary[_Key, threading.Lock] = WeakValueDictionary()
_lock = threading.Lock()  # guards both


def shared_model(
    model: str | Path | None,
    *,
    adapter: str | Path | None,
    device: str,
    dtype: str,
    progress: bool = True,
    **arguments: Any,
) -> SharedModel:
    """The weights of `model`, loaded now or before; `None` is the embedded model with its own adapter.

    Args:
        progress: show on a terminal what takes more than two seconds

    Raises:
        UnsupportedModelError: no model or no tokenizer under this name
        AdapterError: the adapter is missing, damaged, or belongs to another model
        ConfigError: an empty name, or an unknown device or dtype
    """
    for what, given in (("model", model), ("adapter", adapter)):
        if given == "":
            raise ConfigError(f"{what}='': name a folder or a hub id, or leave it out.")
    name = EMBEDDED if model is None else str(model)
    if name == EMBEDDED and dtype == "auto":
        dtype = "float32"  # in bfloat16 it finds less (its card), and it is small enough for any device
    chosen = choose_device(device)
    key = (
        *(name, _files(name), str(adapter), _files(str(adapter)), str(chosen), choose_dtype(dtype, chosen)),
        *sorted((k, repr(v)) for k, v in arguments.items()),
    )
    with _lock:
        loading = _loading.setdefault(key, threading.Lock())
    with loading:
        with _lock:
            found = _shared.get(key)
        if found is None:
            path, own_adapter = named_model(name)
            options: dict[str, Any] = {"device": device, "dtype": dtype, "progress": progress, **arguments}
            loaded = load_model(path, adapter=adapter or own_adapter, **options)
            with sign_of_life("loading the tokenizer", visible=progress):
                gguf = gguf_path(path, arguments)
                tokenizer = load_gguf_tokenizer(gguf) if gguf else load_tokenizer(path, arguments)
            weights = weights_content(path, arguments)
            content = model_key(loaded.model, tokenizer, weights) if weights else None
            found = SharedModel.of(loaded, tokenizer, key=content)
            with _lock:
                _shared[key] = found
        return found


def _files(name: str) -> tuple[tuple[str, int, int], ...]:
    """Names, times and sizes of files, which tell that they were written again; nothing for a hub id."""
    listed = sorted(Path(name).glob("*")) if is_folder(name) else [Path(name)] if name.endswith(".gguf") else []
    found = ((path.name, path.stat()) for path in listed if path.is_file())
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in found)
