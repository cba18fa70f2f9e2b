"""FocusModel: the method of the paper in three calls, tensors in, tensors out.

    cache = model.prefill(chunks)                          # §2.2: every chunk alone, positions from 0
    memory = model.decode_candidates(cache, token_ids)     # §2.2, eq. 1–5: one candidate per chunk
    logits = model.next_token_logits(local_ids, memory)    # §2.3: frozen decoder behind the memory

It knows nothing of text, tokenizers or documents; `engine.py` does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections, candidate_reader
from focus_core.attention.chunk_pass import ReaderPass, reading
from focus_core.attention.memory import Memory
from focus_core.attention.modules import decoder_parts
from focus_core.attention.passes import PassCache, until_done
from focus_core.attention.rope import RotaryPositions
from focus_core.attention.step import StepPass
from focus_core.cache.chunks import ChunkBlock, ChunkCache, ChunkRow, PromptCache, runs_of
from focus_core.config import FocusConfig, ResolvedConfig
from focus_core.device import lacking_memory, require_memory, room_for, tokens_per_pass
from focus_core.errors import ConfigError, UnsupportedModelError
from focus_core.methods.decoding import Decoding, FocusDecoding, PlainDecoding
from focus_core.methods.limits import make_plan
from focus_core.progress import Report
from focus_core.text.chunking import TextLayout


@dataclass(frozen=True)
class TokenGeneration:
    """What `FocusModel.generate` returns.

    Attributes:
        tokens: `[n]`
        logits: `[n + 1, vocab]`, float32; row t are the next-token logits after t generated tokens
    """

    tokens: Tensor
    logits: Tensor | None


class FocusModel:
    """A frozen decoder and its candidate projections.

    Args:
        model: any supported decoder of transformers, put into evaluation mode; nothing else of it is ever changed
        projections: `None` stands for untrained ones, equal to the model's own maps
        config: `None` in a field stands for what suits the model
        trained_with: settings that come with an adapter and fill what `config` leaves open

    Raises:
        UnsupportedModelError: the model cannot work with candidate tokens
        ConfigError: sizes that leave no room for an answer
    """

    def __init__(
        self,
        model: PreTrainedModel,
        projections: CandidateProjections | None = None,
        *,
        config: FocusConfig | None = None,
        trained_with: FocusConfig | None = None,
    ) -> None:
        self.parts = decoder_parts(model)
        self.model = model.eval()
        self.projections = projections or CandidateProjections(self.parts)
        self.projections.eval().to(model.device)
        self.config: ResolvedConfig = (config or FocusConfig()).resolve(
            self.parts.window.size, trained_with, window_is=self.parts.window.reason
        )
        self._refuse_beyond_hard_window()
        self.reader = candidate_reader(model, self.parts, self.projections)
        self.positions = RotaryPositions(self.parts)
        # Leaving a forward pass early would skip the hooks with which accelerate moves weights between devices.
        self._run_through = any(hasattr(module, "_hf_hook") for module in model.modules())

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
        """A folder or hub id: an ordinary model with or without `adapter`, or a checkpoint of the authors."""
        from focus_core.loading.models import load_model

        loaded = load_model(model, adapter=adapter, device=device, dtype=dtype, **model_arguments)
        return cls(loaded.model, loaded.projections, config=config, trained_with=loaded.trained_with)

    # --- the method -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def prefill(self, chunks: Sequence[Tensor], *, progress: Report | None = None) -> ChunkCache:
        """Read every chunk once, alone, positions from 0 (paper §2.2).

        Args:
            chunks: token ids `[tokens]` each, BOS included where the BOS rule wants one
            progress: called with the number of chunks read so far and in all

        Returns:
            keys and values of all chunks, in order; neighbours of equal length share a block

        Raises:
            ConfigError: an empty chunk
            OutOfMemoryError: they do not fit the device
        """
        lengths = [len(chunk) for chunk in chunks]
        if 0 in lengths:
            raise ConfigError(f"Chunk {lengths.index(0) + 1} of {len(chunks)} is empty. Leave it out.")
        self.require_memory_for(lengths)
        blocks = {length: self._empty_block(lengths.count(length), length) for length in set(lengths)}
        order = sorted(range(len(chunks)), key=lambda index: -lengths[index])  # a pass holds chunks of like length
        row_of: dict[int, ChunkRow] = {}
        for length, block in blocks.items():
            equal = (index for index in range(len(chunks)) if lengths[index] == length)
            row_of |= {index: (block, row) for row, index in enumerate(equal)}
        done = 0
        while done < len(order):
            size = self._rows_per_pass(lengths[order[done]], tokens_per_pass(self.model))
            group = order[done : done + size]
            self._prefill_rows([chunks[index] for index in group], [row_of[index] for index in group])
            done += len(group)
            if progress is not None:
                progress(done, len(chunks))
        return ChunkCache.from_rows([row_of[index] for index in range(len(chunks))])

    @torch.no_grad()
    def decode_candidates(self, cache: ChunkCache, token_ids: Tensor, *, padding: Tensor | None = None) -> Memory:
        """Append tokens to every chunk and condense each chunk into its candidate (paper §2.2, eq. 1–5).

        The last token of every row is the candidate. The candidate of the call before must come again, as the first
        of `token_ids`: only the newest token is a candidate, so it is read once more as an ordinary one.

        Args:
            cache: what `prefill` returned; remembers the tokens
            token_ids: `[questions, tokens]`; first the dynamic prompt, then `[previous, new]` at each step
            padding: `[questions]`, unused tokens at the left of each row; first call only

        Returns:
            one slot per chunk and layer, candidate i moved to position i
        """
        token_ids = token_ids.to(self.device)
        questions, new = token_ids.shape
        prompt = self._prompt_of(cache, token_ids, padding)
        # Behind the first call the previous candidate's column is written again.
        prompt.reserve(max(prompt.length - 1, 0) + new)
        visible = _visible(prompt, new)
        positions = self._candidate_positions(cache, prompt)
        shape = (self.parts.num_layers, cache.chunks * questions, self.parts.kv_heads, self.parts.head_dim)
        keys, values = (torch.empty(shape, dtype=self.dtype, device=self.device) for _ in range(2))
        size = self._rows_per_pass(questions * new, prompt.tokens_per_pass)
        for start in range(0, cache.chunks, size):
            stop = min(start + size, cache.chunks)
            rows = slice(start * questions, stop * questions)
            group = ReaderPass(cache.between(start, stop), questions, 1, visible)
            candidates = keys[:, rows], values[:, rows]
            self._read_rows(group, token_ids, positions[start:stop], prompt.rows(rows), candidates)
        return self._place_in_memory(keys, values, positions, cache.slots.to(self.device))

    @torch.no_grad()
    def next_token_logits(self, local_ids: Tensor, memory: Memory, *, padding: Tensor | None = None) -> Tensor:
        """One pass of the frozen decoder over the local context behind the memory (paper §2.3).

        Args:
            local_ids: `[questions, tokens]`, the local context with all generated tokens; positions start behind
                the memory's last slot
            memory: one slot per chunk
            padding: `[questions]`, unused tokens at the left of each row

        Returns:
            next-token logits `[questions, vocab]`
        """
        if padding is not None:
            padding = padding.to(self.device) if bool((padding > 0).any()) else None
        logits: Tensor = self.model(**memory.read_by(local_ids.to(self.device), padding)).logits[:, -1]
        return logits

    @torch.no_grad()
    def decode_step(
        self, cache: ChunkCache, token_ids: Tensor, local_ids: Tensor, *, padding: Tensor | None = None
    ) -> Tensor:
        """`decode_candidates` and `next_token_logits` for one more token: one pass, unless the chunks need several.

        Args:
            cache: has been through `decode_candidates` with the dynamic prompt
            token_ids: `[questions, 2]`, the previous candidate and the new one
            local_ids: as `next_token_logits` takes them, with `padding`

        Returns:
            next-token logits `[questions, vocab]`

        Raises:
            ConfigError: `decode_candidates` has not been called
        """
        if cache.prompt is None:
            raise ConfigError("decode_step without a dynamic prompt: call decode_candidates with it first.")
        most = cache.prompt.tokens_per_pass
        if 0 < cache.chunks <= self._rows_per_pass(token_ids.numel(), most) and local_ids.numel() <= most:
            return self._one_pass(cache, token_ids.to(self.device), local_ids.to(self.device), padding)
        memory = self.decode_candidates(cache, token_ids)
        return self.next_token_logits(local_ids, memory, padding=padding)

    # --- generation without a tokenizer -------------------------------------------------------------------------------

    def generate(
        self, input_ids: Sequence[int] | Tensor, *, max_new_tokens: int, return_logits: bool = False
    ) -> TokenGeneration:
        """Continue one long prompt greedily by exactly `max_new_tokens` tokens.

        The last `local_window` tokens are the local context and the rest is chunked; up to `plain_up_to` tokens the
        plain model runs (paper §4.1, and the authors' code below 4096). A BOS is the one that the model's config names;
        `FocusEngine` takes its tokenizer's, which a few models (Qwen2) do not have.

        Raises:
            ConfigError: an empty prompt, more than one, or a negative length
            ContextOverflowError: chunk, prompt and answer, or memory, local context and answer, exceed the window
        """
        given = torch.as_tensor(input_ids, dtype=torch.long)
        if given.ndim > 1 and given.shape[:-1].numel() != 1:
            raise ConfigError(f"input_ids has the shape {list(given.shape)}: one prompt at a time, [tokens].")
        ids: list[int] = given.flatten().tolist()
        if not ids:
            raise ConfigError("input_ids is empty: there is nothing to continue.")
        vocabulary = self.model.get_input_embeddings().num_embeddings
        if not 0 <= min(ids) <= max(ids) < vocabulary:
            raise ConfigError(
                f"input_ids has tokens from {min(ids)} to {max(ids)}; the model knows 0 to {vocabulary - 1}."
            )
        if type(max_new_tokens) is not int or max_new_tokens < 0:
            raise ConfigError(f"max_new_tokens={max_new_tokens!r}: must be a whole number, 0 or more.")
        decoding = self._decoding_of(ids, max_new_tokens)
        newest, tokens = decoding.start(), [torch.empty(0, dtype=torch.long)]
        logits = [newest.float().cpu()] if return_logits else None
        for step in range(max_new_tokens):
            tokens.append(newest.argmax(-1).cpu())
            if logits is not None or step + 1 < max_new_tokens:
                newest = decoding.step(tokens[-1])
            if logits is not None:
                logits.append(newest.float().cpu())
        return TokenGeneration(torch.cat(tokens), None if logits is None else torch.cat(logits))

    def _decoding_of(self, ids: list[int], new_tokens: int) -> Decoding:
        plan = make_plan(TextLayout(self.config, self.bos_token_id), ids, new_tokens=new_tokens)
        if not plan.chunks:
            return PlainDecoding(self, [plan.local])
        cache = self.prefill([torch.tensor(chunk) for chunk in plan.chunks])
        return FocusDecoding(self, cache, [plan.local], [plan.prompt])

    # --- below the fold -----------------------------------------------------------------------------------------------

    def _refuse_beyond_hard_window(self) -> None:
        window = self.parts.window
        if window.hard and self.config.window > window.size:
            raise UnsupportedModelError(
                f"window={self.config.window}: {self.parts.name} sees at most {window.size} positions "
                f"({window.reason}), and what lies beyond would be wrong. Set window to {window.size} or less."
            )

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def bos_token_id(self) -> int | None:
        token: int | None = self.model.config.get_text_config().bos_token_id
        return token

    @property
    def cache_bytes_per_token(self) -> int:
        """Bytes of keys and values that one token of a chunk costs."""
        return 2 * (self.parts.num_layers - 1) * self.parts.kv_heads * self.parts.head_dim * self.dtype.itemsize

    def _prefill_rows(self, chunks: Sequence[Tensor], rows: Sequence[ChunkRow]) -> None:
        """One pass; shorter chunks are padded at the right, which no earlier token can see."""
        token_ids = nn.utils.rnn.pad_sequence(list(chunks), batch_first=True).to(self.device)
        runs = runs_of(rows)

        def store(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            row = 0
            for run in runs:
                run_keys, run_values = run.layer(layer)
                run_keys.copy_(keys[row : row + run.chunks, :, : run.block.tokens])
                run_values.copy_(values[row : row + run.chunks, :, : run.block.tokens])
                row += run.chunks
            return keys, values

        cache = PassCache(self.parts.num_layers, store, last=self.parts.num_layers - 2, run_through=self._run_through)
        with until_done():
            self.model.get_decoder()(input_ids=token_ids, past_key_values=cache, use_cache=True)

    def _read_rows(
        self,
        reader_pass: ReaderPass,
        token_ids: Tensor,
        positions: Tensor,
        prompt: PromptCache,
        candidates: tuple[Tensor, Tensor],
    ) -> None:
        """One pass of the reader over some of the chunks.

        Args:
            token_ids: `[questions, new]`
            positions: `[chunks of the pass, questions]`, the candidate's position in each row
            prompt: rows of the pass; the new tokens' keys and values go to its last columns
            candidates: keys and values `[layers, rows of the pass, kv_heads, head_dim]`, filled here
        """
        new, last = token_ids.shape[1], self.parts.num_layers - 1

        def store(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            candidates[0][layer], candidates[1][layer] = keys[:, :, -1], values[:, :, -1]
            return prompt.store(layer, keys, values)

        cache = PassCache(self.parts.num_layers, store, last=last, run_through=self._run_through)
        position_ids = positions.flatten()[:, None] + torch.arange(1 - new, 1, device=self.device)
        with reading(reader_pass), until_done():
            self.reader.get_decoder()(
                input_ids=token_ids.repeat(len(positions), 1),
                position_ids=position_ids.clamp(min=0),
                past_key_values=cache,
                use_cache=True,
            )

    def _one_pass(self, cache: ChunkCache, token_ids: Tensor, local_ids: Tensor, padding: Tensor | None) -> Tensor:
        prompt, (questions, local), slots = cache.prompt, local_ids.shape, cache.chunks
        assert prompt is not None
        prompt.reserve(prompt.length + 1)  # the previous candidate's column is written again
        positions = self._candidate_positions(cache, prompt)
        columns = torch.arange(local, device=self.device)
        unused = torch.zeros(1, 1, dtype=torch.long) if padding is None else padding[:, None]
        unused = unused.to(self.device)
        seen = (columns <= columns[:, None]) & (columns >= unused[:, :, None])  # [questions, local, local]
        angles = self.positions.angles(cache.slots - positions.T)
        step = StepPass(
            ReaderPass(cache.runs, questions, 1, _visible(prompt, 2)),
            slots,
            nn.functional.pad(seen.expand(questions, -1, -1), (slots, 0), value=True),
            prompt.store,
            lambda layer, keys: self.positions.move_layer(layer, keys, angles),
        )
        candidates = positions.flatten()
        appended = torch.stack([candidates - 1, candidates], dim=1).clamp(min=0)
        local_positions = (slots + columns - unused).clamp(min=0).expand(questions, -1)
        with reading(step):
            output = self.reader(
                input_ids=step.side_by_side(token_ids.repeat(slots, 1), local_ids),
                position_ids=step.side_by_side(appended, local_positions),
                use_cache=False,
                logits_to_keep=step.wanted,
            )
        logits: Tensor = output.logits[0]
        return logits

    def _candidate_positions(self, cache: ChunkCache, prompt: PromptCache) -> Tensor:
        """`[chunks, questions]`: where each candidate stands in its row, padding not counted."""
        return cache.lengths.to(self.device)[:, None] + (prompt.length - 1 - prompt.padding)

    def _place_in_memory(self, keys: Tensor, values: Tensor, positions: Tensor, slots: Tensor) -> Memory:
        """`[layers, chunks * questions, kv_heads, head_dim]` to a memory, candidates moved to their slots."""
        chunk_of = slots.argsort()  # by slot
        shape = positions.shape
        keys, values = (s.unflatten(1, shape)[:, chunk_of].permute(0, 2, 3, 1, 4) for s in (keys, values))
        distance = torch.arange(len(slots), device=self.device) - positions[chunk_of].T
        return Memory(self.positions.move(keys, distance), values)

    def _prompt_of(self, cache: ChunkCache, token_ids: Tensor, padding: Tensor | None) -> PromptCache:
        if cache.prompt is None:
            questions = len(token_ids)
            cache.prompt = PromptCache.empty(
                self.parts.num_layers - 1,
                (cache.chunks * questions, self.parts.kv_heads, self.parts.head_dim),
                dtype=self.dtype,
                device=self.device,
                padding=torch.zeros(questions, dtype=torch.long) if padding is None else padding,
                tokens_per_pass=tokens_per_pass(self.model),
            )
        return cache.prompt

    def require_memory_for(self, lengths: Sequence[int]) -> None:
        """Refuse, before any work, chunks whose keys and values do not fit the device.

        Raises:
            OutOfMemoryError: with both numbers
        """
        tokens = sum(lengths)
        require_memory(tokens * self.cache_bytes_per_token, self.device, what=f"{tokens} tokens")

    @property
    def free_tokens(self) -> int:
        """Of how many tokens the device could still hold the keys and values."""
        return room_for(self.cache_bytes_per_token, self.device)

    def lacking_memory_for(self, lengths: Sequence[int]) -> int:
        """Bytes that would have to become free before such chunks fit the device."""
        return lacking_memory(sum(lengths) * self.cache_bytes_per_token, self.device)

    def _empty_block(self, chunks: int, tokens: int) -> ChunkBlock:
        shape = (self.parts.num_layers - 1, chunks, self.parts.kv_heads, tokens, self.parts.head_dim)
        return ChunkBlock.empty(shape, dtype=self.dtype, device=self.device)

    def _rows_per_pass(self, tokens: int, most: int) -> int:
        """How many rows of `tokens` new tokens pass the model together: `most` tokens, or as the user says."""
        return self.config.parallel_chunks or max(1, most // tokens)


def _visible(prompt: PromptCache, new: int) -> Tensor:
    """`[questions, new, prompt]`: a new token sees the prompt up to itself, without the padding."""
    columns = torch.arange(prompt.length, device=prompt.padding.device)
    causal = columns <= columns[prompt.length - new :, None]
    return causal & (columns >= prompt.padding[:, None, None])
