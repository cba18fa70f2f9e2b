"""Keys and values in eight bits each, with scales: a quarter of the bytes of float32, half of those of bfloat16.

A few channels of keys are much larger than the others, in all tokens of a chunk; values have no such channels (KIVI,
arXiv 2402.02750). So each channel of a chunk's keys has a scale, and each token's value. Keys are stored rotated. A
rotation mixes pairs of channels, which leaves a large pair large, and a stored key is never rotated again.
"""

from __future__ import annotations

import torch
from torch import Tensor

KEY_SCALE_DIM = -2  # reduced: a scale for each channel, over the tokens of a chunk
VALUE_SCALE_DIM = -1  # reduced: a scale for each token, over its channels

_LARGEST = 127


def quantized(states: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """`states` as whole numbers from -127 to 127, and what to multiply them by.

    A number is off by at most half a scale, and by the rounding of `states.dtype`.

    Args:
        states: `[…, tokens, head_dim]`
        dim: the numbers along this dimension share a scale

    Returns:
        int8 `[…, tokens, head_dim]`, and scales of the dtype of `states`, of size 1 at `dim`
    """
    largest = states.abs().amax(dim, keepdim=True)
    scales = (largest / _LARGEST).clamp(min=torch.finfo(states.dtype).tiny)  # of zeros, not 0 / 0
    fine = torch.promote_types(states.dtype, torch.float32)  # bfloat16 has no 126.5
    return (states.to(fine) / scales).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8), scales


def dequantized(states: Tensor, scales: Tensor) -> Tensor:
    """What `quantized` was given, nearly; in the dtype of the scales."""
    return states * scales


def nbytes_of(chunks: int, tokens: int, head_dim: int, dtype: torch.dtype) -> int:
    """Bytes of one head's keys and values of `tokens` in `chunks`, in one layer, with scales of `dtype`."""
    return 2 * tokens * head_dim + (chunks * head_dim + tokens) * dtype.itemsize
