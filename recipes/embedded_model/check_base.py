"""Step 3: what the base can look up inside its window, on text and pairs it has not seen, and in which layer.

An answer counts when every one of its tokens (and the end of the answer) is the likeliest one. "lens" is the same
count with the final norm and head put on the hidden state after each layer: what is not there cannot be remembered.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from focus_core.evaluation import facts
from focus_core.evaluation.facts import Fact
from recipes.embedded_model.data import Sampler
from recipes.embedded_model.texts import read_texts

Row = tuple[list[int], list[int]]  # what is read, what must follow
TASKS = ("pass key", "fact", "restated", "same kind", "key", "passage")


def unseen_fact(rng: random.Random) -> Fact:
    """A fact whose attribute and owner never met in training."""
    while not facts.held_out(fact := facts.make_fact(rng)):
        pass
    return fact


def hidden_facts(rng: random.Random, task: str, count: int) -> list[Fact]:
    """The fact asked for, first, and `count - 1` others."""
    if task == "key":
        lines = facts.key_values(rng, count)
        return rng.sample(lines, count)
    first = facts.pass_key(rng) if task == "pass key" else unseen_fact(rng)
    if task == "same kind":
        return [first, *same_kind(rng, first, count - 1)]
    return [first, *facts.distractors(rng, facts.make_fact(rng) if task == "pass key" else first, count - 1)]


def same_kind(rng: random.Random, fact: Fact, count: int) -> list[Fact]:
    """Facts that differ from `fact` only in whom they are about (and in the value)."""
    owners = {fact.entity}
    while len(owners) < count + 1:
        owners.add(facts.entity(rng))
    owners.remove(fact.entity)
    return [Fact(fact.attribute, owner, facts.value(rng, fact.attribute)) for owner in sorted(owners)]


def make_row(sampler: Sampler, rng: random.Random, task: str, count: int, length: int) -> Row:
    """`<bos>chunk<bos>prompt` and the answer; the chunk is `length` tokens of held-out text."""
    while True:
        hidden = [] if task == "passage" else hidden_facts(rng, task, count)
        room = round(length * 2.9) - sum(60 if f.kind == "fact" else 25 for f in hidden)
        document = facts.hide(hidden, sampler.filler(rng, max(60, room)), rng)
        ids, present, start, end = sampler.cut(rng, document, length)
        if task == "passage":
            prompt, answer = sampler.passage(rng, document.text[start:end])
            if len(answer) < 8:
                continue
            return [sampler.bos, *ids, sampler.bos, *prompt], answer[:8]
        if hidden[0] not in present:
            continue
        if task == "restated":
            prompt, answer = sampler.encode(hidden[0].restatement(rng)), sampler.encode(f" {hidden[0].value}.")
        else:
            prompt = sampler.encode(f"Question: {hidden[0].question(rng)}\nAnswer:")
            answer = [*sampler.encode(f" {hidden[0].value}"), sampler.eos]
        return [sampler.bos, *ids, sampler.bos, *prompt], answer


@torch.no_grad()
def right_by_layer(model: LlamaForCausalLM, rows: list[Row]) -> torch.Tensor:
    """For every row and layer, whether the whole answer is the likeliest."""
    width = max(len(a) + len(b) for a, b in rows)
    ids = torch.tensor([a + b + [0] * (width - len(a) - len(b)) for a, b in rows])
    states = model.model(ids, use_cache=False, output_hidden_states=True).hidden_states[1:]
    found = torch.zeros(len(rows), len(states), dtype=torch.bool)
    for index, (read, answer) in enumerate(rows):
        places = torch.arange(len(read) - 1, len(read) + len(answer) - 1)
        for layer, state in enumerate(states):
            hidden = state[index, places]
            hidden = hidden if layer == len(states) - 1 else model.model.norm(hidden)
            found[index, layer] = bool((model.lm_head(hidden).argmax(-1) == torch.tensor(answer)).all())
    return found


def check(model: LlamaForCausalLM, sampler: Sampler, trials: int, seed: int) -> list[dict]:
    """The table: one line per task, number of facts and chunk length."""
    lines = []
    for length in (256, 900):
        for task in TASKS:
            for count in (1,) if task == "passage" else (1, 5, 20) if length == 900 else (1, 5):
                rng = random.Random(f"{seed}/{task}/{count}/{length}")
                rows = [make_row(sampler, rng, task, count, length) for _ in range(trials)]
                parts = [right_by_layer(model, rows[i : i + 10]) for i in range(0, trials, 10)]
                layers = [round(share, 3) for share in torch.cat(parts).float().mean(0).tolist()]
                lines.append({"task": task, "facts": count, "chunk": length, "right": layers[-1], "lens": layers})
                shown = " ".join(f"{share:4.0%}" for share in layers)
                print(
                    f"{task:10} facts {count:2}  chunk {length:4}  right {layers[-1]:6.1%}   lens {shown}", flush=True
                )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--model", type=Path, default=Path("runs/embedded/base"))
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    lines = check(model, Sampler(tokenizer, read_texts(args.text).held_out), args.trials, args.seed)
    (args.model / "check_base.json").write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
