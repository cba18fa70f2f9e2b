"""Who finds the chunk that an answer rests on? The loss without each chunk, beside what others guess from.

    python -m benchmarks.source_rivals                            20 items of each condition; 4K and 16K tokens
    python -m benchmarks.source_rivals --seq 4096 --items 10 --embedder ~/.cache/focusllm/models/all-minilm-l6-v2

The items are those of `benchmarks.sources`, and all are asked about the same chunks of the same right answers:

    loss           what the answer loses when the chunk's slot is hidden: `engine.explain`
    attention      how much the tokens attend to the chunk's slot when they are chosen: `Piece.evidence`, their mean
    likelihood     how likely the chunk makes the question (select's score)
    bm25           words that the chunk shares with question and answer
    minilm         cosine of question and answer with the most similar part of the chunk
    contextcite    weights of a sparse linear model of the answer's probability (logit), from random halves of the
                   chunks (Cohen-Wang et al., NeurIPS 2024: 64 ablations, LASSO with 0.01)

`first`: the chunk with the highest score holds a statement that says what the answer says. Tokens are those that pass
the model for all chunks, once the answer is there.
"""

from __future__ import annotations

import argparse
import math
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from benchmarks import machine, report
from benchmarks.live_evidence import stream
from benchmarks.sources import Item, ask, make_item, overlap, stating
from focus_core import Finished, FocusConfig, FocusEngine
from focus_core.cache.chunks import ChunkSet
from focus_core.engine.answers import Answer
from focus_core.evaluation.embedding import Embedder
from focus_core.evaluation.retrieval import BM25, Ranker
from focus_core.methods.evidence import whole_chunks

CONDITIONS = ("one", "same", "contradict")
ABLATIONS, KEPT, PENALTY = 64, 0.5, 0.01  # ContextCite's defaults
_PART = 600  # characters of a chunk that the sentence encoder reads together
_RESULTS = Path("runs/source_rivals.json")

Guess = tuple[list[float], int]  # a score for each chunk, and tokens that passed the model
Rival = Callable[[FocusEngine, Item, Answer], Guess]


def loss(engine: FocusEngine, item: Item, answer: Answer) -> Guess:
    found = engine.explain(answer, every_chunk=True)
    losses = [chunk.loss for chunk in found.chunks if chunk.loss is not None]
    return losses, engine.cost_of_sources(answer, every_chunk=True).tokens


def attention(engine: FocusEngine, item: Item, answer: Answer) -> Guess:
    """Of the same answer, streamed again to see it; in a stream that is watched from the start it costs no token."""
    _, text, shares = stream(engine, item)
    assert text == answer.text
    return np.mean(shares, axis=0).tolist(), 0


def likelihood(engine: FocusEngine, item: Item, answer: Answer) -> Guess:
    config = FocusConfig(chunk_size=engine.config.chunk_size, boundaries="tokens", pack=False, shortlist=0)
    scorer = FocusEngine(engine.shared, config=config, method="select", progress=False)
    scores = scorer.generate(item.question, item.text, max_new_tokens=1).chunk_scores
    suffix = scorer.count_question_tokens(item.question)
    return [found.score for found in scores], suffix * len(scores)


def contextcite(engine: FocusEngine, item: Item, answer: Answer) -> Guess:
    return from_ablations(engine, answer)


def from_ablations(engine: FocusEngine, answer: Answer | Finished) -> Guess:
    """Random halves of the chunks are hidden, and the answer's probability is explained by those that were left."""
    assert answer.plan is not None
    question, method = answer.plan.question.continued(answer.tokens), answer.plan.method
    chunks, draw = question.chunks, np.random.default_rng(0)
    kept = draw.random((ABLATIONS, len(chunks))) < KEPT
    parts = [frozenset(one for one, stays in zip(whole_chunks(chunks), row, strict=True) if not stays) for row in kept]

    def prefill() -> ChunkSet:
        return ChunkSet.of(engine.focus.prefill([one.row for one in chunks]))

    evidence = method.evidence(question, answer.chunk_scores, prefill)
    evidence.begin()
    found = evidence.log_probs(parts).sum(-1).double()
    logits = (found - torch.log1p(-found.exp().clamp(max=1 - 1e-12))).numpy()
    return lasso(kept.astype(float), logits, PENALTY).tolist(), evidence.cost(parts).tokens


