"""A file with one prefilled chunk: keys, values, their scales and token ids as safetensors, with all that must agree.

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

from focus_core.cache.chunks import ChunkBlock
from focus_core.disk import replace_file

FORMAT = "1"  # raise it when the same content would be written in another way

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_TOKEN_IDS = "token_ids"


class UnusableFile(Exception):
    """Why a file does not give its chunk."""


@dataclass(frozen=True)
class ChunkHeader:
    """What the header of a file says.

    Attributes:
        shape: layers, kv_heads, tokens, head_dim
        dtype: of the model
        kv_dtype: in what keys and values are kept, as in `FocusConfig`
        metadata: format, model, software and checksums
    """

    shape: tuple[int, int, int, int]
    dtype: torch.dtype
    kv_dtype: str | None
    metadata: Mapping[str, str]

    @property
    def layers(self) -> int:
        return self.shape[0]

    @property
    def tokens(self) -> int:
        return self.shape[2]

    @property
    def nbytes(self) -> int:
        """Bytes of keys and values."""
        return self.block(1, torch.device("meta")).nbytes

    def block(self, chunks: int, device: torch.device) -> ChunkBlock:
        """A block for such chunks, not written yet."""
        layers, kv_heads, tokens, dim = self.shape
        shape = (layers, chunks, kv_heads, tokens, dim)
        return ChunkBlock.empty(shape, dtype=self.dtype, device=device, kv_dtype=self.kv_dtype)


def write_chunk(path: Path, chunk: Mapping[str, Tensor], token_ids: Sequence[int], identity: Mapping[str, str]) -> None:
    """Write a file, so that a reader finds all of it or none of it, also after a crash.

    Args:
        chunk: one chunk of each of `ChunkBlock.tensors`, `[layers, kv_heads, …]` on the CPU
        identity: model and software

    Raises:
        OSError: the folder cannot be written to
    """
    tensors = {**chunk, _TOKEN_IDS: torch.tensor(list(token_ids), dtype=torch.int64)}
    checksums = {f"crc32 of {name}": _checksum(tensor) for name, tensor in tensors.items()}
    metadata = {"format": FORMAT, **identity, **checksums}
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
            layers, kv_heads, tokens, dim = part.get_shape()
            kv_dtype = "int8" if part.get_dtype() == "I8" else None
            dtype = _DTYPES[(file.get_slice("key_scales") if kv_dtype else part).get_dtype()]
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(error) from error
    return ChunkHeader((layers, kv_heads, tokens, dim), dtype, kv_dtype, metadata)


def check_identity(header: ChunkHeader, identity: Mapping[str, str]) -> None:
    """Compare what a header says with what is wanted.

    Raises:
        UnusableFile: format, model or software differ
    """
    for name, wanted in {"format": FORMAT, **identity}.items():
        found = header.metadata.get(name)
        if found != wanted:
            raise UnusableFile(f"its {name} is {found!r}, not {wanted!r}")


def read_chunk(path: Path, header: ChunkHeader) -> tuple[dict[str, Tensor], list[int]]:
    """What `write_chunk` was given as chunk and token ids, checked.

    The file is read into memory and not mapped: whatever happens to it meanwhile cannot kill the process.

    Args:
        header: as `read_header` found it

    Raises:
        FileNotFoundError: it is not there any more
        UnusableFile: it is damaged, or another file than before
    """
    try:
        tensors = load(path.read_bytes())
        token_ids = tensors.pop(_TOKEN_IDS)
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(error) from error
    for name, tensor in (*tensors.items(), (_TOKEN_IDS, token_ids)):
        if _checksum(tensor) != header.metadata.get(f"crc32 of {name}"):
            raise UnusableFile(f"the checksum of its {name} is wrong")
    wanted = {name: tensor[:, 0] for name, tensor in header.block(1, torch.device("meta")).tensors.items()}
    if _kinds(tensors) != _kinds(wanted):
        raise UnusableFile("its keys and values have another shape than its header says")
    return tensors, token_ids.tolist()


def _kinds(tensors: Mapping[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}


def _unusable(error: Exception) -> UnusableFile:
    if isinstance(error, OSError):
        return UnusableFile(error.strerror or str(error))
    return UnusableFile(f"it is damaged, or no file of ours ({error})")


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(tensor.view(torch.uint8).numpy().data):08x}"
