"""Keys and values in eight bits: how far off a number may be, and how many bytes it takes."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_core.cache.chunk_file import StateShape, UnusableFile, read_chunk, read_header, write_chunk
from focus_core.cache.chunks import ChunkBlock, ChunkRun
from focus_core.cache.disk import DiskTier
from focus_core.cache.int8 import dequantized, nbytes_of, quantized

CPU = torch.device("cpu")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random_states(*shape: int, seed: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows and columns of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    columns = torch.logspace(0, 2, shape[-1])
    return (torch.randn(shape, generator=generator) * columns).to(dtype)


@settings(max_examples=30)
@given(seed=st.integers(0, 10_000), dim=st.sampled_from([-1, -2]), dtype=st.sampled_from(DTYPES))
def test_a_number_is_off_by_at_most_half_a_scale(seed: int, dim: int, dtype: torch.dtype) -> None:
    """A scale along the wrong dimension, or numbers that are cut off and not rounded, would be off by more."""
    states = random_states(2, 3, 5, 4, seed=seed, dtype=dtype)
    whole, scales = quantized(states, dim)
    back = dequantized(whole, scales)
    assert (whole.dtype, back.dtype, scales.shape[dim]) == (torch.int8, dtype, 1)
    rounding = torch.finfo(dtype).eps * states.double().abs().amax(dim, keepdim=True)
    off = (back.double() - states.double()).abs()
    assert bool((off <= scales.double() / 2 + rounding).all())
    assert bool((whole.abs().amax(dim) >= 126).all())  # no bit is left unused; 126, where the scale is rounded up


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zeros_stay_zeros(dtype: torch.dtype) -> None:
    """0 / 0 would be NaN, and with one NaN a chunk every answer."""
    assert torch.equal(
        dequantized(*quantized(torch.zeros(2, 4, 3, dtype=dtype), -1)), torch.zeros(2, 4, 3, dtype=dtype)
    )


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_what_is_not_finite_stays_so(broken: float) -> None:
    """Damaged weights would give answers instead of an error."""
    states = torch.ones(3, 4)
    states[1, 2] = broken
    assert not dequantized(*quantized(states, -1))[1].isfinite().all()


@pytest.mark.parametrize(("dtype", "share"), [(torch.float32, 1 / 4), (torch.bfloat16, 1 / 2)], ids=str)
@pytest.mark.parametrize(("chunks", "tokens"), [(3, 896), (1, 2048), (2, 7)])
def test_bytes_are_those_of_the_tensors(dtype: torch.dtype, share: float, chunks: int, tokens: int) -> None:
    """Memory would be refused that is there, or taken that is not."""
    shape = (4, chunks, 2, tokens, 64)
    block = ChunkBlock.empty(shape, dtype=dtype, device=CPU, kv_dtype="int8")
    exact = ChunkBlock.empty(shape, dtype=dtype, device=CPU)
    taken = sum(tensor.untyped_storage().nbytes() for tensor in block.tensors.values())
    assert block.nbytes == taken == 4 * 2 * nbytes_of(chunks, chunks * tokens, 64, dtype)
    assert exact.nbytes == 2 * exact.keys.numel() * dtype.itemsize
    if tokens > 100:  # with few tokens, the scales of the keys count
        assert share < block.nbytes / exact.nbytes < 1.05 * share


def test_a_run_reads_what_was_written_to_it_and_nothing_else() -> None:
    block = ChunkBlock.empty((2, 4, 2, 6, 8), dtype=torch.float32, device=CPU, kv_dtype="int8")
    states = random_states(2, 2, 4, 2, 6, 8, seed=3, dtype=torch.float32)
    for layer in range(2):
        for first, last in ((2, 4), (0, 1), (1, 2)):
            ChunkRun(block, first, last).write(layer, *states[:, layer, first:last])
    for layer in range(2):
        keys, values = ChunkRun(block, 0, 4).narrow(1, 3).layer(layer)
        assert torch.equal(keys, dequantized(*quantized(states[0, layer, 1:3], -2)))
        assert torch.equal(values, dequantized(*quantized(states[1, layer, 1:3], -1)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_files_hold_the_same_bytes(dtype: torch.dtype, tmp_path: Path) -> None:
    """Whole numbers without their scales, or with those of another chunk, would be other keys."""
    block = ChunkBlock.empty((2, 3, 2, 6, 8), dtype=dtype, device=CPU, kv_dtype="int8")
    states = random_states(2, 2, 3, 2, 6, 8, seed=4, dtype=dtype)
    for layer in range(2):
        ChunkRun(block, 0, 3).write(layer, *states[:, layer])
    tokens = {bytes([row]) * 32: [row] * 6 for row in range(3)}
    shape = StateShape(layers=2, kv_heads=2, head_dim=8, dtype=dtype)
    tier = DiskTier(tmp_path, "model", states=shape, software="here")
    tier.save({key: (block, row) for row, key in enumerate(tokens)}, tokens.__getitem__)

    found = DiskTier(tmp_path, "model", states=shape, software="here").find(tokens, tokens.__getitem__, layers=2)
    rows = {
        key: row
        for one in tier.load(found, tokens.__getitem__, lambda header, chunks: header.block(chunks, CPU))
        for key, row in one.items()
    }
    loaded = rows[next(iter(tokens))][0]
    assert [rows[key] for key in tokens] == [(loaded, row) for row in range(3)]
    assert set(loaded.tensors) == {"keys", "values", "key_scales", "value_scales"}
    assert all(torch.equal(loaded.tensors[name], tensor) for name, tensor in block.tensors.items())


@pytest.mark.parametrize("name", ["key_scales", "value_scales"])
def test_a_file_with_other_scales_is_not_used(name: str, tmp_path: Path) -> None:
    block = ChunkBlock.empty((2, 1, 2, 6, 8), dtype=torch.float32, device=CPU, kv_dtype="int8")
    chunk = {of: torch.ones_like(tensor[:, 0]) for of, tensor in block.tensors.items()}
    write_chunk(tmp_path / "whole", chunk, [1] * 6, {})
    header = read_header(tmp_path / "whole")
    assert (header.dtype, header.kv_dtype) == (torch.float32, "int8")

    write_chunk(tmp_path / "other", {**chunk, name: 2 * chunk[name]}, [1] * 6, {})
    with pytest.raises(UnusableFile, match=f"the checksum of its {name} is wrong"):
        read_chunk(tmp_path / "other", header)

    write_chunk(tmp_path / "fewer", {**chunk, name: chunk[name][:1]}, [1] * 6, {})
    with pytest.raises(UnusableFile, match="another shape"):
        read_chunk(tmp_path / "fewer", read_header(tmp_path / "fewer"))
    assert read_chunk(tmp_path / "whole", header)[1] == [1] * 6
