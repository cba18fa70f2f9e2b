"""How often the sources of an answer are right: facts planted in long texts, and what `sources=True` says of them.

    python -m benchmarks.sources                                   20 items of each condition; 4K tokens
    python -m benchmarks.sources --seq 16384 --items 10 --json result.json
    python -m benchmarks.sources --conditions one none --method select
    python -m benchmarks.sources --seq 16384 --chunk-size 128 --every-chunk       each of 119 chunks by itself

Six conditions, all asked of the embedded model (or of --model):

    one            the fact stands in one sentence, among four that look like it
    both           the given answer holds two facts that stand in different places; it is given, because the embedded
                   model does not answer two questions at once
    same           two sentences say the same
    contradict     two sentences say different things
    none           four other facts stand in the text, and not the one that is asked for
    look_alikes    the same, and the four share words with it: the answer's words stand there by chance

Rates are of right answers, except for `none` and `look_alikes`, which have none. An item's text, facts and question
follow from seed, condition, length and number.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import machine, report
from focus_core import FocusEngine
from focus_core.engine.answers import Answer
from focus_core.engine.sources import Explanation
from focus_core.evaluation.facts import Fact, distractors, hide, make_fact, value
from focus_core.evaluation.tasks.base import Haystack

NEW_TOKENS = 32
_RESULTS = Path("runs/sources.json")
_OTHERS = 4  # facts beside those that are asked for


@dataclass(frozen=True)
class Item:
    """A text with a question about it.

    Attributes:
        answers: what a right answer may say; nothing where the text has none
        gold: first and last character of the statements that it can rest on
        given: the answer, where the model is not asked for it
    """

    text: str
    question: str
    answers: tuple[str, ...]
    gold: tuple[tuple[int, int], ...]
    given: str | None = None


@dataclass(frozen=True)
class Outcome:
    """What one item came to.

    Attributes:
        right: whether the answer is
        chunk: the chunk without which the answer loses most, or the first source's, holds a statement
        sentence: the first source is a statement that says what the answer says
        all: every statement is among the sources
        named: their roles are what the condition asks for
        support: nats
        explained: share
        tokens: that passed the model for the sources
        chunk_tokens: those of them that found the chunks
        steps: `chunk_tokens` in decode steps of FocusLLM, for each token of the answer
    """

    right: bool
    chunk: bool
    sentence: bool
    all: bool
    named: bool
    supported: bool
    support: float
    explained: float
    seconds: float
    answer_seconds: float
    tokens: int
    answer_tokens: int
    chunk_tokens: int
    steps: float


def _one(rng: random.Random, sentences: list[str]) -> Item:
    fact = make_fact(rng)
    return _planted(rng, sentences, fact, [fact])


def _same(rng: random.Random, sentences: list[str]) -> Item:
    fact = make_fact(rng)
    return _planted(rng, sentences, fact, [fact, replace(fact)])


def _contradict(rng: random.Random, sentences: list[str]) -> Item:
    fact, other = make_fact(rng), None
    while other is None or other.value == fact.value:
        other = replace(fact, value=value(rng, fact.attribute))
    return _planted(rng, sentences, fact, [fact, other])


def _both(rng: random.Random, sentences: list[str]) -> Item:
    facts = [make_fact(rng), make_fact(rng)]
    given = " ".join(f"The {fact.attribute} of {fact.entity} is {fact.value}." for fact in facts)
    item = _planted(rng, sentences, facts[0], facts)
    question = " ".join(fact.question(rng, form=0) for fact in facts)
    return replace(item, question=question, answers=tuple(fact.value for fact in facts), given=given)


def _none(rng: random.Random, sentences: list[str]) -> Item:
    return _planted(rng, sentences, make_fact(rng), [], [make_fact(rng) for _ in range(_OTHERS)])


def _look_alikes(rng: random.Random, sentences: list[str]) -> Item:
    return _planted(rng, sentences, make_fact(rng), [])


CONDITIONS: dict[str, Callable[[random.Random, list[str]], Item]] = {
    "one": _one,
    "both": _both,
    "same": _same,
    "contradict": _contradict,
    "none": _none,
    "look_alikes": _look_alikes,
}
WITHOUT_ANSWER = ("none", "look_alikes")


def _planted(
    rng: random.Random, sentences: list[str], asked: Fact, stated: list[Fact], others: list[Fact] | None = None
) -> Item:
    beside = distractors(rng, asked, _OTHERS) if others is None else others
    document = hide([*stated, *beside], sentences, rng)
    answers = tuple(dict.fromkeys(fact.value for fact in stated))
    return Item(document.text, asked.question(rng), answers, document.spans[: len(stated)])


def make_item(engine: FocusEngine, condition: str, tokens: int, number: int, seed: int) -> Item:
    rng = random.Random(f"{seed} {condition} {tokens} {number}")
    return CONDITIONS[condition](rng, Haystack(engine).sentences(rng, tokens))


def ask(engine: FocusEngine, item: Item, method: str | None) -> tuple[Answer, float]:
    """The answer, or the one that is given, and the seconds that answering took."""
    began = time.perf_counter()
    answer = engine.generate(item.question, item.text, max_new_tokens=NEW_TOKENS, method=method)
    seconds = time.perf_counter() - began
    if item.given is not None:
        answer = replace(answer, text=item.given, tokens=tuple(engine.tokenize(f" {item.given}")))
    return answer, seconds


def outcome(condition: str, item: Item, answer: str, found: Explanation) -> dict[str, Any]:
    """What the sources of an answer are worth, without what they cost."""
    stated = stating(item, answer)
    named = [span for span in item.gold if any(within((s.start, s.end), span) for s in found.sources)]
    first = found.sources[0] if found.sources else None
    best = max(found.chunks, key=lambda chunk: chunk.lost)
    chunk = best if first is None or first.role != "redundant" else found.chunks[first.chunk]
    roles = [s.role for s in found.sources if any(within((s.start, s.end), span) for span in item.gold)]
    wanted = {"both": "needed", "same": "redundant"}.get(condition)
    return {
        "right": bool(item.given or _said(item, answer)),
        "chunk": any(overlap((chunk.start, chunk.end), span) for span in stated),
        "sentence": first is not None and any(within((first.start, first.end), span) for span in stated),
        "all": len(named) == len(item.gold),
        "named": wanted is None or roles == [wanted] * len(item.gold),
        "supported": bool(found.supported),
        "support": found.support,
        "explained": found.explained,
    }


def stating(item: Item, answer: str) -> list[tuple[int, int]]:
    """The statements that say what the answer says: of a given answer all, of a wrong one none."""
    said = _said(item, answer)
    return [span for span in item.gold if item.given or any(one in item.text[slice(*span)] for one in said)]


def _said(item: Item, answer: str) -> list[str]:
    words = f" {answer.rstrip('. ')} "
    return [one for one in item.answers if f" {one} " in words]


def overlap(found: tuple[int | None, int | None], span: tuple[int, int]) -> bool:
    """Whether two spans of characters share one; those that are not known share none."""
    start, end = found
    return start is not None and end is not None and start < span[1] and end > span[0]


def within(found: tuple[int | None, int | None], span: tuple[int, int]) -> bool:
    """Whether a span of characters names nothing but what another one holds."""
    start, end = found
    return start is not None and end is not None and span[0] <= start < end <= span[1]


def measure(
    engine: FocusEngine, condition: str, item: Item, method: str | None, *, every_chunk: bool = False
) -> Outcome:
    answer, answered = ask(engine, item, method)
    began = time.perf_counter()
    found = engine.explain(answer, every_chunk=every_chunk)
    return Outcome(
        **outcome(condition, item, answer.text, found),
        seconds=time.perf_counter() - began,
        answer_seconds=answered,
        tokens=found.cost.tokens,
        answer_tokens=len(answer.tokens),
        chunk_tokens=found.cost_of_chunks.tokens,
        steps=found.cost_of_chunks.tokens / tokens_of_steps(answer),
    )


def tokens_of_steps(answer: Answer) -> int:
    """Tokens that pass the model in as many decode steps of FocusLLM as the answer has tokens.

    A step reads two tokens for each chunk, and the local context with the answer so far.
    """
    assert answer.plan is not None
    question, steps = answer.plan.question, len(answer.tokens)
    return sum(2 * len(question.chunks) + len(question.local_context) + said for said in range(steps))


def summary(condition: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Rates of one condition, as JSON types."""
    counted = outcomes if condition in WITHOUT_ANSWER else [one for one in outcomes if one.right]
    rates = {name: _rate(counted, name) for name in ("chunk", "sentence", "all", "named", "supported")}
    if condition in WITHOUT_ANSWER:
        rates = {"supported": rates["supported"]}
    return {
        "items": len(outcomes),
        "right": sum(one.right for one in outcomes),
        "rates": rates,
        "median_seconds": median(one.seconds for one in outcomes),
        "median_answer_seconds": median(one.answer_seconds for one in outcomes),
        "median_tokens": median(one.tokens for one in outcomes),
        "median_chunk_tokens": median(one.chunk_tokens for one in outcomes),
        "median_steps": median(one.steps for one in outcomes),
        "outcomes": [asdict(one) for one in outcomes],
    }


