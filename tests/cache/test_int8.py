"""Keys and values in eight bits: how far off a number may be, and how many bytes it takes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_core.cache.chunks import ChunkBlock, ChunkRun
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
