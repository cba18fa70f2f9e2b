"""Loading a tokenizer, and the BOS that it writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jinja2 import TemplateError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from focus_core.errors import UnsupportedModelError, first_line

_ARGUMENTS = ("revision", "token", "trust_remote_code", "cache_dir", "local_files_only", "subfolder")


def load_tokenizer(name: str, arguments: Mapping[str, Any] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; of the model's `arguments`, those that say where it lies.

    Raises:
        UnsupportedModelError: there is none
    """
    chosen = {key: value for key, value in (arguments or {}).items() if key in _ARGUMENTS}
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name, **chosen)
    except Exception as error:  # the libraries below raise whatever a damaged file leads them to
        reason = first_line(error)
        raise UnsupportedModelError(f"{name} has no tokenizer that transformers can load: {reason}") from error
    if not len(tokenizer):
        raise UnsupportedModelError(f"{name} has an empty tokenizer. Add its tokenizer files to the model folder.")
    return tokenizer


def bos_of(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The BOS that a tokenizer writes, by itself or in its chat template.

    Tokenizers like GPT-2's name one (`<|endoftext|>`) and do not write it in front of a text: those have none.
    """
    bos: int | None = tokenizer.bos_token_id
    if bos is None or tokenizer("a")["input_ids"][:1] == [bos]:
        return bos
    if not tokenizer.chat_template:
        return None
    try:
        rendered = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    except TemplateError:
        return None
    return bos if str(rendered).startswith(str(tokenizer.bos_token)) else None
