"""A frozen model of transformers as methods use it: prefill chunks, append tokens to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from focus_core.attention.candidates import chunk_model
from focus_core.attention.chunk_pass import ChunkPass, active_pass
from focus_core.attention.modules import decoder_parts
from focus_core.attention.passes import PassCache, until_done
from focus_core.cache import int8
from focus_core.cache.appended import AppendedCache
from focus_core.cache.chunk_file import StateShape
from focus_core.cache.chunks import ChunkBlock, ChunkRow, ChunkSet, runs_of
from focus_core.config import LARGEST_CHUNK, FocusConfig, ResolvedConfig
from focus_core.device import activation_bytes, tokens_per_pass
from focus_core.errors import ConfigError, UnsupportedModelError
from focus_core.methods.limits import check_sizes

LOGIT_BYTES = 2**28  # of one pass that scores tokens; a vocabulary may be large

Store = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


class Decoder:
    """A frozen decoder and the settings in force.

    Args:
        model: any supported decoder of transformers, put into evaluation mode; nothing else of it is ever changed
        config: `None` in a field means the value that suits the model
        trained_with: settings that come with an adapter and fill what `config` leaves open
        largest_chunk: tokens of a chunk at most, where no setting says

    Raises:
        UnsupportedModelError: the model cannot read in chunks
        ConfigError: sizes that leave no positions for an answer
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        config: FocusConfig | None = None,
        trained_with: FocusConfig | None = None,
        largest_chunk: int = LARGEST_CHUNK,
    ) -> None:
        self.parts = decoder_parts(model)
        self.model = model.eval()
        window = self.parts.window
        resolved = (config or FocusConfig()).resolve(
            window.size, trained_with, window_is=window.reason, largest_chunk=largest_chunk
        )
        self.config: ResolvedConfig = check_sizes(resolved)
        self._refuse_beyond_hard_window()
        # Leaving a forward pass early would skip the hooks with which accelerate moves weights between devices.
        self._run_through = any(hasattr(module, "_hf_hook") for module in model.modules())

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def state_shape(self) -> StateShape:
        """What the keys and values of a chunk look like."""
        return StateShape(self.parts.num_layers, self.parts.kv_heads, self.parts.head_dim, self.dtype)

    @property
    def bytes_per_layer(self) -> int:
        """Bytes of one layer's key and value of one token, in the dtype of the model."""
        return 2 * self.parts.kv_heads * self.parts.head_dim * self.dtype.itemsize

    def chunk_bytes_per_layer(self, chunks: int, tokens: int) -> int:
        """Bytes of one layer's keys and values of `tokens` in `chunks`, as they are kept."""
        if self.config.kv_dtype is None:
            return tokens * self.bytes_per_layer
        return self.parts.kv_heads * int8.nbytes_of(chunks, tokens, self.parts.head_dim, self.dtype)

    @property
    def tokens_per_pass(self) -> int:
        """Tokens that may pass the model together, unless `parallel_chunks` says."""
        return tokens_per_pass(self.model)

    def rows_per_pass(self, tokens: int, most: int) -> int:
        """Rows of `tokens` new tokens that pass the model together: `most` tokens, or as the user says."""
        return self.config.parallel_chunks or max(1, most // tokens)

    def pass_bytes(self, tokens: int, longest: int) -> int:
        """About what the largest pass over so many tokens, in rows up to `longest`, holds beside keys and values."""
        together = self.rows_per_pass(longest, self.tokens_per_pass) * longest
        return min(tokens, together) * activation_bytes(self.model)

    # --- prefill ------------------------------------------------------------------------------------------------------

    def prefill_passes(
        self, chunks: Sequence[Sequence[int] | Tensor], *, layers: int
    ) -> Iterator[Mapping[int, ChunkRow]]:
        """Read every chunk once, alone, positions from 0 (paper §2.2), one pass of the model per item.

        Args:
            chunks: token ids, opening included
            layers: how many of the model's layers keep keys and values

        Yields:
            block and row of the chunks that the pass has read, by their index; chunks of equal length share a block

        Raises:
            ConfigError: an empty chunk
        """
        lengths = [len(chunk) for chunk in chunks]
        if 0 in lengths:
            raise ConfigError(f"Chunk {lengths.index(0) + 1} of {len(chunks)} is empty. Leave it out.")
        blocks = {length: self._empty_block(layers, lengths.count(length), length) for length in set(lengths)}
        row_of: dict[int, ChunkRow] = {}
        for length, block in blocks.items():
            equal = (index for index in range(len(chunks)) if lengths[index] == length)
            row_of |= {index: (block, row) for row, index in enumerate(equal)}
        order = sorted(range(len(chunks)), key=lambda index: -lengths[index])  # a pass holds chunks of like length
        most, done = self.tokens_per_pass, 0
        while done < len(order):
            group = order[done : done + self.rows_per_pass(lengths[order[done]], most)]
            rows = {index: row_of[index] for index in group}
            self._prefill_rows([chunks[index] for index in group], list(rows.values()))
            done += len(group)
            yield rows

    @torch.no_grad()
    def _prefill_rows(self, chunks: Sequence[Sequence[int] | Tensor], rows: Sequence[ChunkRow]) -> None:
        """One pass; shorter chunks are padded at the right, which no earlier token can see."""
        token_ids = nn.utils.rnn.pad_sequence([torch.as_tensor(chunk) for chunk in chunks], batch_first=True)
        runs = runs_of(rows)

        def store(layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            row = 0
            for run in runs:
                rows = slice(row, row + run.chunks), slice(None), slice(run.tokens)
                run.write(layer, keys[rows], values[rows])
                row += run.chunks
            return keys, values  # as they were made, also where they are kept in fewer bits

        cache = self._pass_cache(store, last=runs[0].block.layers - 1)
        with until_done():
            self.model.get_decoder()(input_ids=token_ids.to(self.device), past_key_values=cache, use_cache=True)

    def _empty_block(self, layers: int, chunks: int, tokens: int) -> ChunkBlock:
        shape = (layers, chunks, self.parts.kv_heads, tokens, self.parts.head_dim)
        return ChunkBlock.empty(shape, dtype=self.dtype, device=self.device, kv_dtype=self.config.kv_dtype)

    # --- tokens appended to chunks ------------------------------------------------------------------------------------

    @cached_property
    def chunk_model(self) -> PreTrainedModel:
        """The model, with attention that reads chunks in place."""
        return chunk_model(self.model, self.parts)

    @torch.no_grad()
    def append(self, chunks: ChunkSet, token_ids: Tensor, appended: AppendedCache, *, logits_of: int = 1) -> Tensor:
        """Append ordinary tokens to every chunk: what the plain model says after each chunk alone.

        Args:
            chunks: with the keys and values of all layers
            token_ids: `[questions, tokens]`
            appended: what was appended before; gets the new tokens
            logits_of: the last tokens of each row whose logits are computed

        Returns:
            next-token logits `[chunks, questions, logits_of, vocab]`, chunks in the order of their documents
        """
        token_ids = token_ids.to(self.device)
        questions, new = token_ids.shape
        appended.reserve(appended.length + new)
        visible, positions = visible_columns(appended, new), self.last_positions(chunks, appended)
        size = self.rows_per_pass(questions * new, appended.tokens_per_pass)
        logits = []
        for start in range(0, len(chunks), size):
            stop = min(start + size, len(chunks))
            rows = appended.rows(slice(start * questions, stop * questions))
            chunk_pass = ChunkPass(chunks.between(start, stop), questions, 0, visible, self.parts.num_layers)
            cache = self._pass_cache(rows.store, last=self.parts.num_layers)
            with active_pass(chunk_pass):
                output = self.chunk_model(
                    **self._row_inputs(token_ids, positions[start:stop]),
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=logits_of,
                )
            logits.append(output.logits.unflatten(0, (stop - start, questions)))
        return torch.cat(logits)[chunks.slots.to(self.device).argsort()]

    @torch.no_grad()
    def likelihoods(
        self, chunks: ChunkSet, token_ids: Tensor, padding: Sequence[int], spans: Sequence[tuple[int, int]]
    ) -> Tensor:
        """How likely each chunk makes some of the tokens that are appended to it.

        Args:
            chunks: with the keys and values of all layers
            token_ids: `[questions, tokens]`
            padding: unused tokens at the left of each question
            spans: of each question the tokens that count; one that nothing stands before in its row does not

        Returns:
            `[questions, chunks]`, mean log-probability of a token (nats), chunks in the order of their documents
        """
        token_ids = token_ids.to(self.device)
        questions, tokens = token_ids.shape
        first = max(min(start for start, _ in spans) - 1, 0)  # a token is predicted at the one before it
        columns = torch.arange(first + 1, tokens, device=self.device)
        starts, stops = (torch.tensor(ends, device=self.device)[:, None] for ends in zip(*spans, strict=True))
        counted = (columns >= starts) & (columns < stops)
        logit_bytes = questions * (tokens - first) * self.model.get_output_embeddings().weight.shape[0] * 4
        size = min(self.rows_per_pass(token_ids.numel(), self.tokens_per_pass), max(1, LOGIT_BYTES // logit_bytes))
        found = []
        for start in range(0, len(chunks), size):
            part = chunks.part(start, min(start + size, len(chunks)))
            appended = self.new_appended(part, padding, layers=self.parts.num_layers)
            logits = self.append(part, token_ids, appended, logits_of=tokens - first)[:, :, :-1].float()
            of_token = logits.gather(-1, token_ids[:, first + 1 :, None].expand(len(part), -1, -1, 1))[..., 0]
            log_probs = (of_token - logits.logsumexp(-1)) * counted
            found.append(log_probs.sum(-1) / counted.sum(-1).clamp(min=1))
        return torch.cat(found)[chunks.slots.to(self.device).argsort()].T

    def new_appended(self, chunks: ChunkSet, padding: Sequence[int], *, layers: int) -> AppendedCache:
        """Nothing appended to `chunks` yet, by as many questions as `padding` has entries.

        Args:
            padding: unused tokens at the left of each question's first tokens
            layers: how many of the model's layers keep keys and values
        """
        return AppendedCache.empty(
            layers,
            (len(chunks) * len(padding), self.parts.kv_heads, self.parts.head_dim),
            padding=torch.tensor(padding, dtype=torch.long),
            dtype=self.dtype,
            device=self.device,
            tokens_per_pass=self.tokens_per_pass,
        )

    def last_positions(self, chunks: ChunkSet, appended: AppendedCache) -> Tensor:
        """`[chunks, questions]`: position of the newest token of each row, padding not counted."""
        return chunks.lengths.to(self.device)[:, None] + (appended.length - 1 - appended.padding)

    def _row_inputs(self, token_ids: Tensor, last_positions: Tensor) -> dict[str, Tensor]:
        """The model's inputs for `token_ids [questions, new]` after every chunk of `last_positions`."""
        new = token_ids.shape[1]
        position_ids = last_positions.flatten()[:, None] + torch.arange(1 - new, 1, device=self.device)
        return {"input_ids": token_ids.repeat(len(last_positions), 1), "position_ids": position_ids.clamp(min=0)}

    def _pass_cache(self, store: Store, *, last: int) -> PassCache:
        return PassCache(self.parts.num_layers, store, last=last, run_through=self._run_through)

    def _refuse_beyond_hard_window(self) -> None:
        window = self.parts.window
        if window.hard and self.config.window > window.size:
            raise UnsupportedModelError(
                f"window={self.config.window}: {self.parts.name} sees at most {window.size} positions "
                f"({window.reason}), and what lies beyond would be wrong. Set window to {window.size} or less."
            )


def visible_columns(appended: AppendedCache, new: int) -> Tensor:
    """`[questions, new, columns]`: a new token sees the columns up to its own, without the padding."""
    columns = torch.arange(appended.length, device=appended.padding.device)
    causal = columns <= columns[appended.length - new :, None]
    return causal & (columns >= appended.padding[:, None, None])
