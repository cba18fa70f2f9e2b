"""Step 3: the base learns to read a memory: `python -m recipes.embedded_model.memory --text FOLDER --base FOLDER`.

A batch holds rows as in step 2, and long documents as FocusLLM reads them: every chunk with all questions after it
(each question sees the chunk and itself alone), and the local contexts of some steps, each after the memory of that
step's candidates. Candidates go through the base's own projections here, so one pass yields those of all steps.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM

from recipes.embedded_model import base
from recipes.embedded_model.data import CONTINUATION_WEIGHT, DECIDING_WEIGHTS, NAMING_WEIGHT, PAIR_WEIGHT, Sampler
from recipes.embedded_model.documents import Batches, Documents, Steps
from recipes.embedded_model.texts import read_texts

ABSENT = 0  # the padding token: what a candidate is to say where its chunk has no answer
CANDIDATE_WEIGHT = 0.5
READING_LAYERS = (5, 6)  # their first head of each group is told to look at the candidate that has the answer
READING_WEIGHT = 0.5
LOG_EVERY = 5

Shares = dict[str, Tensor]
Angles = tuple[Tensor, Tensor]


@dataclass
class Pass:
    """Results of one forward pass.

    Attributes:
        states: of the newest tokens, `[R, width]`
        candidates: hidden states of all possible candidates after some layers, `[D, C, G, width]`
        looked_at: attention of the reading heads on each slot, by layer, `[R, groups, M]`
    """

    states: Tensor
    candidates: dict[int, Tensor]
    looked_at: dict[int, Tensor]


class Positions:
    """Splits into heads, and turns them."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        self.size, self.speed = model.config.head_dim, model.model.rotary_emb.inv_freq

    def heads(self, projected: Tensor) -> Tensor:
        """`[..., T, heads × size]` → `[..., heads, T, size]`."""
        return projected.unflatten(-1, (-1, self.size)).transpose(-2, -3)

    def angles(self, position: Tensor) -> Angles:
        """Cosine and sine at `position`, which broadcasts to `[..., 1, T]`: once for all layers."""
        angle = position[..., None].float() * self.speed
        return angle.cos(), angle.sin()

    def turn(self, x: Tensor, at: Angles) -> Tensor:
        """`x [..., heads, T, size]`."""
        cos, sin = (of.to(x.dtype) for of in at)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def forward(model: LlamaForCausalLM, docs: Documents, steps: Steps) -> Pass:
    """Equals `FocusModel`'s steps with untrained candidate projections (checked on this code: 2e-5 in float32)."""
    candidates: dict[int, Tensor] = {}
    looked_at: dict[int, Tensor] = {}
    (d, c, s), g = docs.chunks.shape, docs.questions.shape[1]
    positions, layers = Positions(model), model.model.layers
    embed = model.model.embed_tokens
    rows = embed(torch.cat([docs.chunks, docs.questions[:, None].expand(d, c, g)], -1)).flatten(0, 1)  # [DC, T, W]
    local = embed(steps.ids)
    mask, row_place = _chunk_rows(docs)
    newest = (torch.arange(len(steps.ids)), steps.length - 1)
    slots = docs.slots[steps.document]  # [R, M]
    m, length = slots.shape[1], local.shape[1]
    row_angles, memory_angles, local_angles = (
        positions.angles(place) for place in (row_place, torch.arange(m), torch.arange(m, m + length))
    )
    here = (steps.document[:, None], slots, slice(None), s + steps.newest[:, None])  # candidates of a step
    for index, layer in enumerate(layers):
        normed = layer.input_layernorm(rows)
        keys = positions.heads(layer.self_attn.k_proj(normed))  # [DC, groups, T, size], not turned yet
        values = positions.heads(layer.self_attn.v_proj(normed))
        memory_keys = positions.turn(keys.unflatten(0, (d, c))[here].transpose(1, 2), memory_angles)
        memory_values = values.unflatten(0, (d, c))[here].transpose(1, 2)
        local, share = _read_memory(layer, local, memory_keys, memory_values, positions, local_angles)
        if index in READING_LAYERS:
            looked_at[index] = share[newest[0], :, 0, newest[1], :m]
        if index + 1 < len(layers):  # nothing asks for what chunks become in the last layer
            queries = positions.turn(positions.heads(layer.self_attn.q_proj(normed)), row_angles)
            keys = positions.turn(keys, row_angles)
            mixed = functional.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, enable_gqa=True)
            rows = _rest_of_layer(layer, rows, mixed)
        if index + 1 in base.LENS_LAYERS:
            candidates[index + 1] = rows[:, s:].unflatten(0, (d, c))
    return Pass(model.model.norm(local[newest]), candidates, looked_at)