def lasso(inputs: np.ndarray, outputs: np.ndarray, penalty: float, *, rounds: int = 1000) -> np.ndarray:
    """Weights that minimise mean squared error / 2 + penalty · |weights|, by coordinate descent; with an intercept."""
    inputs, outputs = inputs - inputs.mean(0), outputs - outputs.mean()
    weights, squares = np.zeros(inputs.shape[1]), (inputs**2).mean(0)
    left = outputs.copy()
    for _ in range(rounds):
        before = weights.copy()
        for place in np.flatnonzero(squares):
            left += inputs[:, place] * weights[place]
            pull = (inputs[:, place] * left).mean()
            weights[place] = math.copysign(max(abs(pull) - penalty, 0.0), pull) / squares[place]
            left -= inputs[:, place] * weights[place]
        if np.abs(weights - before).max() < 1e-9:
            break
    return weights


def similar(ranker: Ranker, *, parts: int | None) -> Rival:
    """Scores of a retriever for question and answer; no token passes the model.

    Args:
        parts: characters that are compared together; the best part counts
    """

    def guess(engine: FocusEngine, item: Item, answer: Answer) -> Guess:
        texts = [item.text[slice(*place)] for place in _places(answer)]
        cut = [_parts(text, parts or len(text)) for text in texts]
        scores = ranker.index([part for of_chunk in cut for part in of_chunk]).scores(f"{item.question} {answer.text}")
        ends = np.cumsum([len(of_chunk) for of_chunk in cut])
        return [float(scores[end - len(one) : end].max()) for end, one in zip(ends, cut, strict=True)], 0

    return guess


def _parts(text: str, size: int) -> list[str]:
    return [text[at : at + size] for at in range(0, len(text), size)]


def _places(answer: Answer) -> list[tuple[int | None, int | None]]:
    assert answer.plan is not None
    return [chunk.characters or (None, None) for chunk in answer.plan.question.chunks]


RIVALS: dict[str, Callable[[], Rival]] = {
    "loss": lambda: loss,
    "attention": lambda: attention,
    "likelihood": lambda: likelihood,
    "bm25": lambda: similar(BM25(), parts=None),
    "contextcite": lambda: contextcite,
}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = FocusEngine.from_pretrained(options.model, method="focus", progress=False)
    rivals: dict[str, Rival] = {name: RIVALS[name]() for name in options.rivals}
    if options.embedder:
        rivals["minilm"] = similar(Embedder(options.embedder), parts=_PART)
    output: dict[str, Any] = {
        "conditions": machine.conditions(engine.focus.device, engine.focus.dtype),
        "arguments": vars(options),
        "results": [],
    }
    for tokens in options.seq:
        for condition in CONDITIONS:
            output["results"].append(_measured(engine, rivals, condition, tokens, options))
            report.write(options.json, output)


def _measured(
    engine: FocusEngine,
    rivals: dict[str, Rival],
    condition: str,
    tokens: int,
    options: argparse.Namespace,
) -> dict[str, Any]:
    first: dict[str, list[bool]] = {name: [] for name in rivals}
    spent: dict[str, list[int]] = {name: [] for name in rivals}
    right = chunks = 0
    for number in range(options.items):
        item = make_item(engine, condition, tokens, number, options.seed)
        answer, _ = ask(engine, item, "focus")
        gold = stating(item, answer.text)
        if not gold:
            continue
        places, right = _places(answer), right + 1
        chunks = len(places)
        holds = [any(overlap(place, span) for span in gold) for place in places]
        for name, guess in rivals.items():
            scores, cost = guess(engine, item, answer)
            best = [place for place, score in enumerate(scores) if score == max(scores)]
            first[name].append(holds[random.Random(number).choice(best)])  # who cannot tell guesses
            spent[name].append(cost)
    print(f"{condition}, {tokens:,} tokens in {chunks} chunks, {right} right answers of {options.items}")
    found = {
        name: {"first": sum(first[name]), "of": right, "tokens": median(spent[name]) if right else None}
        for name in rivals
    }
    for name, one in found.items():
        print(f"  {name:12} first {one['first']:3} of {right:3}   tokens {one['tokens'] or 0:9,.0f}", flush=True)
    return {"condition": condition, "tokens": tokens, "chunks": chunks, "rivals": found}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--seq", type=int, nargs="+", default=[4096, 16384], help="tokens of the text")
    parser.add_argument("--items", type=int, default=20, help="of each condition and length (default: %(default)s)")
    parser.add_argument("--rivals", nargs="+", choices=RIVALS, default=list(RIVALS), help="by default all")
    parser.add_argument("--embedder", type=Path, help="folder of all-MiniLM-L6-v2, for minilm")
    report.add_options(parser, _RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
