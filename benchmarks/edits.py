"""What an edited document costs to read again: chunks and tokens that are new, for each rule of cutting.

    python -m benchmarks.edits                               128,000 tokens of generated sentences
    python -m benchmarks.edits --text book.txt --tokenizer FOLDER --places 20 --json result.json

A text is cut, edited at a random place and cut again. A chunk of the edited text is read anew if no chunk of the first
one has its key. Edits: a sentence changed, a paragraph inserted, a paragraph deleted, all in the middle third; and a
new first page, before the text from a random paragraph of its first tenth on. No model
runs. Figures are medians over the places, with the largest beside them. `same_tokens_after`: how many characters after
an edit the tokens are those of the first text again, at most over all edits.
"""

from __future__ import annotations

import argparse
import random
import re
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks import machine, report
from focus_core.config import BOUNDARIES, FocusConfig
from focus_core.evaluation.facts import filler_sentences
from focus_core.loading.named import EMBEDDED_FOLDER
from focus_core.text.chunking import Chunk, Cutting
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.files import read_file
from focus_core.text.layout import Layout
from focus_core.text.tokenizer import TextTokenizer, load_tokenizer

_SENTENCE = re.compile(r"\S[^.!?\n]*[.!?]")
_PAGE = 500  # words of a new first page
_SPARSE = 5_000  # characters: where paragraphs are longer on average, lines are taken for paragraphs


@dataclass(frozen=True)
class Edit:
    """The characters `start` to `stop - 1` of a text replaced, of which the first `without` are left out."""

    start: int
    stop: int
    text: str
    without: int = 0

    def of(self, text: str) -> str:
        return text[self.without : self.start] + self.text + text[self.stop :]


@dataclass(frozen=True)
class Row:
    """One rule and chunk size.

    Attributes:
        mean_tokens: of a chunk of the first text
        milliseconds: to cut the first text once
        chunks: read anew, by edit: median and largest
        tokens: the same in tokens
    """

    boundaries: str
    chunk_size: int
    count: int
    mean_tokens: float
    milliseconds: float
    chunks: dict[str, tuple[float, int]]
    tokens: dict[str, tuple[float, int]]


# --- texts and edits --------------------------------------------------------------------------------------------------


def generated(rng: random.Random, words: int) -> str:
    """Paragraphs of two to seven generated sentences."""
    paragraphs, count = list[str](), 0
    while count < words:
        paragraphs.append(" ".join(filler_sentences(rng, rng.randint(2, 7))))
        count += len(paragraphs[-1].split())
    return "\n\n".join(paragraphs)


def paragraphs_of(text: str) -> list[tuple[int, int]]:
    """First character of each paragraph, and that of the next one."""
    ends = [found.end() for found in re.finditer(r"\n\s*\n", text)]
    if len(ends) < len(text) / _SPARSE:
        ends = [found.end() for found in re.finditer(r"\n\s*", text)]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def edits_of(text: str, rng: random.Random, places: int) -> dict[str, list[Edit]]:
    """Edits of each kind, each at another place."""
    middle = [span for span in paragraphs_of(text) if len(text) / 3 < span[0] < 2 * len(text) / 3]
    spans = rng.sample([span for span in middle if _SENTENCE.search(text, *span)], places)
    edits: dict[str, list[Edit]] = {"sentence changed": [], "paragraph inserted": [], "paragraph deleted": []}
    for start, stop in spans:
        sentence = rng.choice(list(_SENTENCE.finditer(text, start, stop)))
        edits["sentence changed"].append(Edit(*sentence.span(), filler_sentences(rng, 1)[0]))
        edits["paragraph inserted"].append(Edit(start, start, generated(rng, 60) + "\n\n"))
        edits["paragraph deleted"].append(Edit(start, stop, ""))
    begins = rng.sample([start for start, _ in paragraphs_of(text) if start < len(text) / 10], places)
    pages = [Edit(begin, begin, generated(rng, _PAGE) + "\n\n", begin) for begin in begins]
    return {**edits, "new first page": pages}


# --- measuring --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Versions:
    """A document before and after an edit."""

    edit: Edit
    before: TokenizedDocument
    after: TokenizedDocument


def versions_of(text: str, edits: Sequence[Edit], tokenizer: TextTokenizer) -> list[Versions]:
    texts = [(text[edit.without :], edit.of(text)) for edit in edits]
    both = [[tokenizer.document(Document(version)) for version in versions] for versions in texts]
    return [Versions(edit, before, after) for edit, (before, after) in zip(edits, both, strict=True)]