def _chunk_rows(docs: Documents) -> tuple[Tensor, Tensor]:
    """Who sees whom in the rows of chunks and questions, and their positions; both `[D × C, 1, …]`."""
    (d, c, s), g = docs.chunks.shape, docs.questions.shape[1]
    same = docs.segment[:, :, None] == docs.segment[:, None]
    same = same & torch.tril(torch.ones(g, g, dtype=torch.bool))
    mask = torch.zeros(d, c, s + g, s + g, dtype=torch.bool)
    mask[:, :, :s, :s] = torch.tril(torch.ones(s, s, dtype=torch.bool))
    mask[:, :, s:, :s] = (torch.arange(s) < docs.sizes[..., None])[:, :, None]
    mask[:, :, s:, s:] = same[:, None]
    place = torch.cat([torch.arange(s).expand(d, c, s), docs.sizes[..., None] + docs.place[:, None]], -1)
    return mask.view(d * c, 1, s + g, s + g), place.view(d * c, 1, s + g)


def _read_memory(
    layer: nn.Module, local: Tensor, memory_keys: Tensor, memory_values: Tensor, positions: Positions, at: Angles
) -> tuple[Tensor, Tensor]:
    """One layer for the local contexts, and the attention in it, `[R, groups, heads per group, L, M + L]`."""
    attention, normed = layer.self_attn, layer.input_layernorm(local)
    groups, slots = memory_keys.shape[1:3]
    length = local.shape[1]
    queries = positions.turn(positions.heads(attention.q_proj(normed)), at).unflatten(1, (groups, -1))
    keys = torch.cat([memory_keys, positions.turn(positions.heads(attention.k_proj(normed)), at)], 2)
    values = torch.cat([memory_values, positions.heads(attention.v_proj(normed))], 2)
    scores = torch.einsum("rkhte,rkse->rkhts", queries / math.sqrt(positions.size), keys).float()
    seen = torch.ones(length, slots + length).tril(slots).bool()
    share = torch.softmax(scores.masked_fill(~seen, -torch.inf), -1)
    mixed = torch.einsum("rkhts,rkse->rkhte", share.to(values.dtype), values)
    return _rest_of_layer(layer, local, mixed.flatten(1, 2)), share


def _rest_of_layer(layer: nn.Module, states: Tensor, mixed: Tensor) -> Tensor:
    states = states + layer.self_attn.o_proj(mixed.transpose(1, 2).flatten(2))
    return states + layer.mlp(layer.post_attention_layernorm(states))


def losses(model: LlamaForCausalLM, docs: Documents, steps: Steps) -> tuple[Tensor, dict[str, float]]:
    """Loss of the answers, and what helps to learn them; with shares of what is right, for the log."""
    with torch.autocast(docs.chunks.device.type, torch.bfloat16), docs.chunks.device:
        result = forward(model, docs, steps)
        target, weight = (of[steps.document, steps.newest + 1] for of in (docs.questions, docs.weights))
        logits = model.lm_head(result.states).float()
        total = (functional.cross_entropy(logits, target, reduction="none") * weight).sum() / weight.sum()
        candidate_loss, shares = _candidate_loss(model, docs, result.candidates)
        reading_loss, more = _reading_loss(docs, steps, weight, result.looked_at)
    right = logits.argmax(-1) == target
    shares |= more | {
        "memory_answers": right[weight == DECIDING_WEIGHTS[0]],
        "memory_names": right[weight == NAMING_WEIGHT],
        "memory_copies": right[weight == CONTINUATION_WEIGHT],
        "memory_pairs": right[weight == PAIR_WEIGHT],
    }
    total = total + CANDIDATE_WEIGHT * candidate_loss + READING_WEIGHT * reading_loss
    return total, {k: round(v.float().mean().item(), 3) if len(v) else math.nan for k, v in shares.items()}


