"""Step 2b: a start from which looking things up is learned in minutes: every position knows its last eight tokens, and
heads compare them and copy.

Copying needs two heads in a row: one that writes "the token before me was x" into each position, one that looks for
positions where x is what is asked for. From random weights a small model needs many millions of tokens to find the
pair. Rotary embeddings with biased projections give the first kind directly: constant query and key vectors, the
query turned by the offset, agree best exactly that many tokens back. The eight heads of the first two layers write
the present token and the seven before it into eight places of the residual stream that do not overlap. The second kind
is a head whose query and key read such places, in rotary pairs that turn too slowly to care about distance.
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

EMBEDDING_STD = 0.3
POSITION_PAIRS = 12  # the fast rotary pairs: they tell offsets apart
SLOW_PAIRS = 16  # pairs from this one on turn less than a seventh of a circle over 1024 tokens: for contents

OFFSETS = ((1, 2, 3, 4), (5, 6, 7, 0))  # how many tokens back the heads of layers 0 and 1 look
PLACE = 32  # width of the place for each of these eight tokens
WRITTEN_GAIN = 2.0  # how loud they are beside the embedding
MATCH_LAYERS = (2, 3, 4)
MATCH_GAIN = 2.0
# (tokens back in the query, tokens back in the key, share of the slow dimensions), for each pair of heads.
# The first: the last three tokens here are those before that place. The second: "… amber falcon?\nAnswer: " here
# (six and five back) and "… amber falcon is " before that place (four and three back).
MATCHES = (((0, 1, 12), (1, 2, 10), (2, 3, 10)), ((0, 1, 8), (5, 3, 12), (6, 4, 12)))


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


def kernel(cfg: LlamaConfig, offset: float, distance: torch.Tensor) -> torch.Tensor:
    """Attention score that an offset head gives to a token ``distance`` back (before the softmax)."""
    turned = torch.cos((distance[:, None] - offset) * frequencies(cfg)[:POSITION_PAIRS])
    return (pair_energy(cfg) ** 2 * turned).sum(-1) / math.sqrt(cfg.head_dim)


def pair_energy(cfg: LlamaConfig) -> torch.Tensor:
    """Length of the constant key in each fast pair: more for the fastest, which separates neighbours."""
    return 10.0 * frequencies(cfg)[:POSITION_PAIRS] ** 0.25


def laid_out(name: str) -> bool:
    """Whether the parameter called ``name`` belongs to what the structured start has arranged, or comes before it."""
    if "embed" in name:
        return True
    if "layers" not in name:
        return False
    layer = int(name.split(".")[2])
    return layer < len(OFFSETS) or (layer in MATCH_LAYERS and ("q_proj" in name or "k_proj" in name))


@torch.no_grad()
def build(cfg: LlamaConfig, seed: int) -> LlamaForCausalLM:
    """A new model with the structured start."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(cfg)
    width = cfg.hidden_size
    model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_STD)
    model.model.norm.weight.fill_(0.3 / (EMBEDDING_STD * math.sqrt(width)))
    places = torch.linalg.qr(torch.randn(width, width))[0].T.reshape(-1, PLACE, width)
    for index, layer in enumerate(model.model.layers):
        attention, mlp = layer.self_attn, layer.mlp
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj):
            linear.weight.normal_(0.0, 1 / math.sqrt(width))
        for linear in (attention.o_proj, mlp.down_proj):
            linear.weight.normal_(0.0, 0.3 * EMBEDDING_STD / math.sqrt(width))
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
            linear.bias.zero_()
        if index < len(OFFSETS):
            for head, offset in enumerate(OFFSETS[index]):
                _offset_head(cfg, attention, head, offset, places)
        if index in MATCH_LAYERS:
            for group, compared in enumerate(MATCHES):
                _match_and_copy(cfg, attention, group, compared, places)
    return model


def _offset_head(cfg: LlamaConfig, attention: torch.nn.Module, head: int, offset: int, places: torch.Tensor) -> None:
    """Constant key, constant query turned by ``offset``; what is seen there goes to the place of that offset."""
    size, half = cfg.head_dim, cfg.head_dim // 2
    group = head // (cfg.num_attention_heads // cfg.num_key_value_heads)
    energy, angle = pair_energy(cfg), offset * frequencies(cfg)[:POSITION_PAIRS]
    query, key = head * size, group * size
    attention.q_proj.weight[query : query + size].normal_(0.0, 0.1 / math.sqrt(cfg.hidden_size))
    attention.k_proj.weight[key : key + size].normal_(0.0, 0.3 / math.sqrt(cfg.hidden_size))
    attention.k_proj.bias[key : key + POSITION_PAIRS] = energy
    attention.q_proj.bias[query : query + POSITION_PAIRS] = energy * torch.cos(angle)
    attention.q_proj.bias[query + half : query + half + POSITION_PAIRS] = -energy * torch.sin(angle)
    attention.v_proj.weight[key : key + PLACE] = places[-1]  # layer 0 writes nothing there: layer 1 reads it clean
    attention.o_proj.weight[:, query : query + PLACE] = WRITTEN_GAIN * EMBEDDING_STD * places[offset].T


def _match_and_copy(
    cfg: LlamaConfig,
    attention: torch.nn.Module,
    group: int,
    compared: tuple[tuple[int, int, int], ...],
    places: torch.Tensor,
) -> None:
    """The heads of one group look for places with the ``compared`` tokens before them and copy what stands there."""
    size, half = cfg.head_dim, cfg.head_dim // 2
    slow = torch.cat([torch.arange(SLOW_PAIRS, half), torch.arange(half + SLOW_PAIRS, size)])
    slow = slow[torch.randperm(len(slow))]
    asked = torch.cat([places[query, :width] for query, _, width in compared])
    held = torch.cat([places[key, :width] for _, key, width in compared])
    attention.k_proj.weight[group * size + slow] = MATCH_GAIN * held
    copied = torch.linalg.qr(torch.randn(cfg.hidden_size, size))[0].T
    attention.v_proj.weight[group * size : (group + 1) * size] = copied
    heads = cfg.num_attention_heads // cfg.num_key_value_heads
    for head in range(group * heads, (group + 1) * heads):
        attention.q_proj.weight[head * size + slow] = MATCH_GAIN * asked
        attention.o_proj.weight[:, head * size : (head + 1) * size] = EMBEDDING_STD / heads * copied.T
