"""A file with one prefilled chunk: keys, values and token ids as safetensors, with everything that must agree.

Nothing in it is believed: the header names format, model and software, the token ids are compared, and each tensor has
a checksum.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load, save_file
from torch import Tensor

from focus_core.disk import replace_file

FORMAT = "1"  # raise it when the same content would be written in another way

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_CHECKED = ("keys", "values", "token_ids")


class UnusableFile(Exception):
    """Why a file does not give its chunk."""


@dataclass(frozen=True)
class ChunkHeader:
    """What the header of a file says.

    Attributes:
        shape: layers, kv_heads, tokens, head_dim
        metadata: format, model, software and checksums
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    metadata: Mapping[str, str]

    @property
    def layers(self) -> int:
        return self.shape[0]

    @property
    def tokens(self) -> int:
        return self.shape[2]


def write_chunk(
    path: Path, keys: Tensor, values: Tensor, token_ids: Sequence[int], identity: Mapping[str, str]
) -> None:
    """Write a file, so that a reader finds all of it or none of it, also after a crash.

    Args:
        keys: `[layers, kv_heads, tokens, head_dim]` on the CPU
        values: like `keys`
        identity: model and software

    Raises:
        OSError: the folder cannot be written to
    """
    tensors = {"keys": keys, "values": values, "token_ids": torch.tensor(list(token_ids), dtype=torch.int64)}
    metadata = {"format": FORMAT, **identity, **{f"crc32 of {name}": _checksum(tensors[name]) for name in _CHECKED}}
    try:
        replace_file(path, lambda partial: save_file(tensors, partial, metadata), sync=True)
    except SafetensorError as error:  # how it passes on an error of the system
        raise OSError(str(error)) from error


def read_header(path: Path) -> ChunkHeader:
    """The header of a file, without its keys and values.

    Raises:
        FileNotFoundError: there is none
        UnusableFile: it is damaged, cut off, or something else
    """
    try:
        with safe_open(path, framework="pt") as file:  # compares the file's size with what the header promises
            metadata = file.metadata() or {}
            part = file.get_slice("keys")
            shape, dtype = part.get_shape(), _DTYPES[part.get_dtype()]
            layers, kv_heads, tokens, dim = shape
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(error) from error
    return ChunkHeader((layers, kv_heads, tokens, dim), dtype, metadata)


def check_identity(header: ChunkHeader, identity: Mapping[str, str]) -> None:
    """Compare what a header says with what is wanted.

    Raises:
        UnusableFile: format, model or software differ
    """
    for name, wanted in {"format": FORMAT, **identity}.items():
        found = header.metadata.get(name)
        if found != wanted:
            raise UnusableFile(f"its {name} is {found!r}, not {wanted!r}")


def read_chunk(path: Path, header: ChunkHeader) -> tuple[Tensor, Tensor, list[int]]:
    """Keys, values and token ids of a file, checked.

    The file is read into memory and not mapped: whatever happens to it meanwhile cannot kill the process.

    Args:
        header: as `read_header` found it

    Raises:
        FileNotFoundError: it is not there any more
        UnusableFile: it is damaged, or another file than before
    """
    try:
        tensors = load(path.read_bytes())
        keys, values, token_ids = (tensors[name] for name in _CHECKED)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(error) from error
    for name, tensor in zip(_CHECKED, (keys, values, token_ids), strict=True):
        if _checksum(tensor) != header.metadata.get(f"crc32 of {name}"):
            raise UnusableFile(f"the checksum of its {name} is wrong")
    if any(states.shape != header.shape or states.dtype != header.dtype for states in (keys, values)):
        raise UnusableFile("its keys and values have another shape than its header says")
    return keys, values, token_ids.tolist()


def _unusable(error: Exception) -> UnusableFile:
    if isinstance(error, OSError):
        return UnusableFile(error.strerror or str(error))
    return UnusableFile(f"it is damaged, or no file of ours ({error})")


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data):08x}"
