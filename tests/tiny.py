"""A tiny model with tokenizer and adapter, over bytes: every letter is a token, so lengths are easy to see."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed

from focus_core.config import FocusConfig
from focus_core.loading.adapters import save_adapter
from tests.model_zoo import random_projections

WINDOW = 4096
CHUNK = 64
_SPECIAL = ["<pad>", "<bos>", "<eos>"]
_TEMPLATE = (
    "{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*_SPECIAL, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.add_special_tokens(_SPECIAL)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    )
    wrapped.chat_template = _TEMPLATE
    return wrapped


def save_tiny_model(folder: Path, *, readable: bool = False) -> Path:
    """A random Llama with a window of 4096 positions, and in `adapter/` projections trained with chunks of 64.

    Args:
        readable: it only ever writes letters, digits and signs, and never ends by itself
    """
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    config = LlamaConfig(
        vocab_size=259, num_hidden_layers=3, max_position_embeddings=WINDOW, initializer_range=0.2, **sizes, **special
    )
    model = LlamaForCausalLM(config)
    tokenizer = byte_tokenizer()
    if readable:
        printable = torch.zeros(config.vocab_size)
        printable[tokenizer.convert_tokens_to_ids([chr(code) for code in range(33, 127)])] = 1.0
        model.lm_head.weight.data *= printable[:, None]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    trained_with = FocusConfig(chunk_size=CHUNK, local_window=CHUNK, dynamic_prompt=32, plain_up_to=0)
    save_adapter(folder / "adapter", random_projections(model), model, trained_with=trained_with, base_id="tiny")
    return folder