def same_after(versions: Versions) -> int:
    """Characters from the end of an edit to the first token after which all tokens are those of the first text."""
    common, ids, others = 0, versions.before.token_ids, versions.after.token_ids
    while common < min(len(ids), len(others)) and ids[-common - 1] == others[-common - 1]:
        common += 1
    edit, starts = versions.edit, versions.after.starts
    assert starts is not None
    return max(starts[len(others) - common] - (edit.start - edit.without + len(edit.text)), 0)


def measure(layout: Layout, first: TokenizedDocument, edited: dict[str, list[Versions]], boundaries: str) -> Row:
    cutting = Cutting(layout.config.chunk_size, boundaries=boundaries)
    started = time.perf_counter()
    chunks = layout.document_chunks(first, cutting)
    seconds = time.perf_counter() - started

    def anew(versions: Versions) -> list[Chunk]:
        known = {chunk.key for chunk in layout.document_chunks(versions.before, cutting)}
        return [chunk for chunk in layout.document_chunks(versions.after, cutting) if chunk.key not in known]

    new = {kind: [anew(versions) for versions in of_kind] for kind, of_kind in edited.items()}
    counts = {kind: [len(found) for found in of_kind] for kind, of_kind in new.items()}
    tokens = {kind: [sum(len(one.token_ids) for one in found) for found in of_kind] for kind, of_kind in new.items()}
    return Row(
        boundaries,
        cutting.size,
        len(chunks),
        mean(len(chunk.token_ids) for chunk in chunks),
        seconds * 1e3,
        {kind: (median(of_kind), max(of_kind)) for kind, of_kind in counts.items()},
        {kind: (median(of_kind), max(of_kind)) for kind, of_kind in tokens.items()},
    )


def table(rows: Sequence[Row]) -> str:
    """For the documentation: tokens read anew, with chunks in brackets; the largest number of tokens after that."""
    kinds = list(rows[0].tokens)
    lines = [f"| chunks of | `boundaries` | chunks | mean tokens | {' | '.join(kinds)} | cut, ms |"]
    lines.append("|---|---|---|---|" + "---|" * (len(kinds) + 1))
    for row in rows:
        cells = [
            f"{row.tokens[kind][0]:,.0f} ({row.chunks[kind][0]:g}), at most {row.tokens[kind][1]:,}" for kind in kinds
        ]
        lines.append(
            f"| {row.chunk_size:,} | `{row.boundaries}` | {row.count} | {row.mean_tokens:.0f} | {' | '.join(cells)} "
            f"| {row.milliseconds:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    given = _options(arguments)
    rng, tokenizer = random.Random(given.seed), TextTokenizer(load_tokenizer(given.tokenizer))
    text = read_file(given.text) if given.text else generated(rng, given.tokens)
    whole = tokenizer.document(Document(text))
    assert whole.starts is not None
    if len(whole) < given.tokens:
        raise SystemExit(f"The text has {len(whole):,} tokens, and --tokens asks for {given.tokens:,}.")
    text = text[: whole.starts[given.tokens]]
    first = tokenizer.document(Document(text))
    edits = edits_of(text, rng, given.places)
    edited = {kind: versions_of(text, of_kind, tokenizer) for kind, of_kind in edits.items()}
    conditions: dict[str, Any] = {
        **{
            name: value
            for name, value in machine.conditions(torch.device("cpu"), torch.float32).items()
            if name != "dtype"
        },
        "text": given.text.name if given.text else "generated",
        "sha256": sha256(text.encode()).hexdigest()[:16],
        "tokenizer": Path(given.tokenizer).name,
        "tokens": len(first),
        "places": given.places,
        "seed": given.seed,
        "same_tokens_after": max(same_after(versions) for of_kind in edited.values() for versions in of_kind),
    }
    rows = list[Row]()
    for size in given.chunk_size:
        layout = Layout(FocusConfig(chunk_size=size).resolve(2 * size), tokenizer.bos)
        rows += [measure(layout, first, edited, boundaries) for boundaries in BOUNDARIES]
    print("  ".join(f"{name}: {value}" for name, value in conditions.items() if value is not None))
    print(f"\n{table(rows)}")
    if given.json:
        report.write(given.json, {"conditions": conditions, "rows": [asdict(row) for row in rows]})


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, help="a text (default: generated sentences in paragraphs)")
    parser.add_argument("--tokens", type=int, default=128_000, help="of the text (default: %(default)s)")
    parser.add_argument("--tokenizer", default=str(EMBEDDED_FOLDER / "base"), help="folder (default: the embedded one)")
    parser.add_argument("--chunk-size", type=int, nargs="+", default=[512, 2048], help="(default: %(default)s)")
    parser.add_argument("--places", type=int, default=20, help="edits of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of generated text and places (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="where the figures go, besides the table")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
