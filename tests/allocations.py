"""What an operation allocates: torch tells of each one, whoever calls it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Allocations(TorchDispatchMode):
    """Notes every operation with the bytes of each of its results that does not lie in the memory of an argument.

    Attributes:
        found: name of the operation and bytes, in the order in which they were computed
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
        made = (tensor.untyped_storage() for tensor in _tensors(result))
        self.found += [(str(func), storage.nbytes()) for storage in made if storage.data_ptr() not in given]
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
