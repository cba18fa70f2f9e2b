"""FocusLLM: the method of the paper in three calls, tensors in, tensors out.

    chunks = ChunkSet.of(model.prefill(texts))                 # §2.2: every chunk alone, positions from 0
    memory = model.decode_candidates(chunks, prompt_ids)       # §2.2, eq. 1–5: one candidate per chunk
    logits = model.next_token_logits(local_ids, memory)        # §2.3: frozen decoder after the memory

The calls change nothing that they are given. To generate, hold an `AppendedCache` (`start_answer`) and hand it to
`decode_candidates` and `decode_step`: what is appended to the chunks accumulates there, and only there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections, candidate_model
from focus_core.attention.chunk_pass import ChunkPass, active_pass
from focus_core.attention.memory import Memory
from focus_core.attention.passes import until_done
from focus_core.attention.rope import RotaryPositions
from focus_core.attention.slot_attention import SlotAttention, watched_by, watched_model
from focus_core.attention.step import StepPass
from focus_core.cache.appended import AppendedCache
from focus_core.cache.chunks import ChunkRow, ChunkSet
from focus_core.config import LARGEST_CHUNK, FocusConfig
from focus_core.device import require_memory
from focus_core.errors import ConfigError
from focus_core.loading.adapters import fresh_projections
from focus_core.loading.models import load_model
from focus_core.loading.named import named_model
from focus_core.methods.base import ChunkScore, pad_left, without_unused
from focus_core.methods.decoder import Decoder, visible_columns
from focus_core.progress import Report


class FocusModel(Decoder):
    """A frozen decoder and its candidate projections.

    Args:
        projections: trained ones, or a function that makes untrained ones when they are first needed; `None` stands
            for copies of the model's own maps. The other arguments are those of `Decoder`

    Attributes:
        trained: whether the projections have been trained
    """

    def __init__(
        self,
        model: PreTrainedModel,
        projections: CandidateProjections | Callable[[], CandidateProjections] | None = None,
        *,
        config: FocusConfig | None = None,
        trained_with: FocusConfig | None = None,
        largest_chunk: int = LARGEST_CHUNK,
    ) -> None:
        super().__init__(model, config=config, trained_with=trained_with, largest_chunk=largest_chunk)
        self.positions = RotaryPositions(self.parts)
        self.trained = isinstance(projections, CandidateProjections)
        self._given_projections = projections

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        *,
        adapter: str | Path | None = None,
        config: FocusConfig | None = None,
        device: str = "auto",
        dtype: str = "auto",
        **model_arguments: Any,
    ) -> FocusModel:
        """A folder, hub id or known name: a model with or without `adapter`, or a checkpoint of the authors."""
        path, own_adapter = named_model(str(model))
        loaded = load_model(path, adapter=adapter or own_adapter, device=device, dtype=dtype, **model_arguments)
        return cls(loaded.model, loaded.projections, config=config, trained_with=loaded.trained_with)

    @cached_property
    def projections(self) -> CandidateProjections:
        """The candidate projections, on the device of the model."""
        given = self._given_projections
        if given is None:
            given = fresh_projections(self.model)
        made = given if isinstance(given, CandidateProjections) else given()
        return made.eval().to(self.model.device)

    @cached_property
    def candidate_model(self) -> PreTrainedModel:
        """The model, with attention that reads chunks in place and candidates that go through the projections."""
        return candidate_model(self.model, self.parts, self.projections)

    @cached_property
    def watched_model(self) -> PreTrainedModel:
        """The model, reporting what its last tokens attend to; made where live evidence is wanted."""
        return watched_model(self.model, self.parts)

    @property
    def cached_layers(self) -> int:
        """Layers with keys and values of chunks: of a candidate in the last layer only its own are used."""
        return self.parts.num_layers - 1

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of a whole chunk takes, rounded up."""
        return -(-self.chunk_bytes(1, self.config.chunk_size) // self.config.chunk_size)

    def chunk_bytes(self, chunks: int, tokens: int) -> int:
        """Bytes of the keys and values of `tokens` in `chunks`."""
        return self.cached_layers * self.chunk_bytes_per_layer(chunks, tokens)

    # --- the method ---------------------------------------------------------------------------------------------------

    def prefill(self, chunks: Sequence[Sequence[int] | Tensor], *, progress: Report | None = None) -> list[ChunkRow]:
        """Read every chunk once, alone, positions from 0 (paper §2.2).

        Args:
            chunks: token ids `[tokens]` each, BOS included where the BOS rule wants one
            progress: called with the number of chunks prefilled so far and in all

        Returns:
            block and row of each chunk, in order; chunks of equal length share a block

        Raises:
            ConfigError: an empty chunk
            OutOfMemoryError: they do not fit the device
        """
        tokens = sum(len(chunk) for chunk in chunks)
        require_memory(self.chunk_bytes(len(chunks), tokens), self.device, what=f"{tokens} tokens")
        rows: dict[int, ChunkRow] = {}
        for read in self.prefill_passes(chunks, layers=self.cached_layers):
            rows |= read
            if progress is not None:
                progress(len(rows), len(chunks))
        return [rows[index] for index in range(len(chunks))]

    @torch.no_grad()
    def decode_candidates(
        self,
        chunks: ChunkSet,
        token_ids: Tensor,
        appended: AppendedCache | None = None,
        *,
        padding: Sequence[int] | None = None,
    ) -> Memory:
        """Append tokens to every chunk and condense each chunk into its candidate (paper §2.2, eq. 1–5).

        The last token of every row is the candidate. Once more tokens follow, it is an ordinary token of its row: with
        `appended`, the candidate of the call before comes again as the first of `token_ids`.

        Args:
            token_ids: `[questions, tokens]`; the dynamic prompt, or with a used `appended` `[previous, new]`
            appended: from `start_answer`; gets the tokens. Without it they are appended for this call only
            padding: unused tokens at the left of each row; for the dynamic prompt without `appended`

        Returns:
            one slot per chunk and layer, candidate i moved to position i
        """
        token_ids = token_ids.to(self.device)
        questions, new = token_ids.shape
        appended = appended or self.start_answer(chunks, padding or [0] * questions)
        # After the first call the previous candidate's column is written again.
        appended.reserve(max(appended.length - 1, 0) + new)
        visible = visible_columns(appended, new)
        positions = self.last_positions(chunks, appended)
        shape = (self.parts.num_layers, len(chunks) * questions, self.parts.kv_heads, self.parts.head_dim)
        keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        size = self.rows_per_pass(questions * new, appended.tokens_per_pass)
        for start in range(0, len(chunks), size):
            stop = min(start + size, len(chunks))
            rows = slice(start * questions, stop * questions)
            chunk_pass = ChunkPass(chunks.between(start, stop), questions, 1, visible, self.cached_layers)
            candidates = keys[:, rows], values[:, rows]
            self._append_candidates(chunk_pass, token_ids, positions[start:stop], appended.rows(rows), candidates)
        return self._place_in_memory(keys, values, positions, chunks.slots.to(self.device))

    @torch.no_grad()
    def next_token_logits(
        self,
        local_ids: Tensor,
        memory: Memory,
        *,
        padding: Tensor | None = None,
        hidden: Tensor | None = None,
        attention: SlotAttention | None = None,
    ) -> Tensor:
        """One pass of the frozen decoder over the local context after the memory (paper §2.3).

        Args:
            local_ids: `[questions, tokens]`, the local context with all generated tokens; positions follow the
                memory's last slot
            memory: one slot per chunk
            padding: `[questions]`, unused tokens at the left of each row; `None` where no row has any
            hidden: `[questions, chunks]`, slots that are left out, others keep their positions; `None` where none is
            attention: gathers what the last tokens attend to

        Returns:
            next-token logits `[questions, vocab]`
        """
        padding, hidden = (None if given is None else given.to(self.device) for given in (padding, hidden))
        inputs = memory.decoder_inputs(local_ids.to(self.device), padding, hidden)
        if attention is None:
            output = self.model(**inputs)
        else:
            seen = inputs["attention_mask"]
            with watched_by(attention, None if seen is None else seen.bool()):
                output = self.watched_model(**inputs)
        logits: Tensor = output.logits[:, -1]
        return logits

    @torch.no_grad()
    def decode_step(
        self,
        chunks: ChunkSet,
        token_ids: Tensor,
        local_ids: Tensor,
        appended: AppendedCache,
        *,
        padding: Tensor | None = None,
        attention: SlotAttention | None = None,
    ) -> Tensor:
        """`decode_candidates` and `next_token_logits` for one more token: one pass, unless the chunks need several.

        Args:
            token_ids: `[questions, 2]`, the previous candidate and the new one
            local_ids: with `padding` and `attention`, as for `next_token_logits`
            appended: has been through `decode_candidates` with the dynamic prompt

        Returns:
            next-token logits `[questions, vocab]`

        Raises:
            ConfigError: nothing has been appended yet
        """
        if appended.length == 0:
            raise ConfigError("decode_step without a dynamic prompt: call decode_candidates with it first.")
        most = appended.tokens_per_pass
        if 0 < len(chunks) <= self.rows_per_pass(token_ids.numel(), most) and local_ids.numel() <= most:
            tokens = token_ids.to(self.device), local_ids.to(self.device)
            return self._one_pass(chunks, *tokens, appended, padding, attention)
        memory = self.decode_candidates(chunks, token_ids, appended)
        return self.next_token_logits(local_ids, memory, padding=padding, attention=attention)

    def start_answer(self, chunks: ChunkSet, padding: Sequence[int] = (0,)) -> AppendedCache:
        """Holds what a batch of questions appends to `chunks`; one entry of `padding` per question.

        Args:
            padding: unused tokens at the left of each dynamic prompt
        """
        return self.new_appended(chunks, padding, layers=self.cached_layers)

    # --- the passes ---------------------------------------------------------------------------------------------------

    def _append_candidates(
        self,
        chunk_pass: ChunkPass,
        token_ids: Tensor,
        positions: Tensor,
        appended: AppendedCache,
        candidates: tuple[Tensor, Tensor],
    ) -> None:
        """One pass over some of the chunks.

        Args:
            token_ids: `[questions, new]`
            positions: `[chunks of the pass, questions]`, of the candidate of each row
            appended: rows of the pass; the new tokens' keys and values go to its last columns
            candidates: keys and values `[layers, rows of the pass, kv_heads, head_dim]`, filled here
        """

        def store(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            candidates[0][layer], candidates[1][layer] = keys[:, :, -1], values[:, :, -1]
            return appended.store(layer, keys, values)

        cache = self._pass_cache(store, last=self.parts.num_layers - 1)
        with active_pass(chunk_pass), until_done():
            self.candidate_model.get_decoder()(
                **self._row_inputs(token_ids, positions), past_key_values=cache, use_cache=True
            )

    def _one_pass(
        self,
        chunks: ChunkSet,
        token_ids: Tensor,
        local_ids: Tensor,
        appended: AppendedCache,
        padding: Tensor | None,
        attention: SlotAttention | None,
    ) -> Tensor:
        (questions, local), slots = local_ids.shape, len(chunks)
        appended.reserve(appended.length + 1)  # the previous candidate's column is written again
        positions = self.last_positions(chunks, appended)
        columns = torch.arange(local, device=self.device)
        unused = torch.zeros(1, 1, dtype=torch.long) if padding is None else padding[:, None]
        unused = unused.to(self.device)
        seen = (columns <= columns[:, None]) & (columns >= unused[:, :, None])  # [questions, local, local]
        angles = self.positions.angles(chunks.slots - positions.T)
        step = StepPass(
            ChunkPass(chunks.runs, questions, 1, visible_columns(appended, 2), self.cached_layers),
            slots,
            nn.functional.pad(seen.expand(questions, -1, -1), (slots, 0), value=True),
            appended.store,
            lambda layer, keys: self.positions.move_layer(layer, keys, angles),
            attention,
        )
        if attention is not None:
            attention.sort(chunks.slots)
        candidates = positions.flatten()
        appended_positions = torch.stack([candidates - 1, candidates], dim=1).clamp(min=0)
        local_positions = (slots + columns - unused).clamp(min=0).expand(questions, -1)
        with active_pass(step):
            output = self.candidate_model(
                input_ids=step.side_by_side(token_ids.repeat(slots, 1), local_ids),
                position_ids=step.side_by_side(appended_positions, local_positions),
                use_cache=False,
                logits_to_keep=step.wanted,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _place_in_memory(self, keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor) -> Memory:
        """`[layers, chunks * questions, kv_heads, head_dim]` to a memory, candidates moved to their slots."""
        chunk_of = slots.argsort()  # by slot
        shape = positions.shape
        keys, values = (s.unflatten(1, shape)[:, chunk_of].permute(0, 2, 3, 1, 4) for s in (keys, values))
        distance = torch.arange(len(slots), device=self.device) - positions[chunk_of].T
        return Memory(self.positions.move(keys, distance), values)


class FocusDecoding:
    """The method, step by step, for a batch of questions about the same chunks.

    Args:
        local_contexts: token ids of each question's local context
        dynamic_prompts: token ids that each question appends to every chunk
        watched: indices of the questions whose `shares` are wanted
    """

    def __init__(
        self,
        model: FocusModel,
        chunks: ChunkSet,
        local_contexts: Sequence[Sequence[int]],
        dynamic_prompts: Sequence[Sequence[int]],
        watched: Sequence[int] = (),
    ) -> None:
        self._model, self._chunks = model, chunks
        local, self._local_padding = pad_left(local_contexts)
        prompts, self._appended_padding = pad_left(dynamic_prompts)
        self._local, self._prompts = local.to(model.device), prompts.to(model.device)
        self._newest = self._prompts[:, -1]  # of each row, the candidate of the last call
        self._appended = model.start_answer(chunks, self._appended_padding)
        self._watched = list(watched)
        self._attention: SlotAttention | None = None  # of the newest pass
        self._set_padding()

    @property
    def appended_bytes(self) -> int:
        """Bytes of the keys and values that were appended to the chunks."""
        return self._appended.nbytes

    def scores(self) -> list[tuple[ChunkScore, ...]]:
        return [()] * len(self._newest)

    def shares(self) -> list[list[float] | None]:
        found: list[list[float] | None] = [None] * len(self._newest)
        if self._attention is not None:
            for question, shares in zip(self._watched, self._attention.shares().tolist(), strict=True):
                found[question] = shares
        return found

    def start(self) -> Tensor:
        memory = self._model.decode_candidates(self._chunks, self._prompts, self._appended)
        self._attention = self._new_attention()
        return self._model.next_token_logits(self._local, memory, padding=self._padding, attention=self._attention)

    def step(self, tokens: Tensor) -> Tensor:
        tokens = tokens.to(self._local.device)
        # The previous candidate is appended again, as an ordinary token; only the newest is the candidate.
        pair, self._newest = torch.stack([self._newest, tokens], dim=1), tokens
        self._local = torch.cat([self._local, tokens[:, None]], dim=1)
        self._attention = self._new_attention()
        return self._model.decode_step(
            self._chunks, pair, self._local, self._appended, padding=self._padding, attention=self._attention
        )

    def keep(self, questions: Sequence[int]) -> None:
        # Padding beside a longer question leaves with it.
        self._appended_padding, unused = without_unused([self._appended_padding[index] for index in questions])
        self._appended.keep(questions, unused)
        self._local_padding, unused = without_unused([self._local_padding[index] for index in questions])
        index = torch.tensor(questions, device=self._local.device)
        self._local, self._newest = self._local[index, unused:], self._newest[index]
        self._watched = [place for place, question in enumerate(questions) if question in self._watched]
        self._attention = None
        self._set_padding()

    def join(self, other: FocusDecoding) -> None:
        shifts = _shifts(self._appended.length, other._appended.length)
        self._appended.join(other._appended)
        self._appended_padding = _shifted((self._appended_padding, other._appended_padding), shifts)
        shifts = _shifts(self._local.shape[1], other._local.shape[1])
        self._local_padding = _shifted((self._local_padding, other._local_padding), shifts)
        self._local = torch.cat(
            [nn.functional.pad(ids, (shift, 0)) for ids, shift in zip((self._local, other._local), shifts, strict=True)]
        )
        self._watched += [len(self._newest) + question for question in other._watched]
        self._attention = None
        self._newest = torch.cat([self._newest, other._newest])
        self._set_padding()

    def _new_attention(self) -> SlotAttention | None:
        if not self._watched:
            return None
        return SlotAttention(torch.tensor(self._watched, device=self._local.device), len(self._chunks))

    def _set_padding(self) -> None:
        """On the device, or `None` where no row has padding: asking the device would be a wait."""
        padded = any(self._local_padding)
        self._padding = torch.tensor(self._local_padding, device=self._local.device) if padded else None


def _shifts(mine: int, theirs: int) -> tuple[int, int]:
    """Columns of padding that make rows of two lengths equally long."""
    return max(theirs - mine, 0), max(mine - theirs, 0)


def _shifted(padding: tuple[list[int], list[int]], shifts: tuple[int, int]) -> list[int]:
    return [columns + shift for rows, shift in zip(padding, shifts, strict=True) for columns in rows]
