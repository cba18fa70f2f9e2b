"""A file with one prefilled chunk: keys, values, their scales and token ids as safetensors, with all that must agree.

Nothing in it is believed: the header names format, model and software, the token ids are compared, and each tensor has
a checksum.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import SEEK_END, FileIO
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from focus_core.cache.chunks import ChunkBlock
from focus_core.disk import replace_file

FORMAT = "1"  # raise it when the same content would be written in another way

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_TOKEN_IDS = "token_ids"
_SHAPE = "shape of keys"  # once more, because no checksum is about it; files of before 30 November 2026 lack it
_LONGEST_HEADER = 2**20  # bytes; ours have some hundreds


class UnusableFile(Exception):
    """Why a file does not give its chunk."""


@dataclass(frozen=True)
class StateShape:
    """Keys and values of a model.

    Attributes:
        layers: of the model; a chunk may have fewer
        dtype: of the model
    """

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype


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
    metadata = {"format": FORMAT, **identity, **checksums, _SHAPE: _shape_of(tensors["keys"].shape)}
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
        # The file's size is compared with what the header promises. For "pt", the file would be opened once more by
        # its path, where another process may have removed it by now: a RuntimeError.
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            part = file.get_slice("keys")
            layers, kv_heads, tokens, dim = part.get_shape()
            kv_dtype = "int8" if part.get_dtype() == "I8" else None
            dtype = _DTYPES[(file.get_slice("key_scales") if kv_dtype else part).get_dtype()]
    except FileNotFoundError:
        raise
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _unusable(error) from error
    shape = _shape_of((layers, kv_heads, tokens, dim))
    if min(layers, kv_heads, tokens, dim) < 1:
        raise UnusableFile(f"its keys have the shape {shape}")
    if metadata.get(_SHAPE, shape) != shape:
        raise UnusableFile(f"its keys have the shape {shape}, and it says {metadata[_SHAPE]}")
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


def check_states(header: ChunkHeader, states: StateShape) -> None:
    """Compare the shape and dtype of a file's keys and values with the model's.

    Raises:
        UnusableFile: they differ
    """
    layers, kv_heads, _, head_dim = header.shape
    found = StateShape(states.layers if 0 < layers <= states.layers else layers, kv_heads, head_dim, header.dtype)
    if found != states:
        raise UnusableFile(f"its keys and values are of another shape: {found}, not {states}")


def read_chunk(path: Path, header: ChunkHeader) -> tuple[ChunkBlock, list[int]]:
    """A file's chunk in a block of its own on the CPU, and its token ids; like `read_chunk_into`."""
    block = header.block(1, torch.device("cpu"))
    return block, read_chunk_into(path, header, block, 0)


def read_chunk_into(path: Path, header: ChunkHeader, block: ChunkBlock, row: int) -> list[int]:
    """Read the keys and values of a file into a row of a block on the CPU, checked; returns the token ids.

    They go from the file to their place and nowhere between. The file is read and not mapped: whatever happens to it
    meanwhile cannot kill the process.

    Args:
        header: as `read_header` found it

    Raises:
        FileNotFoundError: it is not there any more
        UnusableFile: it is damaged, or another file than before; the row then holds anything
    """
    try:
        with path.open("rb", buffering=0) as file:
            places = _places(file)
            if {name: (place.shape, place.dtype) for name, place in places.items()} != _contents(block):
                raise UnusableFile("its keys and values have another shape than its header says")
            for name, tensor in block.tensors.items():
                _read_checked(file, name, places[name], [_bytes_of(layer[row]) for layer in tensor], header)
            token_ids = torch.empty(block.tokens, dtype=torch.int64)
            _read_checked(file, _TOKEN_IDS, places[_TOKEN_IDS], [_bytes_of(token_ids)], header)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise _unusable(error) from error
    found: list[int] = token_ids.tolist()
    return found


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in a file: its first byte, shape and dtype."""

    start: int
    shape: tuple[int, ...]
    dtype: str


def _places(file: FileIO) -> dict[str, _Place]:
    """The tensors of a safetensors file: the length of its header in 8 bytes, the header as JSON, the tensors."""
    size = file.seek(0, SEEK_END)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        if length > _LONGEST_HEADER:
            raise ValueError(f"a header of {length:,} bytes")
        header = json.loads(file.read(length))
        starts = {name: 8 + length + int(header[name]["data_offsets"][0]) for name in header if name != "__metadata__"}
        if not all(0 <= start <= size for start in starts.values()):
            raise ValueError("it ends before its tensors")
        return {
            name: _Place(start, tuple(header[name]["shape"]), header[name]["dtype"]) for name, start in starts.items()
        }
    except (ValueError, LookupError, TypeError, ArithmeticError, RecursionError) as error:  # of JSON that is anything
        raise _unusable(error) from error


def _contents(block: ChunkBlock) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of each tensor in the file of a chunk of `block`."""
    names = {dtype: name for name, dtype in _DTYPES.items()} | {torch.int8: "I8"}
    tensors = block.tensors.items()
    chunk = {name: ((*tensor.shape[:1], *tensor.shape[2:]), names[tensor.dtype]) for name, tensor in tensors}
    return {**chunk, _TOKEN_IDS: ((block.tokens,), "I64")}


def _read_checked(file: FileIO, name: str, place: _Place, into: Sequence[memoryview], header: ChunkHeader) -> None:
    """Fill `into`, one after the other, from a place of the file."""
    file.seek(place.start)
    checksum = 0
    for part in into:
        filled = 0
        while filled < len(part):
            got = file.readinto(part[filled:])
            if not got:
                raise UnusableFile("it is cut off")
            filled += got
        checksum = zlib.crc32(part, checksum)
    if f"{checksum:08x}" != header.metadata.get(f"crc32 of {name}"):
        raise UnusableFile(f"the checksum of its {name} is wrong")


def _shape_of(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes))


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return memoryview(tensor.view(-1).view(torch.uint8).numpy().data)


def _unusable(error: Exception) -> UnusableFile:
    if isinstance(error, OSError):
        return UnusableFile(error.strerror or str(error))
    return UnusableFile(f"it is damaged, or no file of ours ({error})")


def _checksum(tensor: Tensor) -> str:
    return f"{zlib.crc32(_bytes_of(tensor)):08x}"
