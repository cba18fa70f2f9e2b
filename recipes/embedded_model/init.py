"""Step 2b: a start from which looking things up is learned in minutes: heads that look at fixed offsets, heads that
compare contents, heads that copy.

Copying needs two heads in a row: one that writes "the token before me was x" into each position, one that looks for
positions where x is what is asked for. From random weights a small model needs many millions of tokens to find the
pair. Rotary embeddings with biased projections give the first kind directly: constant query and key vectors, the
query turned by the offset, agree best exactly that many tokens back. The second kind is a head whose query and key
read the places where the first kind writes, in rotary pairs that turn too slowly to care about distance.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING_STD = 0.3
POSITION_PAIRS = 12  # the fast rotary pairs: they tell offsets apart
SLOW_PAIRS = 16  # pairs from this one on turn less than a seventh of a circle over 1024 tokens: for contents

# (layer, query head) -> (offset looked back at, fastest pair used, sharpness): from pair 0 on one exact token is seen,
# without the fast pairs a window around the offset
OFFSET_HEADS: dict[tuple[int, int], tuple[float, int, float]] = {
    (0, 0): (1, 0, 1.0),
    (0, 1): (2, 0, 1.0),
    (0, 2): (3, 0, 1.0),
    (0, 3): (4, 2, 0.4),
    (1, 0): (1, 0, 1.0),
    (1, 1): (4, 0, 1.0),
    (1, 2): (5, 3, 0.3),
    (1, 3): (7.5, 3, 0.3),
}
MATCH_LAYERS = (2, 3, 4, 5)
MATCH_GAIN = 3.0


def config(vocab_size: int, pad: int, bos: int, eos: int) -> LlamaConfig:
    """Eight narrow layers: the memory needs depth, the package has 15 MB."""
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        attention_bias=True,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
        pad_token_id=pad,
        bos_token_id=bos,
        eos_token_id=eos,
        attn_implementation="sdpa",
    )


def frequencies(cfg: LlamaConfig) -> torch.Tensor:
    """Radians per token of each rotary pair."""
    half = cfg.head_dim // 2
    return cfg.rope_parameters["rope_theta"] ** (-torch.arange(half) / half)


def kernel(cfg: LlamaConfig, offset: float, fastest: int, sharpness: float, distance: torch.Tensor) -> torch.Tensor:
    """Attention score that an offset head gives to a token `distance` back (before the softmax)."""
    energy, speed = pair_energy(cfg)[fastest:], frequencies(cfg)[fastest:POSITION_PAIRS]
    turned = torch.cos((distance[:, None] - offset) * speed)
    return sharpness * (energy**2 * turned).sum(-1) / math.sqrt(cfg.head_dim)


def pair_energy(cfg: LlamaConfig) -> torch.Tensor:
    """Length of the constant key in each fast pair: more for the fastest, which separates neighbours."""
    return 10.0 * frequencies(cfg)[:POSITION_PAIRS] ** 0.25


@torch.no_grad()
def build(cfg: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A new model with the structured start."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(cfg)
    width = cfg.hidden_size
    model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_STD)
    model.model.norm.weight.fill_(0.3 / (EMBEDDING_STD * math.sqrt(width)))
    readers = [torch.linalg.qr(torch.randn(width, width))[0] for _ in range(2)]
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.normal_(0.0, 1 / math.sqrt(width))
        attention.o_proj.weight.normal_(0.0, 0.3 * EMBEDDING_STD / math.sqrt(width))
        mlp.down_proj.weight.normal_(0.0, 0.3 * EMBEDDING_STD / math.sqrt(width))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            linear.bias.zero_()
        for head in range(cfg.num_attention_heads):
            if (index, head) in OFFSET_HEADS:
                _offset_head(cfg, attention, head, *OFFSET_HEADS[index, head])
        if index < 2:
            _write_context(cfg, attention, readers[index])
        if index in MATCH_LAYERS:
            _match_and_copy(cfg, model, index, readers)
    return model


def _offset_head(
    cfg: LlamaConfig, attention: torch.nn.Module, head: int, offset: float, fastest: int, sharpness: float
) -> None:
    """Constant key, constant query turned by `offset`; what the tokens are hardly matters."""
    size, half = cfg.head_dim, cfg.head_dim // 2
    group = head // (cfg.num_attention_heads // cfg.num_key_value_heads)
    energy, angle = pair_energy(cfg), offset * frequencies(cfg)[:POSITION_PAIRS]
    asked = torch.where(torch.arange(POSITION_PAIRS) < fastest, 0.0, sharpness * energy)
    query, key = head * size, group * size
    attention.q_proj.weight[query : query + size] *= 0.1
    attention.k_proj.weight[key : key + size] *= 0.3
    attention.k_proj.bias[key : key + POSITION_PAIRS] = energy
    attention.q_proj.bias[query : query + POSITION_PAIRS] = asked * torch.cos(angle)
    attention.q_proj.bias[query + half : query + half + POSITION_PAIRS] = -asked * torch.sin(angle)


def _write_context(cfg: LlamaConfig, attention: torch.nn.Module, reader: torch.Tensor) -> None:
    """The offset heads of a layer write what they see into a part of the width of their own."""
    size = cfg.head_dim
    for group in range(cfg.num_key_value_heads):
        attention.v_proj.weight[group * size : (group + 1) * size] = reader[group * size : (group + 1) * size]
    attention.o_proj.weight.copy_(EMBEDDING_STD * torch.linalg.qr(torch.randn_like(attention.o_proj.weight))[0])


def _match_and_copy(cfg: LlamaConfig, model: LlamaForCausalLM, index: int, readers: list[torch.Tensor]) -> None:
    """Heads that look for places after a token like the present one, and copy the token there."""
    size, half = cfg.head_dim, cfg.head_dim // 2
    attention = model.model.layers[index].self_attn
    slow = torch.cat([torch.arange(SLOW_PAIRS, half), torch.arange(half + SLOW_PAIRS, size)])
    output = model.model.layers[0].self_attn.o_proj.weight
    per_group = cfg.num_attention_heads // cfg.num_key_value_heads
    for group in range(cfg.num_key_value_heads):
        first = 0 if index % 2 == 0 else size - len(slow)  # every second layer compares other parts of what is written
        compared = slow[: len(slow) // (1 + group)]  # the second pair keeps half of its slow dimensions to learn with
        place = output[:, first : first + len(compared)].T / EMBEDDING_STD
        asked = readers[0][first : first + len(compared)]
        attention.k_proj.weight[group * size + compared] = MATCH_GAIN * place
        copied = torch.linalg.qr(torch.randn(cfg.hidden_size, size))[0].T
        attention.v_proj.weight[group * size : (group + 1) * size] = copied
        for head in range(group * per_group, (group + 1) * per_group):
            attention.q_proj.weight[head * size + compared] = MATCH_GAIN * asked
            attention.o_proj.weight[:, head * size : (head + 1) * size] = EMBEDDING_STD / per_group * copied.T
