"""Moves cached keys to other positions: rotated by the distance, with the model's own rotary embedding."""

from __future__ import annotations

import copy
import inspect
from collections import defaultdict
from typing import Any, cast

import torch
from torch import Tensor

from focus_core.attention.modules import DecoderParts

Angles = dict[str | None, tuple[Tensor, Tensor]]  # cos and sin `[batch, slots, rotary_dim]`, by kind of layer


class RotaryPositions:
    """Moves keys that the model has already rotated.

    Rotations add up, so a key at position p becomes a key at position t by a rotation of t − p. Layers that share a
    rotary embedding are rotated together; layers without one (SmolLM3) are left alone.
    """

    def __init__(self, parts: DecoderParts) -> None:
        self._rotary = copy.deepcopy(parts.rotary)  # some kinds overwrite their frequencies in every pass
        self._apply = parts.apply_rotary
        self._typed = "layer_type" in inspect.signature(parts.rotary.forward).parameters
        layers_of: dict[str | None, list[int]] = defaultdict(list)
        for index, attention in enumerate(parts.attentions):
            if getattr(attention, "use_rope", True):
                kind = cast(Any, attention).config.layer_types[index] if self._typed else None
                layers_of[kind].append(index)
        self._layers_of = dict(layers_of)
        self._kind_of = {index: kind for kind, indices in layers_of.items() for index in indices}

    def angles(self, distance: Tensor) -> Angles:
        """Cosines and sines of `distance [batch, slots]` positions, for `move_layer`."""
        typed = {kind: (kind,) if self._typed else () for kind in self._layers_of}
        like = torch.empty(0, device=distance.device)
        return {kind: self._rotary(like, distance, *typed[kind]) for kind in self._layers_of}

    def move_layer(self, layer: int, keys: Tensor, angles: Angles) -> Tensor:
        """One layer's `keys [batch, heads, slots, head_dim]`, rotated by `angles`.

        Computed in float32 and returned in the dtype of `keys`.
        """
        if layer not in self._kind_of:
            return keys
        kind = self._kind_of[layer]
        return self._rotate(keys, *angles[kind], kind)

    def move(self, keys: Tensor, distance: Tensor) -> Tensor:
        """`keys [layers, batch, heads, slots, head_dim]`, rotated by `distance [batch, slots]` positions.

        Computed in float32 and returned in the dtype of `keys`.
        """
        angles = self.angles(distance)
        if len(self._layers_of) == 1 and len(keys) == len(self._kind_of):
            return self._rotate_layers(keys, angles, next(iter(self._layers_of)))
        moved = [keys[i] for i in range(len(keys))]
        for kind, indices in self._layers_of.items():
            for index, rotated in zip(indices, self._rotate_layers(keys[indices], angles, kind), strict=True):
                moved[index] = rotated
        return torch.stack(moved)

    def _rotate_layers(self, keys: Tensor, angles: Angles, kind: str | None) -> Tensor:
        layers, batch = keys.shape[:2]
        cos, sin = (of_kind.repeat(layers, 1, 1) for of_kind in angles[kind])
        return self._rotate(keys.flatten(0, 1), cos, sin, kind).unflatten(0, (layers, batch))

    def _rotate(self, keys: Tensor, cos: Tensor, sin: Tensor, kind: str | None) -> Tensor:
        exact = keys.float()
        rotary_dim = cos.shape[-1]  # some models rotate only the first dimensions
        rotated, _ = self._apply(exact[..., :rotary_dim], exact[..., :rotary_dim], cos, sin)
        scale = getattr(self._rotary, f"{kind}_attention_scaling" if self._typed else "attention_scaling", 1.0)
        # The keys carry YaRN's attention scaling already; the second rotation must not apply it again.
        rotated = torch.cat([rotated / scale, exact[..., rotary_dim:]], dim=-1)
        return rotated.to(keys.dtype)