def _rate(outcomes: Sequence[Outcome], name: str) -> float | None:
    return sum(getattr(one, name) for one in outcomes) / len(outcomes) if outcomes else None


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    engine = FocusEngine.from_pretrained(options.model, progress=False, chunk_size=options.chunk_size)
    output: dict[str, Any] = {
        "conditions": machine.conditions(engine.focus.device, engine.focus.dtype),
        "arguments": vars(options),
        "results": [],
    }
    print(f"{'condition':12} {'tokens':>7} {'items':>5} {'right':>5}  chunk  sentence  all  named  supported")
    for tokens in options.seq:
        for condition in options.conditions:
            outcomes = []
            for number in range(options.items):
                item = make_item(engine, condition, tokens, number, options.seed)
                outcomes.append(measure(engine, condition, item, options.method, every_chunk=options.every_chunk))
            result = {"condition": condition, "tokens": tokens, **summary(condition, outcomes)}
            output["results"].append(result)
            print(_line(result), flush=True)
            report.write(options.json, output)


def _line(result: dict[str, Any]) -> str:
    rates = "  ".join("–" if rate is None else f"{rate:.0%}" for rate in (result["rates"].get(name) for name in _SHOWN))
    seconds = f"{result['median_seconds']:.1f} s after {result['median_answer_seconds']:.1f} s"
    cost = f"{result['median_steps']:.1f} steps a token, {seconds}"
    return f"{result['condition']:12} {result['tokens']:7,} {result['items']:5} {result['right']:5}  {rates}  {cost}"


_SHOWN = ("chunk", "sentence", "all", "named", "supported")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--method", default="focus", help="focus, plain, select or experts (default: %(default)s)")
    parser.add_argument("--seq", type=int, nargs="+", default=[4096], help="tokens of the text")
    parser.add_argument("--chunk-size", type=int, help="tokens of a chunk (default: the adapter's)")
    parser.add_argument("--every-chunk", action="store_true", help="leave each chunk out by itself, also of long texts")
    parser.add_argument("--items", type=int, default=20, help="of each condition and length (default: %(default)s)")
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=list(CONDITIONS))
    report.add_options(parser, _RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