def _candidate_loss(model: LlamaForCausalLM, docs: Documents, candidates: dict[int, Tensor]) -> tuple[Tensor, Shares]:
    """A candidate is to know the next token where its chunk has it, and that it is `ABSENT` elsewhere.

    Without this, the difference between a candidate that found something and one that did not is learned only through
    what is read from the memory: after 230 steps, nothing had been.
    """
    home = docs.home[:, 1:]
    sought = (docs.weights[:, 1:] > 0) & (home >= 0)
    here = torch.arange(docs.chunks.shape[1]) == home[sought][:, None]  # [N, C]
    label = torch.where(here, docs.questions[:, 1:][sought][:, None], ABSENT)
    share = torch.where(here, 0.5, 0.5 / max(1, here.shape[1] - 1)) * docs.weights[:, 1:][sought][:, None]
    share = share / share.sum().clamp(min=1e-6)
    total, shares = torch.zeros(()), {}
    for layer, states in candidates.items():
        logits = model.lm_head(model.model.norm(states[:, :, :-1].transpose(1, 2)[sought])).float()  # [N, C, vocab]
        entropy = functional.cross_entropy(logits.flatten(0, 1), label.flatten(), reduction="none")
        total = total + (entropy * share.flatten()).sum()
        told = logits.argmax(-1) == label
        shares |= {f"present_{layer}": told[here], f"absent_{layer}": told[~here]}
    return total, shares


def _reading_loss(docs: Documents, steps: Steps, weight: Tensor, looked_at: dict[int, Tensor]) -> tuple[Tensor, Shares]:
    """Some heads are to look at the candidate whose chunk has the answer."""
    home = docs.home[steps.document, steps.newest + 1]
    known = home >= 0
    share = weight[known] / weight[known].sum().clamp(min=1e-6)
    total, shares = torch.zeros(()), {}
    right = docs.slots[steps.document[known]] == home[known][:, None]  # [steps, M]
    for layer, looked in looked_at.items():
        at_home = (looked[known] * right[:, None]).sum(-1)  # [steps, groups]
        total = total - ((at_home + 1e-6).log().mean(-1) * share).sum()
        shares |= {f"read_{layer}": at_home.mean(-1)}
    return total, shares


def train(args: argparse.Namespace) -> None:
    """Runs from the last checkpoint (or from the base) to `args.steps`."""
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    model = LlamaForCausalLM.from_pretrained(args.base, dtype=torch.float32).train().to(args.device)
    opts = base.optimizers(model)
    first = base.load(args.out / "checkpoint.pt", model, opts)
    sampler = Sampler(tokenizer, read_texts(args.text).train)
    batches = Batches(sampler, first, args.steps, args.seed)
    saved = time.monotonic()
    bar = tqdm(DataLoader(batches, None, num_workers=1, prefetch_factor=8), initial=first, total=args.steps)
    for step, (ids, weights, docs, steps) in enumerate(bar, first):
        began = time.monotonic()
        window = base.losses(model, ids.to(args.device), weights.to(args.device))
        window.total.backward()
        loss, shares = losses(model, docs.to(args.device), steps.to(args.device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        base.advance(opts, args.rate * base.rate(step, args.steps))
        if step % LOG_EVERY == 0:
            row = {"step": step, "chunks": docs.chunks.shape[1], "size": docs.chunks.shape[2]}
            row |= {"window": round(window.total.item(), 3), "window_answers": round(window.answers[8], 3)}
            row |= {"window_copies": round(window.copies, 3), "memory": round(loss.item(), 3), **shares}
            row |= {"gradient": round(float(norm), 2), "seconds": round(time.monotonic() - began, 2)}
            base.append_row(args.out / "log.csv", row)
        if time.monotonic() - saved > args.save_minutes * 60 or step + 1 == args.steps:
            base.save(args.out, step + 1, model, opts, tokenizer)
            saved = time.monotonic()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--base", type=Path, default=Path("runs/embedded/base"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/memory"))
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--rate", type=float, default=0.7, help="learning rates, as a share of those of step 2")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
