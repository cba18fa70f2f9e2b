"""A chunk's file, whatever became of it between two looks at it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from focus_core.cache.chunk_file import ChunkHeader, UnusableFile, read_chunk, read_chunk_into, read_header, write_chunk
from focus_core.cache.chunks import ChunkBlock

CPU, TOKENS = torch.device("cpu"), [3, 1, 4, 1, 5, 9]


def block_of(chunks: int = 1, *, dtype: torch.dtype = torch.float32, kv_dtype: str | None = None) -> ChunkBlock:
    torch.manual_seed(0)
    block = ChunkBlock.empty((3, chunks, 2, len(TOKENS), 8), dtype=dtype, device=CPU, kv_dtype=kv_dtype)
    for tensor in block.tensors.values():
        tensor.copy_(torch.randn(tensor.shape) * 50)
    return block


def write(path: Path, block: ChunkBlock, row: int = 0) -> None:
    chunk = {name: tensor[:, row].contiguous() for name, tensor in block.tensors.items()}
    write_chunk(path, chunk, TOKENS, {"model": "m"})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, ChunkHeader, ChunkBlock, Path]:
    path, block = tmp_path_factory.mktemp("file") / "chunk", block_of()
    write(path, block)
    return path.read_bytes(), read_header(path), block, path


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kv_dtype", [None, "int8"])
def test_a_chunk_comes_back_into_any_row(tmp_path: Path, dtype: torch.dtype, kv_dtype: str | None) -> None:
    block = block_of(3, dtype=dtype, kv_dtype=kv_dtype)
    write(tmp_path / "chunk", block, row=1)
    into = block_of(4, dtype=dtype, kv_dtype=kv_dtype)
    before = {name: tensor.clone() for name, tensor in into.tensors.items()}
    header = read_header(tmp_path / "chunk")
    assert read_chunk_into(tmp_path / "chunk", header, into, 2) == TOKENS
    alone, token_ids = read_chunk(tmp_path / "chunk", header)
    assert token_ids == TOKENS
    for name, tensor in into.tensors.items():
        assert torch.equal(tensor[:, 2], block.tensors[name][:, 1])
        assert torch.equal(alone.tensors[name][:, 0], block.tensors[name][:, 1])
        assert torch.equal(tensor[:, [0, 1, 3]], before[name][:, [0, 1, 3]])


def test_others_can_read_it(written: tuple[bytes, ChunkHeader, ChunkBlock, Path]) -> None:
    """It is an ordinary safetensors file."""
    _, _, block, path = written
    tensors = load_file(path)
    assert torch.equal(tensors["values"], block.values[:, 0])
    assert tensors["token_ids"].tolist() == TOKENS


_COMES_AND_GOES = """
import os, sys
path, other = sys.argv[1:]
while True:
    os.link(path, other)
    os.unlink(other)
"""


def test_a_file_that_another_process_removes_is_there_or_not(
    written: tuple[bytes, ChunkHeader, ChunkBlock, Path],
) -> None:
    """safetensors opens a file twice for torch: one in six of such reads failed with a RuntimeError."""
    _, header, _, path = written
    other = path.with_name("comes_and_goes")
    seen = Counter[bool]()
    with subprocess.Popen([sys.executable, "-c", _COMES_AND_GOES, str(path), str(other)]) as process:
        try:
            while min(seen[True], seen[False]) < 300:
                assert process.poll() is None
                try:
                    found = read_header(other)
                except FileNotFoundError:
                    seen[False] += 1
                else:
                    assert found == header
                    seen[True] += 1
        finally:
            process.kill()


def _check(written: tuple[bytes, ChunkHeader, ChunkBlock, Path], content: bytes) -> None:
    """What is read after `read_header` is the chunk, or nothing."""
    _, header, block, path = written
    other = path.with_name("other")
    other.write_bytes(content)
    try:
        found, token_ids = read_chunk(other, header)
    except UnusableFile:
        return
    assert token_ids == TOKENS
    assert all(torch.equal(found.tensors[name], tensor) for name, tensor in block.tensors.items())


@given(st.data())
def test_changed_bytes(written: tuple[bytes, ChunkHeader, ChunkBlock, Path], data: st.DataObject) -> None:
    content = bytearray(written[0])
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    _check(written, bytes(content))


@given(st.data())
def test_cut_off_or_longer(written: tuple[bytes, ChunkHeader, ChunkBlock, Path], data: st.DataObject) -> None:
    cut = written[0][: data.draw(st.integers(0, len(written[0])))]
    _check(written, cut + data.draw(st.binary(max_size=40)))


def _edited(edit: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        length = int.from_bytes(content[:8], "little")
        header = json.loads(content[8 : 8 + length])
        made = json.dumps(edit(header) or header).encode()
        return len(made).to_bytes(8, "little") + made + content[8 + length :]

    return change


@pytest.mark.parametrize(
    "change",
    [
        lambda content: (2**60).to_bytes(8, "little") + content[8:],
        lambda content: (40_000).to_bytes(8, "little") + b"[" * 40_000,
        lambda content: b"",
        lambda content: (2).to_bytes(8, "little") + b"[]" + content,
        _edited(lambda header: header["keys"].update(data_offsets=[-400, 0])),  # type: ignore[attr-defined]
        _edited(lambda header: header["keys"].update(data_offsets=[10**30, 0])),  # type: ignore[attr-defined]
        _edited(lambda header: header["keys"].update(data_offsets=None)),  # type: ignore[attr-defined]
        _edited(lambda header: header["keys"].update(shape=7)),  # type: ignore[attr-defined]
        _edited(lambda header: header.update(keys="keys")),
        _edited(lambda header: header.pop("values") and None),
        _edited(lambda header: header.update(more=header["keys"])),
        _edited(lambda header: header["keys"].update(dtype="F16")),  # type: ignore[attr-defined]
    ],
)
def test_headers_that_nobody_would_write(
    written: tuple[bytes, ChunkHeader, ChunkBlock, Path], change: Callable[[bytes], bytes]
) -> None:
    _, header, _, path = written
    other = path.with_name("other")
    other.write_bytes(change(written[0]))
    with pytest.raises(UnusableFile):
        read_chunk(other, header)
