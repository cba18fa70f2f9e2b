"""Step 2: trains the base of the embedded model: `python -m recipes.embedded_model.base --text FOLDER`.

Stopped at any point, the same command goes on from the last checkpoint with the same data and the same result.
"""

from __future__ import annotations

import argparse
import copy
import csv
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaForCausalLM, PreTrainedTokenizerFast

from recipes.embedded_model import init
from recipes.embedded_model.data import CONTINUATION_WEIGHT, DECIDING_WEIGHTS, SHARP_FROM, Batches, Sampler
from recipes.embedded_model.texts import read_texts

LENS_LAYERS = (4, 6)  # what is found only in the last layers never reaches FocusLLM's memory: ask for it earlier
LENS_WEIGHT = 0.4
MATRIX_RATE = 2e-3
EMBEDDING_RATE = 6e-3
VECTOR_RATE = 2e-3
WARM_UP = 60
LOG_EVERY = 10


@dataclass
class Losses:
    """The trained loss, and shares of right first answer tokens (by layer) and of right copied tokens."""

    total: torch.Tensor
    text: float
    answers: dict[int, float]
    copies: float


def losses(model: LlamaForCausalLM, ids: torch.Tensor, weights: torch.Tensor) -> Losses:
    """Weighted loss of the last layer, and of the same head after `LENS_LAYERS` on answers and continuations."""
    with torch.autocast(ids.device.type, torch.bfloat16):
        states = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states
        target, weight = ids[:, 1:], weights[:, 1:]
        used = weight > 0
        sharp = weight[used] > SHARP_FROM
        answer = weight[used] == DECIDING_WEIGHTS[0]
        aim, share = target[used], weight[used] / weight[used].sum()
        last = model.lm_head(states[-1][:, :-1][used]).float()
        entropy = functional.cross_entropy(last, aim, reduction="none")
        total = (entropy * share).sum()
        answers = {len(states) - 1: _right(last[answer], aim[answer])}
        for layer in LENS_LAYERS:
            early = model.lm_head(model.model.norm(states[layer][:, :-1][used][sharp])).float()
            early_entropy = functional.cross_entropy(early, aim[sharp], reduction="none")
            total = total + LENS_WEIGHT * (early_entropy * share[sharp]).sum()
            answers[layer] = _right(early[answer[sharp]], aim[answer])
    copied = weight[used] == CONTINUATION_WEIGHT
    return Losses(total, entropy[~sharp].mean().item(), answers, _right(last[copied], aim[copied]))


def _right(logits: torch.Tensor, aim: torch.Tensor) -> float:
    return (logits.argmax(-1) == aim).float().mean().item() if len(aim) else math.nan


def optimizers(model: LlamaForCausalLM) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the embedding and for vectors."""
    inner = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [
        {"params": [model.model.embed_tokens.weight], "lr": EMBEDDING_RATE},
        {"params": vectors, "lr": VECTOR_RATE},
    ]
    built: list[torch.optim.Optimizer] = [
        torch.optim.Muon(inner, lr=MATRIX_RATE, momentum=0.95, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0),
    ]
    for optimizer in built:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return built


def rate(step: int, steps: int) -> float:
    """Share of the peak learning rate: short warm-up, full for 40 %, then down to 3 % in a straight line."""
    progress = step / steps
    return min(1.0, (step + 1) / WARM_UP, max(0.03, (1 - progress) / 0.6))


def advance(opts: list[torch.optim.Optimizer], share: float) -> None:
    """One step at this share of the peak rates."""
    for optimizer in opts:
        for group in optimizer.param_groups:
            group["lr"] = group["peak"] * share
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def train(args: argparse.Namespace) -> None:
    """Runs from the last checkpoint (or from the start) to `args.steps`."""
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    cfg = init.config(len(tokenizer), tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id)
    model = init.build(cfg, args.seed).to(args.device)
    opts = optimizers(model)
    first = load(args.out / "checkpoint.pt", model, opts)
    sampler = Sampler(tokenizer, read_texts(args.text).train)
    loader = DataLoader(
        Batches(sampler, first, args.steps, args.seed), batch_size=None, num_workers=1, prefetch_factor=8
    )
    saved = time.monotonic()
    bar = tqdm(loader, initial=first, total=args.steps, mininterval=10)
    for step, (ids, weights) in enumerate(bar, first):
        began = time.monotonic()
        result = losses(model, ids.to(args.device), weights.to(args.device))
        result.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        advance(opts, rate(step, args.steps))
        if step % LOG_EVERY == 0:
            speed = ids.numel() / (time.monotonic() - began)
            row = _log(args.out / "log.csv", step, args.steps, ids, result, float(norm), speed)
            bar.set_postfix_str(" ".join(f"{k}={v}" for k, v in row.items() if k not in ("step", "progress")))
        if time.monotonic() - saved > args.save_minutes * 60 or step + 1 == args.steps:
            save(args.out, step + 1, model, opts, tokenizer)
            saved = time.monotonic()


def _log(
    path: Path, step: int, steps: int, ids: torch.Tensor, result: Losses, norm: float, speed: float
) -> dict[str, float]:
    """Appends one line to the CSV log and returns it."""
    row: dict[str, float] = {
        "step": step,
        "progress": round(step / steps, 3),
        "length": ids.shape[1],
        "loss": round(result.total.item(), 3),
    }
    row |= {"text": round(result.text, 3), "copies": round(result.copies, 3)}
    row |= {f"answers_layer_{layer}": round(share, 3) for layer, share in sorted(result.answers.items())}
    row |= {"gradient": round(norm, 2), "tokens_per_second": round(speed)}
    append_row(path, row)
    return row


def append_row(path: Path, row: dict[str, float]) -> None:
    """One more line of a CSV file, which begins with the names of the columns."""
    fresh = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if fresh:
            writer.writeheader()
        writer.writerow(row)


def save(
    out: Path,
    step: int,
    model: LlamaForCausalLM,
    opts: list[torch.optim.Optimizer],
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    """The exact state to go on from, and beside it the model as it is shipped, in float16."""
    state = {"step": step, "model": model.state_dict(), "optimizers": [o.state_dict() for o in opts]}
    torch.save(state, out / "checkpoint.tmp")
    (out / "checkpoint.tmp").replace(out / "checkpoint.pt")
    copy.deepcopy(model).cpu().half().save_pretrained(out)
    tokenizer.save_pretrained(out)


def load(path: Path, model: LlamaForCausalLM, opts: list[torch.optim.Optimizer]) -> int:
    """Restores a checkpoint if there is one; returns the number of the next step."""
    if not path.exists():
        return 0
    state = torch.load(path, map_location=model.device, weights_only=True)
    model.load_state_dict(state["model"])
    for optimizer, saved in zip(opts, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    return state["step"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True, help="folder of public-domain .txt files")
    parser.add_argument("--tokenizer", type=Path, default=Path("runs/embedded/tokenizer"))
    parser.add_argument("--out", type=Path, default=Path("runs/embedded/base"))
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2, help="of the CPU")
    parser.add_argument("--save-minutes", type=float, default=4.0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(args)


if __name__ == "__main__":
    main()
