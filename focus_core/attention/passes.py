"""The caches that transformers fills while chunks, prompts and candidates pass the model.

transformers hands every layer's rotated keys and values to `Cache.update`. Here each is written straight to where it
stays, and the pass ends once the last keys and values that are read have been made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

KeysAndValues = tuple[Tensor, Tensor]


class PassComplete(Exception):
    """All keys and values of the pass are stored; raised through the model's forward, caught by `until_done`."""


@contextmanager
def until_done() -> Iterator[None]:
    """Run a forward pass that may end early."""
    with suppress(PassComplete):
        yield


class PassCache(Cache):
    """Gives every layer's new keys and values to `store(layer, keys, values)` and attends to what that returns.

    Args:
        layers: number of layers of the model
        store: gets `[rows, kv_heads, new, head_dim]` keys and values; returns those that the layer attends to
        last: after this layer's `store` the pass ends, unless `run_through` is set
        run_through: let the pass run to its end (models whose weights accelerate moves between devices rely on it)
    """

    def __init__(
        self, layers: int, store: Callable[[int, Tensor, Tensor], KeysAndValues], *, last: int, run_through: bool
    ) -> None:
        super().__init__(layers=[_PassLayer() for _ in range(layers)])
        self._store = store
        self._last = last
        self._run_through = run_through

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> KeysAndValues:
        if layer_idx > self._last:
            return key_states, value_states
        seen = self._store(layer_idx, key_states, value_states)
        if layer_idx == self._last and not self._run_through:
            raise PassComplete
        return seen


class _PassLayer(CacheLayerMixin):
    """Tells transformers that nothing came before the pass; `PassCache.update` does the work."""

    is_sliding = False

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None: ...

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> KeysAndValues:
        raise AssertionError("PassCache.update is called instead")

    def get_seq_length(self) -> int:
        return 0

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_max_length(self) -> int:
        return -1
