"""How often the sources of an answer are right where people asked and answered: stories with and without the section.

    python -m benchmarks.sources_reading --data val.jsonl --model MODEL                       24 questions, select
    python -m benchmarks.sources_reading --data val.jsonl --model smollm2 --method focus --sections 8 --new-tokens 12
    python -m benchmarks.sources_reading … --embedder ~/.cache/focusllm/models/all-minilm-l6-v2

Every section of a story is a document and a chunk. Each question is asked twice: of all sections of its story, and of
all but those in which its answer stands. `loss`: the section without which the first answer loses most is one of these.
Beside it, asked about the same answer:

    likelihood     how likely the section makes the question (the score of select; where the method has it)
    attention      how much the answer's tokens draw on it (`live_evidence`; where the method has it)
    bm25           words that it shares with question and answer
    minilm         cosine of question and answer with it
    contextcite    weights of a sparse linear model from 64 random halves of the sections (`benchmarks.source_rivals`);
                   for the first N questions with `--contextcite N`, because it takes long

`chance` is the share of sections in which the answer stands. An answer is right if it shares at least half of its words
with a reference (F1) or holds one. `supported` is counted with the section and without it; the JSON has all numbers.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from benchmarks import machine, report
from benchmarks.source_rivals import from_ablations
from focus_core import Document, Finished, FocusEngine
from focus_core.engine.sources import Explanation
from focus_core.evaluation import scores
from focus_core.evaluation.embedding import Embedder
from focus_core.evaluation.retrieval import BM25, Ranker
from focus_core.evaluation.tasks.records import Record, RecordedQuestion, read_records

INSTRUCTION = "Answer with a few words from the text."
_RIGHT = 0.5  # F1
_RESULTS = Path("runs/sources_reading.json")

Outcome = dict[str, Any]


def drawn(records: Sequence[Record], number: int, seed: int) -> list[tuple[Record, RecordedQuestion]]:
    """Questions whose section is known, of stories that have others; those of one story together."""
    known = [
        (place, question)
        for place, record in enumerate(records)
        for question in record.questions
        if 0 < len(set(question.sections)) < len(record.sections)
    ]
    chosen = random.Random(seed).sample(known, number)
    return [(records[place], question) for place, question in sorted(chosen, key=lambda pair: pair[0])]


def shortened(record: Record, question: RecordedQuestion, most: int) -> tuple[Record, RecordedQuestion]:
    """The record with at most so many sections: those with the answer, and the ones nearest to the first of them."""
    gold = set(question.sections)
    near = sorted(range(len(record.sections)), key=lambda place: (place not in gold, abs(place - min(gold)), place))
    kept = sorted(near[: max(most, len(gold))])
    sections = tuple(record.sections[place] for place in kept)
    return replace(record, sections=sections), replace(question, sections=tuple(kept.index(place) for place in gold))


def ask(
    engine: FocusEngine, question: str, documents: Sequence[Document], new_tokens: int
) -> tuple[str, Finished, list[float] | None]:
    """The answer, how it ended, and where the method tells it, how much its tokens draw on each chunk."""
    text, shares = "", list[tuple[float, ...]]()
    asked = f"{question} {INSTRUCTION}"
    for event in engine.stream(asked, documents, max_new_tokens=new_tokens, live_evidence=True):
        text += event.text
        if event.evidence is not None:
            shares += event.evidence.token_shares
        if isinstance(event, Finished):
            finished = event
    return text, finished, [fmean(of_chunk) for of_chunk in zip(*shares, strict=True)] if shares else None


def measure(
    engine: FocusEngine,
    rankers: Mapping[str, Ranker],
    record: Record,
    question: RecordedQuestion,
    new_tokens: int,
    *,
    ablated: bool = False,
) -> Outcome:
    sections = [Document(text) for text in record.sections]
    gold = set(question.sections)
    answer, finished, attention = ask(engine, question.text, sections, new_tokens)
    found, seconds = explained(engine, finished)
    named = {"loss": _best([chunk.lost for chunk in found.chunks])}
    if finished.chunk_scores:
        named["likelihood"] = _best([one.score for one in finished.chunk_scores])
    if attention is not None:
        named["attention"] = _best(attention)
    if ablated:
        named["contextcite"] = _best(from_ablations(engine, finished)[0])
    sections_of = [chunk.documents[0] for chunk in found.chunks]
    first = {name: sections_of[place] in gold for name, place in named.items()}
    for name, ranker in rankers.items():
        texts = [section.text or "" for section in sections]
        first[name] = _best(ranker.index(texts).scores(f"{question.text} {answer}").tolist()) in gold
    others = [one for place, one in enumerate(sections) if place not in gold]
    answer_without, without, _ = ask(engine, question.text, others, new_tokens)
    found_without, _ = explained(engine, without)
    return {
        "record": record.name,
        "question": question.text,
        "answer": answer,
        "references": question.answers,
        "right": _is_right(answer, question.answers),
        "sections": len(sections),
        "chance": len(gold) / len(sections),
        "first": first,
        "seconds": seconds,
        "with": _support(found),
        "answer_without": answer_without,
        "without": _support(found_without),
    }


def explained(engine: FocusEngine, finished: Finished) -> tuple[Explanation, float]:
    began = time.perf_counter()
    return engine.explain(finished, sentences=False), time.perf_counter() - began


def _best(values: Sequence[float]) -> int:
    return max(range(len(values)), key=lambda place: values[place])


def _is_right(answer: str, references: Sequence[str]) -> bool:
    return bool(
        scores.best(scores.f1, answer, references) >= _RIGHT or scores.best(scores.contains, answer, references)
    )


def _support(found: Explanation) -> dict[str, Any]:
    return {
        "supported": found.supported,
        "support": found.support,
        "log_prob": sum(found.log_probs),
        "tokens": len(found.log_probs),
        "explained": found.explained,
        "losses": [list(chunk.token_losses) for chunk in found.chunks],
    }


def summary(outcomes: Sequence[Outcome]) -> list[str]:
    """Lines of a table: all answers, and the right ones."""
    lines = []
    for called, counted in (("all", outcomes), ("right", [one for one in outcomes if one["right"]])):
        if counted:
            rates = ", ".join(_rate([one["first"] for one in counted], name) for name in counted[0]["first"])
            lines.append(
                f"{called:5} {len(counted):3} answers; section first: {rates} (chance "
                f"{sum(one['chance'] for one in counted):.1f}); supported {_supported(counted, 'with')}, without the "
                f"section {_supported(counted, 'without')}; {median(one['seconds'] for one in counted):.1f} s"
            )
    return lines


def _rate(first: Sequence[Mapping[str, bool]], name: str) -> str:
    """How often it named the section, of all or of those it was asked about."""
    asked = [one[name] for one in first if name in one]
    return f"{name} {sum(asked)}" + (f" of {len(asked)}" if len(asked) < len(first) else "")


def _supported(outcomes: Sequence[Outcome], which: str) -> int:
    return sum(bool(one[which]["supported"]) for one in outcomes)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _options(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    settings = {"select_tokens": options.select_tokens} if options.method == "select" else {}
    engine = FocusEngine.from_pretrained(
        options.model, method=options.method, chunk_size=512, pack=False, progress=False, **settings
    )
    rankers: dict[str, Ranker] = {"bm25": BM25()}
    if options.embedder:
        rankers["minilm"] = Embedder(options.embedder)
    output: dict[str, Any] = {
        "conditions": machine.conditions(engine.focus.device, engine.focus.dtype),
        "arguments": vars(options),
        "outcomes": [],
    }
    for number, chosen in enumerate(drawn(read_records(options.data), options.questions, options.seed), 1):
        record, question = shortened(*chosen, options.sections) if options.sections else chosen
        ablated = number <= options.contextcite
        output["outcomes"].append(measure(engine, rankers, record, question, options.new_tokens, ablated=ablated))
        report.write(options.json, output)
        print(f"{number} of {options.questions}", *summary(output["outcomes"]), sep="\n", flush=True)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="records as JSON lines (docs/evaluation.md)")
    parser.add_argument("--model", help="folder or hub id (default: the embedded model)")
    parser.add_argument("--method", default="select", help="focus, select or experts (default: %(default)s)")
    parser.add_argument("--select-tokens", type=int, default=512, help="with select (default: %(default)s)")
    parser.add_argument("--questions", type=int, default=24, help="(default: %(default)s)")
    parser.add_argument("--sections", type=int, help="of a story, at most; by default all")
    parser.add_argument("--new-tokens", type=int, default=24, help="of an answer (default: %(default)s)")
    parser.add_argument("--contextcite", type=int, default=0, metavar="N", help="for the first N (default: none)")
    parser.add_argument("--embedder", type=Path, help="folder of all-MiniLM-L6-v2, for minilm")
    report.add_options(parser, _RESULTS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
