"""A moved key equals a key that the model makes at the target position, for every kind of rotary embedding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from focus_core.attention.modules import decoder_parts
from focus_core.attention.rope import RotaryPositions
from tests.model_zoo import FAMILIES, build

SOURCES, TARGETS = [0, 5, 150, 200, 7], [0, 150, 5, 0, 8]


@torch.no_grad()
def _keys_at(model: PreTrainedModel, positions: list[int]) -> Tensor:
    """`[layers, 1, kv_heads, positions, head_dim]`: keys of one lonely token, the same but for its position.

    A token that sees only itself attends to nothing that depends on a position, so every layer gets the same input.
    """
    rows = []
    for position in positions:
        cache = DynamicCache()
        model(torch.tensor([[7]]), position_ids=torch.tensor([[position]]), past_key_values=cache)
        rows.append(torch.stack([layer.keys for layer in cache.layers]))
    return torch.cat(rows, dim=3)


def _distance() -> Tensor:
    return torch.tensor([TARGETS]) - torch.tensor([SOURCES])


@pytest.mark.parametrize("family", FAMILIES)
def test_moving_equals_making_anew(family: str) -> None:
    """Candidates would stand in the memory at wrong positions, or scaled once more (YaRN), or only in part moved."""
    model = build(family)
    source = _keys_at(model, SOURCES)
    moved = RotaryPositions(decoder_parts(model)).move(source, _distance())
    wanted = _keys_at(model, TARGETS)
    torch.testing.assert_close(moved, wanted, atol=2e-4, rtol=1e-5)
    assert (source - wanted).abs().max() > 0.3  # otherwise not moving at all would pass, too


@pytest.mark.parametrize("family", ["llama", "llama_yarn_rope", "gemma3", "glm4"])
def test_questions_and_slots_have_their_own_distance(family: str) -> None:
    """In a batch, candidates would be moved by the distance of another question or chunk."""
    model = build(family)
    rotary = RotaryPositions(decoder_parts(model))
    keys = torch.cat([_keys_at(model, SOURCES), _keys_at(model, SOURCES[::-1])], dim=1)
    distance = torch.cat([_distance(), torch.tensor([[3, -5, 0, 1, -4]])])
    together = rotary.move(keys, distance)
    for question in range(2):
        alone = rotary.move(keys[:, question : question + 1], distance[question : question + 1])
        assert torch.equal(together[:, question : question + 1], alone)


def test_layers_without_rope_are_left_alone() -> None:
    """SmolLM3's layers without positions would get some."""
    model = build("smollm3")
    keys = _keys_at(model, SOURCES)
    moved = RotaryPositions(decoder_parts(model)).move(keys, _distance())
    assert torch.equal(moved[1], keys[1])
    assert not torch.equal(moved[0], keys[0])


def test_half_precision_loses_no_more_than_rounding() -> None:
    """In bfloat16 the turn itself would be computed with eight bits: far positions would be wrong by whole tokens."""
    model = build("llama")
    exact = _keys_at(model, SOURCES)
    rotary = RotaryPositions(decoder_parts(model))
    moved = rotary.move(exact.bfloat16(), _distance())
    assert moved.dtype == torch.bfloat16
    error = (moved.float() - rotary.move(exact, _distance())).abs()
    assert error.max() < 2**-7 * exact.abs().max()
    keys = exact.double()
    assert torch.allclose(rotary.move(rotary.move(exact, _distance()), -_distance()).double(), keys, atol=2e-5)
