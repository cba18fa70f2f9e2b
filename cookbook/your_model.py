"""A story of 1,100 words, and a real instruct model that has never been trained for this: `make demo MODEL=smollm2`.

`MODEL` names one of the models that `make models` fetches, a GGUF file, a model folder or a hub id. The model reads the
story once, in chunks. For each question it reads again what makes the question likeliest, and answers from that; beside
it stands its answer without the story.
"""

from __future__ import annotations

import sys
import time
import warnings
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from focus_core import FocusConfig, FocusEngine, FocusWarning
from recipes.real_models import MODELS, model_path

STORY = Path(__file__).parent / "texts" / "the_lamp_keeper.txt"
NEW_TOKENS = 32

# What is asked, and a word of the right answer.
QUESTIONS = [
    ("What was the name of the inn in the village?", "Herrings"),
    ("What cargo did the Marguerite carry?", "oranges"),
    ("Who was the helmsman of the Marguerite?", "Reed"),
    ("How many books were in the chest?", "two hundred and six"),
    ("To whom did Osric leave the red atlas?", "Minna"),
    ("Where did Captain Calderon retire to?", "Lisbon"),
]


def named(model: str) -> str:
    """The file or folder of one of the models of `make models`; any other name as it is."""
    if model not in MODELS:
        return model
    path = model_path(model)
    if path is None:
        sys.exit(f"{model} is not here yet: run `make models` first.")
    return str(path)


def main(model: str) -> int:
    """Runs the demo. An answer may be wrong: what a model makes of a passage is its own affair."""
    console = Console()
    config = FocusConfig(chunk_size=192, plain_up_to=500, select_tokens=400)  # as if the window held 500 tokens
    engine = FocusEngine.from_pretrained(named(model), device="auto", config=config)
    text = STORY.read_text(encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FocusWarning)  # the notice is said below, in the demo's own words
        started = time.perf_counter()
        documents = engine.prepare(text)
        reading = time.perf_counter() - started
        table = Table("question", "answer", "right answer has", "without the story", box=box.SIMPLE_HEAD)
        table.add_column("seconds", justify="right")
        for question, expected in QUESTIONS:
            started = time.perf_counter()
            answer = engine.generate(question, documents, max_new_tokens=NEW_TOKENS)
            seconds = time.perf_counter() - started
            alone = engine.generate(question, max_new_tokens=NEW_TOKENS)
            colour = "green" if expected.lower() in answer.text.lower() else "red"
            table.add_row(
                question, f"[{colour}]{escape(answer.text)}[/]", expected, escape(alone.text), f"{seconds:.1f}"
            )
    read = sum(len(found.chunk) for found in answer.chunk_scores if found.read)
    console.print(
        f"\n[bold]{STORY.stem.replace('_', ' ')}[/], {documents.tokens:,} tokens, read once in {reading:.1f} s in "
        f"{len(documents.chunks)} chunks on {engine.focus.device}. No adapter is loaded, so method "
        f"[bold]{answer.method}[/] answers, from about {read:,} tokens for each question."
    )
    console.print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "smollm2"))
