"""A long prompt of tokens, continued greedily: the method without tokenizer, store or scheduler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.errors import ConfigError
from focus_core.methods.base import Decoding, TokenizedQuestion, likeliest
from focus_core.methods.focus import FocusModel
from focus_core.methods.focus_method import FocusMethod
from focus_core.methods.limits import measure, reads_plainly
from focus_core.methods.plain import PlainMethod
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout, Prompt


@dataclass(frozen=True)
class TokenGeneration:
    """What `continue_tokens` returns.

    Attributes:
        tokens: `[n]`
        logits: `[n + 1, vocab]`, float32; row t are the next-token logits after t generated tokens
    """

    tokens: Tensor
    logits: Tensor | None


def continue_tokens(
    model: FocusModel, input_ids: Sequence[int] | Tensor, *, max_new_tokens: int, return_logits: bool = False
) -> TokenGeneration:
    """Continue one long prompt greedily by exactly `max_new_tokens` tokens.

    The last `local_window` tokens are the local context and the rest is chunked; up to `plain_up_to` tokens the plain
    model runs (paper §4.1, and the authors' code below 4096). A BOS is the one that the model's config names;
    `FocusEngine` takes its tokenizer's, which a few models (Qwen2) do not have.

    Raises:
        ConfigError: an empty prompt, more than one, or a negative length
        UnsupportedModelError: the model's logits are not finite
        ContextOverflowError: chunk, prompt and answer, or memory, local context and answer, exceed the window
    """
    ids = _checked(model, input_ids)
    if type(max_new_tokens) is not int or max_new_tokens < 0:
        raise ConfigError(f"max_new_tokens={max_new_tokens!r}: must be a whole number, 0 or more.")
    decoding = _decoding(model, ids, max_new_tokens)
    newest, tokens = decoding.start(), list[int]()
    logits = [newest.float().cpu()] if return_logits else None
    for step in range(max_new_tokens):
        (token,) = likeliest(newest)
        if not isinstance(token, int):
            raise token
        tokens.append(token)
        if logits is not None or step + 1 < max_new_tokens:
            newest = decoding.step(torch.tensor([token]))
        if logits is not None:
            logits.append(newest.float().cpu())
    return TokenGeneration(torch.tensor(tokens, dtype=torch.long), None if logits is None else torch.cat(logits))


def _checked(model: FocusModel, input_ids: Sequence[int] | Tensor) -> list[int]:
    given = torch.as_tensor(input_ids, dtype=torch.long)
    if given.ndim > 1 and given.shape[:-1].numel() != 1:
        raise ConfigError(f"input_ids has the shape {list(given.shape)}: one prompt at a time, [tokens].")
    ids: list[int] = given.flatten().tolist()
    if not ids:
        raise ConfigError("input_ids is empty: there is nothing to continue.")
    vocabulary = model.model.get_input_embeddings().num_embeddings
    if not 0 <= min(ids) <= max(ids) < vocabulary:
        raise ConfigError(f"input_ids has tokens from {min(ids)} to {max(ids)}; the model knows 0 to {vocabulary - 1}.")
    return ids


def _decoding(model: FocusModel, ids: list[int], new_tokens: int) -> Decoding:
    bos: int | None = model.model.config.get_text_config().bos_token_id
    layout = Layout(model.config, bos)
    own = ids[:1] == [bos]
    prompt = Prompt(tuple(ids[:own]), TokenizedDocument.of_tokens(ids[own:]))
    lengths = measure(layout, (), layout.lengths(prompt))
    if reads_plainly(model.config, lengths, new_tokens):
        plain = PlainMethod(model)
        plain.limits(lengths).check(new_tokens)
        return plain.decoding(ChunkSet.of([]), [TokenizedQuestion(layout, (), prompt)])
    focus = FocusMethod(model)
    focus.limits(lengths).check(new_tokens)
    chunks, context = layout.long_prompt(prompt)
    return focus.decoding(
        ChunkSet.of(model.prefill([chunk.row for chunk in chunks])), [TokenizedQuestion(layout, (), context)]
    )
