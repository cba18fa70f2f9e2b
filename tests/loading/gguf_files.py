"""GGUF files of tiny models, written here as llama.cpp's converter writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

_LAYER = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
}
_OUTER = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_CONTROL, _NORMAL = 3, 1


def write_gguf(
    path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast | None,
    *,
    architecture: str = "llama",
    keys: Mapping[str, Any] | None = None,
    tensors: Mapping[str, np.ndarray | None] | None = None,
    pre: str = "gpt-2",
    quantized: gguf.GGMLQuantizationType | None = None,
) -> Path:
    """A model and its tokenizer in float32.

    Args:
        quantized: how the matrices are kept whose rows are blocks of 32
        keys: further metadata; a value of `None` leaves a key out
        tensors: further tensors by name; `None` leaves one out
    """
    config, writer = model.config, gguf.GGUFWriter(str(path), architecture)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    own = {
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.freq_base": float(config.rope_parameters["rope_theta"]),
    }
    found = {f"{architecture}.{key}": value for key, value in own.items()} | (_of_tokenizer(tokenizer, pre))
    for key, value in (found | dict(keys or {})).items():
        _add(writer, key, value)
    contents = _tensors(model, permuted=architecture == "llama") | dict(tensors or {})
    for name, tensor in contents.items():
        if tensor is None:
            continue
        if quantized is not None and tensor.ndim == 2 and tensor.shape[1] % 32 == 0:
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(tensor), quantized), raw_dtype=quantized)
        else:
            writer.add_tensor(name, np.ascontiguousarray(tensor))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    elif isinstance(value, list):
        writer.add_array(key, value)


def _of_tokenizer(tokenizer: PreTrainedTokenizerFast | None, pre: str) -> dict[str, Any]:
    if tokenizer is None:
        return {}
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().__getitem__)
    special = set(tokenizer.all_special_tokens)
    merges = [f"{a} {b}" for a, b in (token for token in tokens if len(token) == 2)]
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [_CONTROL if token in special else _NORMAL for token in tokens],
        **({"tokenizer.ggml.merges": merges} if merges else {"tokenizer.ggml.scores": [0.0] * len(tokens)}),
        "tokenizer.ggml.bos_token_id": tokenizer.bos_token_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eos_token_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_token_id,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.chat_template": tokenizer.chat_template,
    }


def _tensors(model: PreTrainedModel, *, permuted: bool) -> dict[str, np.ndarray]:
    found = {}
    for name, tensor in model.state_dict().items():
        module, kind = name.rsplit(".", 1)
        values = tensor.float().numpy()
        if module in _OUTER:
            found[f"{_OUTER[module]}.{kind}"] = values
            continue
        _, _, number, inner = module.split(".", 3)
        heads = {"self_attn.q_proj": "num_attention_heads", "self_attn.k_proj": "num_key_value_heads"}.get(inner)
        if permuted and heads:  # llama.cpp rotates neighbours, transformers the halves of a head
            count = getattr(model.config, heads)
            values = values.reshape(count, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
        found[f"blk.{number}.{_LAYER[inner]}.{kind}"] = values
    return found
