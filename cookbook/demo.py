"""Facts hidden in a text of 100,000 tokens, and a small model that finds them: `make demo`.

The embedded model sees 2,048 tokens at a time. Its text is about fifty times as long; it is read once, in chunks, and
then asked for every fact. At the end the same model is asked as usual, with as much of the text as its window holds.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from focus_core import Answer, FocusEngine, PreparedDocuments
from focus_core.evaluation.facts import Fact, filler_sentences, hide

TOKENS = 100_000
SEED = 1
NEW_TOKENS = 32
ROOM = 64  # of the window, for question and answer of the plain model

# What is asked, and how deep in the text it stands (0 start, 1 end).
HIDDEN = [
    (Fact("pass key", "", "71402", "passkey"), 0.08, "What is the pass key?"),
    (Fact("access code", "the amber falcon", "48213"), 0.27, "What is the access code of the amber falcon?"),
    (Fact("access code", "the silver falcon", "90576"), 0.41, "What is the access code of the silver falcon?"),
    (Fact("home city", "Clara Fenwick", "Lisbon"), 0.55, "What is the home city of Clara Fenwick?"),
    (Fact("captain", "the northern lighthouse", "Silas Marsh"), 0.73, "Who is the captain of the northern lighthouse?"),
    (Fact("value", "k7f3", "512", "key"), 0.94, "What is the value of k7f3?"),
]


@dataclass(frozen=True)
class Asked:
    """One question, what came of it, and how long that took."""

    question: str
    expected: str
    answer: Answer
    seconds: float

    @property
    def right(self) -> bool:
        return self.answer.text.strip().removesuffix(".").endswith(self.expected)


def long_text(engine: FocusEngine) -> str:
    """About `TOKENS` tokens of made-up sentences with the facts among them."""
    rng = random.Random(SEED)
    sample = filler_sentences(rng, 2000)
    per_sentence = engine.count_tokens(" ".join(sample)) / len(sample)
    sentences = filler_sentences(rng, round(TOKENS / per_sentence))
    return hide([fact for fact, _, _ in HIDDEN], sentences, rng, [depth for _, depth, _ in HIDDEN]).text


def ask(engine: FocusEngine, documents: str | PreparedDocuments, question: str, expected: str) -> Asked:
    """One question, with the clock running."""
    started = time.perf_counter()
    answer = engine.generate(question, documents, max_new_tokens=NEW_TOKENS)
    return Asked(question, expected, answer, time.perf_counter() - started)


def end_of(engine: FocusEngine, text: str) -> str:
    """The last part of a text, as much as the plain model's window holds."""
    tokens = engine.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    ending: str = engine.tokenizer.decode(tokens[ROOM - engine.config.window :])
    return ending


def table_of(asked: list[Asked]) -> Table:
    """Questions and answers side by side."""
    table = Table("depth", "question", "answer", "expected", "", box=box.SIMPLE_HEAD)
    table.add_column("seconds", justify="right")
    for (_, depth, _), one in zip(HIDDEN, asked, strict=True):
        row = (f"{depth:.0%}", one.question, escape(one.answer.text), one.expected, verdict(one), f"{one.seconds:.2f}")
        table.add_row(*row)
    return table


def verdict(one: Asked) -> str:
    """In colour."""
    return "[green]right[/]" if one.right else "[red]wrong[/]"


def main() -> int:
    """Runs the demo; the exit code is 1 if an answer is wrong."""
    console = Console()
    engine = FocusEngine.from_pretrained()
    text = long_text(engine)
    started = time.perf_counter()
    documents = engine.prepare(text)
    reading = time.perf_counter() - started
    console.print(
        f"\nA text of [bold]{documents.tokens:,} tokens[/] for a model that sees {engine.config.window:,} at a time, "
        f"read in {reading:.1f} s on {engine.focus.device}."
    )
    asked = [ask(engine, documents, question, fact.value) for fact, _, question in HIDDEN]
    seconds = sum(one.seconds for one in asked) / len(asked)
    console.print(table_of(asked))
    console.print(
        f"Keys and values of {asked[0].answer.usage.chunks} chunks take {engine.shared.store.nbytes / 2**20:,.0f} MiB. "
        f"They were read once, in {reading:.1f} s; a question then took {seconds:.1f} s on average."
    )
    plain = ask(engine, end_of(engine, text), asked[0].question, asked[0].expected)
    console.print(
        f"For comparison, the same model on the end of the text, as much as it sees at a time:\n"
        f"“{plain.question}” — “{escape(plain.answer.text)}” ({verdict(plain)})."
    )
    return 0 if all(one.right for one in asked) else 1


if __name__ == "__main__":
    sys.exit(main())
