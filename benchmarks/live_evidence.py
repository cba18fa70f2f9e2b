"""Does what is shown while an answer streams agree with what the answer owes to each chunk?

    python -m benchmarks.live_evidence                               20 items of each condition, 4K tokens
    python -m benchmarks.live_evidence --items 5 --chunk-size 112    many small chunks
    python -m benchmarks.live_evidence --seconds                     what it takes: streamed answers with it and without

The items are those of `benchmarks.sources`. Of every token of a right answer the exact loss without each chunk (as in
`explain`) is compared with signals from the pass that chose the token, all of the local context's last token:

    live           `Piece.evidence`: attention, the mean over layers and heads
    highest        attention, in each layer the head that gives the slot most
    later          attention, the mean over the later half of the layers
    values         attention times the length of the slot's value
    outputs        attention times the length of the value after the output map
    logits         what the slot adds to the chosen token's logit, through attention and output map alone, beyond the
                   mean of what it adds to all tokens', by their probabilities

Counted are the tokens that owe at least --nats to a chunk. `first`: the chunk with the highest signal is the one with
the highest loss. `rank`: Spearman's rank correlation over the chunks, the mean over tokens. The others than `live` are
computed with eager attention over the same memory, here and nowhere else.

With --seconds the texts of the first condition are asked about, read beforehand, with live evidence and without, in
turn, --rounds times after one that is not counted; which comes first alternates. Told are the medians of the seconds
from the first text to the end, for each token after the first, and of the rounds' ratios. Answers of both have to be
equal. Tiny answers tell little: --new-tokens.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch
from torch import Tensor

from benchmarks import machine, report
from benchmarks.sources import NEW_TOKENS, Item, make_item, stating
from focus_core import FocusConfig, FocusEngine
from focus_core.attention.memory import Memory
from focus_core.cache.chunks import ChunkSet
from focus_core.engine.answers import Finished
from focus_core.methods.evidence import NOTHING, whole_chunks
from focus_core.methods.focus import FocusModel

CONDITIONS = ("one", "same", "contradict")
_RESULTS = Path("runs/live_evidence.json")


@dataclass(frozen=True)
class Attended:
    """What the last token of a local context attends to.

    Attributes:
        weights: `[layers, heads, slots]`
        values: of each slot, `[layers, heads, slots, head_dim]`
        outputs: the same after the output map, `[layers, heads, slots, hidden]`
        towards: `[hidden]`, the direction in which the chosen token's logit grows beyond the others'
    """

    weights: Tensor
    values: Tensor
    outputs: Tensor
    towards: Tensor


RIVALS: dict[str, Callable[[Attended], Tensor]] = {
    "highest": lambda one: one.weights.amax(1).mean(0),
    "later": lambda one: one.weights[len(one.weights) // 2 :].mean((0, 1)),
    "values": lambda one: (one.weights * one.values.norm(dim=-1)).mean((0, 1)),
    "outputs": lambda one: (one.weights * one.outputs.norm(dim=-1)).mean((0, 1)),
    "logits": lambda one: (one.weights[..., None] * one.outputs).sum((0, 1)) @ one.towards,
}


@dataclass(frozen=True)
class Token:
    """One token of a right answer: its exact losses, and every signal, of each chunk."""

    losses: list[float]
    signals: dict[str, list[float]]


def stream(engine: FocusEngine, item: Item) -> tuple[Finished, str, list[list[float]]]:
    """The end of the answer, its text, and the live shares of its tokens."""
    text, shares, end = "", list[list[float]](), None
    for event in engine.stream(item.question, item.text, max_new_tokens=NEW_TOKENS, method="focus", live_evidence=True):
        text, end = text + event.text, event
        shares += map(list, event.evidence.token_shares if event.evidence else ())
    assert isinstance(end, Finished)
    return end, text, shares


def tokens_of(engine: FocusEngine, item: Item) -> list[Token] | None:
    """The tokens of the answer that have text; `None` if it is not right."""
    end, text, live = stream(engine, item)
    if not stating(item, text):
        return None
    assert end.plan is not None
    question = end.plan.question.continued(end.tokens[: len(live)])
    chunks = ChunkSet.of(engine.focus.prefill([chunk.row for chunk in question.chunks]))
    evidence = end.plan.method.evidence(question, (), lambda: chunks)
    found = evidence.log_probs([NOTHING, *(frozenset({chunk}) for chunk in whole_chunks(question.chunks))])
    losses, asked, new, tokens = (found[0] - found[1:]).T.tolist(), question.asked, question.asked.dynamic_prompt, []
    appended = engine.focus.start_answer(chunks)
    for place, (token, shares) in enumerate(zip(question.generated, live, strict=True)):
        memory = engine.focus.decode_candidates(chunks, torch.tensor([new]), appended)
        seen = attended(engine.focus, memory, [*asked.local_context, *question.generated[:place]], token)
        signals = {"live": shares} | {name: of(seen).tolist() for name, of in RIVALS.items()}
        tokens.append(Token(losses[place], signals))
        new = [new[-1], token]
    return tokens


@torch.no_grad()
def attended(focus: FocusModel, memory: Memory, local: Sequence[int], token: int) -> Attended:
    """By eager attention; for a model whose heads are maps of their own to and from the hidden states, as Llama's."""
    usual = focus.model.config._attn_implementation
    focus.model.set_attn_implementation("eager")
    inputs = memory.decoder_inputs(torch.tensor([local]), None)
    output = focus.model(**inputs, output_attentions=True, output_hidden_states=True)
    focus.model.set_attn_implementation(usual)
    weights = torch.stack([layer[0, :, -1, : memory.slots] for layer in output.attentions])
    values = memory.values[:, 0].repeat_interleave(weights.shape[1] // memory.values.shape[2], dim=1)
    maps: list[Any] = [attention.o_proj for attention in focus.parts.attentions]
    apart = torch.stack(
        [one.weight.unflatten(1, (weights.shape[1], -1)) for one in maps]
    )  # [layers, hidden, heads, dim]
    words: Any = focus.model.get_output_embeddings()
    beyond = words.weight[token] - output.logits[0, -1].softmax(-1) @ words.weight
    return Attended(weights, values, torch.einsum("lohd,lhsd->lhso", apart, values), beyond)


def agreement(tokens: Sequence[Token], nats: float) -> dict[str, Any]:
    """How often each signal's first chunk is the exact one, and how its order is the exact order, as JSON types."""
    owing = [token for token in tokens if max(token.losses) >= nats]
    others = [token for token in tokens if max(token.losses) < nats]
    names = tokens[0].signals if tokens else ()
    return {
        "tokens": len(tokens),
        "owing": len(owing),
        "signals": {
            name: {
                "first": sum(_first(token.signals[name]) == _first(token.losses) for token in owing),
                "rank": mean(spearman(token.signals[name], token.losses) for token in owing) if owing else None,
            }
            for name in names
        },
        "highest share, owing": _median([max(token.signals["live"]) for token in owing]),
        "highest share, others": _median([max(token.signals["live"]) for token in others]),
    }


@dataclass(frozen=True)
class Timed:
    """One streamed answer.

    Attributes:
        first: seconds to the first text
        token: seconds for each token after the first, from the first text to the end
    """

    text: str
    tokens: int
    first: float
    token: float


def timed(engine: FocusEngine, item: Item, new_tokens: int, *, live: bool) -> Timed:
    """A streamed answer with live evidence or without, and how long it took."""
    text, first, end = "", None, None
    begin = time.perf_counter()
    options: dict[str, Any] = {"max_new_tokens": new_tokens, "method": "focus", "live_evidence": live}
    for event in engine.stream(item.question, item.text, **options):
        if first is None and event.text:
            first = time.perf_counter() - begin
        assert live is (event.evidence is not None) or not event.text
        text, end = text + event.text, event
    assert isinstance(end, Finished)
    assert first is not None, "an answer without text has no seconds"
    tokens = len(end.tokens)
    return Timed(text, tokens, first, (time.perf_counter() - begin - first) / max(tokens - 1, 1))


def seconds(engine: FocusEngine, items: Sequence[Item], rounds: int, new_tokens: int) -> dict[str, Any]:
    """Medians over rounds and items, with live evidence (`with`) and without, as JSON types."""
    found: dict[bool, list[Timed]] = {True: [], False: []}
    for number in range(rounds + 1):
        for item in items:
            order = (True, False) if number % 2 else (False, True)
            pair = {live: timed(engine, item, new_tokens, live=live) for live in order}
            assert pair[True].text == pair[False].text, "live evidence has changed an answer"
            if number:  # the first round reads the text
                for live in order:
                    found[live].append(pair[live])
    ratios = [one.token / other.token for one, other in zip(found[True], found[False], strict=True)]
    return {
        "answers": len(ratios),
        "tokens": median(one.tokens for one in found[True]),
        **{
            name: {"first": median(one.first for one in found[live]), "token": median(one.token for one in found[live])}
            for name, live in (("with", True), ("without", False))
        },
        "ratio": median(ratios),
        "ratios": [min(ratios), max(ratios)],
    }


def spearman(some: Sequence[float], others: Sequence[float]) -> float:
    """Rank correlation; 0 where one side is all alike."""
    ranks = [_ranks(numbers) for numbers in (some, others)]
    first, second = (of - of.mean() for of in ranks)
    size = float(first.norm() * second.norm())
    return float(first @ second) / size if size else 0.0


def _ranks(numbers: Sequence[float]) -> Tensor:
    """From 0; equal numbers share the mean of their ranks."""
    given = torch.tensor(numbers, dtype=torch.float64)
    below, equal = (given[:, None] > given).sum(1), (given[:, None] == given).sum(1)
    return below + (equal - 1) / 2


def _first(numbers: Sequence[float]) -> int:
    return max(range(len(numbers)), key=numbers.__getitem__)


def _median(numbers: Sequence[float]) -> float | None:
    return median(numbers) if numbers else None


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    config = FocusConfig(chunk_size=options.chunk_size)
    engine = FocusEngine.from_pretrained(options.model, config=config, method="focus", progress=False)
    conditions = machine.conditions(engine.focus.device, engine.focus.dtype)
    output: dict[str, Any] = {"conditions": conditions, "arguments": vars(options), "results": []}
    print(json.dumps(conditions))
    if options.seconds:
        items = [make_item(engine, options.conditions[0], options.seq, n, options.seed) for n in range(options.items)]
        output["results"].append(seconds(engine, items, options.rounds, options.new_tokens))
        _show_seconds(output["results"][-1], options)
        report.write(options.json, output)
        return
    for condition in options.conditions:
        tokens, right, chunks = list[Token](), 0, 0
        for number in range(options.items):
            found = tokens_of(engine, make_item(engine, condition, options.seq, number, options.seed))
            right += found is not None
            tokens += found or []
            chunks = len(tokens[0].losses) if tokens else 0
        counted = agreement(tokens, options.nats)
        output["results"].append({"condition": condition, "chunks": chunks, "right": right, **counted})
        _show(output["results"][-1], options)
        report.write(options.json, output)


def _show_seconds(result: dict[str, Any], options: argparse.Namespace) -> None:
    print(f"{options.seq:,} tokens, {result['answers']} answers of {result['tokens']:g} tokens (median)")
    for name in ("with", "without"):
        one = result[name]
        print(f"  {name:8} first text after {1e3 * one['first']:.1f} ms, then {1e3 * one['token']:.2f} ms a token")
    low, high = result["ratios"]
    print(f"  a token takes {result['ratio']:.3f} times as long ({low:.3f} to {high:.3f})")


def _show(result: dict[str, Any], options: argparse.Namespace) -> None:
    owing, of = result["owing"], f"of {result['tokens']} tokens owe at least {options.nats} nats to a chunk"
    text = f"{options.seq:,} tokens in {result['chunks']} chunks"
    print(f"{result['condition']}: {text}, {result['right']} right answers of {options.items}; {owing} {of}")
    for name, one in result["signals"].items():
        rank = "–" if one["rank"] is None else f"{one['rank']:.2f}"
        print(f"  {name:8} first {one['first']:3} of {owing:3}   rank {rank}")
    shares = result["highest share, owing"], result["highest share, others"]
    print(f"  highest share, median: {shares[0]}; of the other tokens {shares[1]}", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id of a model with an adapter (default: the embedded model)")
    parser.add_argument("--seq", type=int, default=4096, help="tokens of the text (default: %(default)s)")
    parser.add_argument("--chunk-size", type=int, help="tokens of a chunk; by default the adapter's")
    parser.add_argument("--items", type=int, default=20, help="of each condition (default: %(default)s)")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    parser.add_argument("--nats", type=float, default=1.0, help="what a token must owe (default: %(default)s)")
    parser.add_argument("--seconds", action="store_true", help="compare seconds with live evidence and without")
    parser.add_argument("--rounds", type=int, default=5, help="of --seconds (default: %(default)s)")
    parser.add_argument(
        "--new-tokens", type=int, default=NEW_TOKENS, help="of --seconds, at most (default: %(default)s)"
    )
    report.add_options(parser, _RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
