"""The plain model: documents and question in one row, with an ordinary cache, as the paper does up to the window."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, DynamicLayer

from focus_core.cache.chunks import ChunkRow, ChunkRun, ChunkSet
from focus_core.methods.base import ChunkScore, Prefilling, Reading, TokenizedQuestion, pad_left
from focus_core.methods.decoder import Decoder
from focus_core.methods.evidence import ReadChunks
from focus_core.methods.hidden_tokens import RowEvidence
from focus_core.methods.limits import Lengths, PlainLimits
from focus_core.text.chunking import Chunk

_ROOM = 128  # tokens behind a row's keys and values, so that the next ones copy none of those before
_WORTH_A_PASS = 256  # tokens: what many rows begin with is read once if so many need not be read again


class RoomyLayer(DynamicLayer):
    """One layer's keys and values, with room behind them: transformers' own copies all of them for every token."""

    keys: Tensor
    values: Tensor

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append `[rows, heads, tokens, dim]`; returns all, as views of what is kept."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys, self.values = _appended(self.keys, key_states), _appended(self.values, value_states)
        return self.keys, self.values


def _appended(held: Tensor, new: Tensor) -> Tensor:
    """`new` behind `held`: in the memory that `held` is the beginning of, if that has room, else in a larger one."""
    length = held.shape[-2] if held.numel() else 0
    memory, end = held._base, length + new.shape[-2]
    if memory is None or memory.shape[:-2] != new.shape[:-2] or memory.shape[-2] < end:
        memory = new.new_empty((*new.shape[:-2], end + _ROOM, new.shape[-1]))
        if length:
            memory[..., :length, :] = held
    memory[..., length:end, :] = new
    return memory[..., :end, :]


def _empty_cache() -> Cache:
    """Given no config, so that it never drops what a sliding window could not see."""
    return Cache(layer_class_to_replicate=RoomyLayer)


class PlainDecoding:
    """The model as it is, for a batch of rows. What they all begin with (documents, a system prompt) is read once.

    Args:
        rows: token ids of each row
        prefixes: chunks, with the keys and values of all layers, that rows of equal length go on from; these keys and
            values are copied
    """

    def __init__(self, decoder: Decoder, rows: Sequence[Sequence[int]], prefixes: Sequence[ChunkRow] = ()) -> None:
        self._model = decoder.model
        lengths, shared = [len(row) for row in rows], 0 if prefixes else shared_beginning(rows)
        own = max(lengths) - shared  # tokens of each row that are read for it alone
        self._beginning = rows[0][:shared]
        self._rows, _ = pad_left([row[-own:] for row in rows])
        self._cache = _empty_cache()
        self._length = max((block.tokens for block, _ in prefixes), default=shared)
        if prefixes:
            padding = [self._length - block.tokens for block, _ in prefixes]
            self._fill(prefixes)
        else:
            padding = [max(lengths) - length for length in lengths]
        self._set_padding(padding)

    def _fill(self, prefixes: Sequence[ChunkRow]) -> None:
        for layer in range(prefixes[0][0].layers):
            read = [ChunkRun(block, row, row + 1).layer(layer) for block, row in prefixes]
            keys, values = (
                torch.cat([_padded(of_row, self._length) for of_row in part]) for part in zip(*read, strict=True)
            )
            self._cache.update(keys, values, layer)

    def scores(self) -> list[tuple[ChunkScore, ...]]:
        return [()] * len(self._padding)

    def shares(self) -> list[None]:
        return [None] * len(self._padding)

    def start(self) -> Tensor:
        if self._beginning:
            self._read_beginning()
        return self._append(self._rows)

    def step(self, tokens: Tensor) -> Tensor:
        return self._append(tokens[:, None])

    def keep(self, questions: Sequence[int]) -> None:
        self._cache.batch_select_indices(torch.tensor(questions, device=self._model.device))
        self._set_padding([self._padding[index] for index in questions])

    def join(self, *others: PlainDecoding) -> None:
        """Layer by layer, so that no more than one layer's keys exist twice; nothing is left of the others."""
        parts = (self, *others)
        length = max(part._length for part in parts)
        joined = _empty_cache()
        for layer in range(len(self._cache.layers)):
            of_parts = [part._cache.layers[layer] for part in parts]
            keys = torch.cat([_padded(one.keys, length) for one in of_parts])
            for one in of_parts:
                one.keys = None
            values = torch.cat([_padded(one.values, length) for one in of_parts])
            for one in of_parts:
                one.values = None
            joined.update(keys, values, layer)
        self._set_padding([columns + length - part._length for part in parts for columns in part._padding])
        self._cache, self._length = joined, length

    @torch.no_grad()
    def _read_beginning(self) -> None:
        """Read once what all rows begin with; a shorter row has less of it in the cache, behind its padding."""
        read, token_ids = _empty_cache(), torch.tensor([self._beginning], device=self._model.device)
        self._model.get_decoder()(input_ids=token_ids, past_key_values=read, use_cache=True)
        length, self._beginning = len(self._beginning), ()
        for layer, of_layer in enumerate(read.layers):
            keys, values = (
                torch.cat([_padded(states[..., : length - columns, :], length) for columns in self._padding])
                for states in (of_layer.keys, of_layer.values)
            )
            of_layer.keys = of_layer.values = None  # no more than one layer's keys exist twice
            self._cache.update(keys, values, layer)

    def _set_padding(self, padding: list[int]) -> None:
        """Unused columns at the left of each row, also as `[rows, 1]` on the device."""
        self._padding = padding
        self._padding_on_device = torch.tensor(padding, device=self._model.device)[:, None]

    @torch.no_grad()
    def _append(self, tokens: Tensor) -> Tensor:
        tokens, unused = tokens.to(self._model.device), self._padding_on_device
        columns = torch.arange(self._length + tokens.shape[1], device=unused.device)
        position_ids = (columns[self._length :] - unused).clamp(min=0)
        mask = self._mask(columns, unused) if any(self._padding) else None
        self._length = len(columns)
        output = self._model(
            input_ids=tokens,
            attention_mask=mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        logits: Tensor = output.logits[:, -1]
        return logits

    def _mask(self, columns: Tensor, unused: Tensor) -> Tensor:
        """For transformers: which columns are seen, `[rows, columns]`; in float64 what is added to the scores.

        transformers would add the lowest float64 there, and models with soft caps take the softmax in float32, where
        that is -inf: a row of padding, which sees nothing, would be NaN, and with it all that follows.
        """
        used = columns >= unused
        if self._model.dtype != torch.float64:
            return used.long()
        seen = used[:, None, None] & (columns <= columns[self._length :, None])
        lowest = torch.finfo(torch.float32).min
        return torch.zeros(seen.shape, dtype=torch.float64, device=seen.device).masked_fill(~seen, lowest)


def shared_beginning(rows: Sequence[Sequence[int]]) -> int:
    """Tokens that all rows begin with, if reading them once is worth a pass; each row has something of its own."""
    first, last = min(rows, key=list), max(rows, key=list)  # in the order of tokens: what these two share, all share
    limit = min(map(len, rows)) - 1
    shared = next((place for place in range(limit) if first[place] != last[place]), limit)
    own = max(map(len, rows)) - shared
    return shared if own <= limit and (len(rows) - 1) * (limit + 1 - own) >= _WORTH_A_PASS else 0


def _padded(states: Tensor, length: int) -> Tensor:
    """`[…, tokens, dim]` with zeros at the left, because a hidden value still takes part in 0 × value."""
    missing = length - states.shape[-2]
    return nn.functional.pad(states, (0, 0, missing, 0)) if missing else states


class PlainMethod:
    """The plain model as a `Method`. It prefills no chunks: a row depends on its question."""

    name: ClassVar[str] = "plain"
    reading: ClassVar[Reading] = Reading()
    own_rows: ClassVar[bool] = True
    cached_layers = 0
    notice = None

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    @property
    def bytes_per_token(self) -> int:
        return self._decoder.parts.num_layers * self._decoder.bytes_per_layer

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        return 0

    def limits(self, lengths: Lengths) -> PlainLimits:
        return PlainLimits(self._decoder.config, lengths)

    def prefill(self, chunks: Sequence[Chunk]) -> Prefilling:
        return iter(())

    def decoding(self, chunks: ChunkSet, questions: Sequence[TokenizedQuestion]) -> PlainDecoding:
        return PlainDecoding(self._decoder, [question.whole for question in questions])

    def evidence(self, question: TokenizedQuestion, scores: Sequence[ChunkScore], chunks: ReadChunks) -> RowEvidence:
        return RowEvidence(self._decoder, question, range(len(question.chunks)))
