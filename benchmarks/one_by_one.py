"""The alternative that `decode.py` measures against: chunks one by one, as the authors' released code reads them.

    for every chunk                                    batch 1, a Python loop
        pass [chunk ; prompt] through the model        the last token takes the candidate projections
        keep its keys and values in a DynamicCache     which grows by torch.cat
    concatenate the candidates, run the local context

    and for every new token
        for every chunk, pass [previous token ; new token] after its cache
        concatenate the candidates, run the local context again

Where the authors' code does more than its method asks for, this does not: it moves no cache between devices, runs no
LM head and no loss over chunks, keeps keys already rotated instead of rotating every cache anew at each step, and asks
for logits of the last token only. Its results equal ours; `decode.py` compares the logits in every run.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.attention.rope import RotaryPositions


class OneByOne:
    """A question about some chunks.

    Args:
        projections: full copies of the model's maps; low-rank ones are not restated here
    """

    def __init__(self, model: PreTrainedModel, projections: CandidateProjections) -> None:
        parts = decoder_parts(model)
        self._model = model
        self._candidate_model = _candidate_model(model, projections)
        self._positions = RotaryPositions(parts)
        self._caches: list[DynamicCache] = []
        self._local = torch.empty(1, 0, dtype=torch.long)

    @torch.no_grad()
    def start(self, chunks: Sequence[Tensor], prompt: Tensor) -> Tensor:
        """Read all chunks and give the next-token logits `[1, vocab]`.

        Args:
            chunks: token ids `[tokens]` each
            prompt: token ids `[1, tokens]`: dynamic prompt and local context
        """
        self._local = prompt
        self._caches = [DynamicCache(config=self._model.config) for _ in chunks]
        rows = [torch.cat([chunk[None], prompt], dim=1) for chunk in chunks]
        return self._next_token(rows)

    @torch.no_grad()
    def step(self, token: Tensor) -> Tensor:
        """Next-token logits after appending `token [1]`."""
        self._local = torch.cat([self._local, token[:, None]], dim=1)
        return self._next_token([self._local[:, -2:]] * len(self._caches))

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values of all caches."""
        layers = [layer for cache in self._caches for layer in cache.layers]
        return sum(states.nbytes for layer in layers for states in (layer.keys, layer.values))

    def _next_token(self, rows: Sequence[Tensor]) -> Tensor:
        candidates = [self._candidate(row, cache) for row, cache in zip(rows, self._caches, strict=True)]
        ends = torch.tensor([[cache.get_seq_length() for cache in self._caches]], device=self._model.device)
        keys = torch.stack([torch.cat(layer, dim=2) for layer in zip(*(keys for keys, _ in candidates), strict=True)])
        values = [torch.cat(layer, dim=2) for layer in zip(*(values for _, values in candidates), strict=True)]
        # Candidate i stands after its cache and goes to position i.
        keys = self._positions.move(keys, torch.arange(len(rows), device=keys.device) - ends)
        memory = DynamicCache(config=self._model.config)
        for layer, states in enumerate(zip(keys, values, strict=True)):
            memory.update(*states, layer)
        output = self._model(
            input_ids=self._local.to(self._model.device), past_key_values=memory, use_cache=True, logits_to_keep=1
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _candidate(self, row: Tensor, cache: DynamicCache) -> tuple[list[Tensor], list[Tensor]]:
        """Keys and values of the last token of `row`, per layer; all tokens but this one stay in `cache`."""
        self._candidate_model.get_decoder()(input_ids=row.to(self._model.device), past_key_values=cache, use_cache=True)
        keys = [layer.keys[:, :, -1:] for layer in cache.layers]
        values = [layer.values[:, :, -1:] for layer in cache.layers]
        cache.crop(-1)
        return keys, values


class _LastTokenLinear(nn.Module):
    """The base map for all tokens but the last, which takes the candidate projection."""

    def __init__(self, base: nn.Module, projection: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.projection = projection

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.cat([self.base(hidden[:, :-1]), self.projection(hidden[:, -1:])], dim=1)


def _candidate_model(model: PreTrainedModel, projections: CandidateProjections) -> PreTrainedModel:
    """A second set of modules around the same weights, with candidate projections in it."""
    weights = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    shell = copy.deepcopy(model, weights)
    for index, attention in enumerate(decoder_parts(shell).attentions):
        for name, projection in projections.layer(index).items():
            setattr(attention, name, _LastTokenLinear(getattr(attention, name), projection))
    return shell
