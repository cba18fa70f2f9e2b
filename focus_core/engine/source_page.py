"""An answer with its sources as one page that needs nothing else: `focusllm ask --html report.html`.

No script, no font, no picture from elsewhere. Every colour stands beside a number or a word, so that nobody needs it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from focus_core.engine.sources import ChunkLoss, Explanation, GroupLoss, Source
    from focus_core.text.documents import Document

_MOST_ROWS = 20  # of the table
_MOST_NAMES = 3  # documents that the table names of a group
_STRIP = 1000  # units that a document's strip is wide
_ROLES = {
    "sole": "the only support",
    "needed": "needed together with others",
    "redundant": "others say the same",
}
_STYLE = """
:root { color-scheme: light dark; --page: #fff; --text: #1a1a1a; --soft: #595959; --line: #8a8a8a; --mark: #0072b2 }
@media (prefers-color-scheme: dark) {
  :root { --page: #16181c; --text: #ececec; --soft: #b0b0b0; --line: #80858f; --mark: #56b4e9 }
}
body { background: var(--page); color: var(--text); font: 1rem/1.5 system-ui, sans-serif; margin: 2rem auto;
  max-width: 62rem; padding: 0 1rem }
blockquote { border-left: .25rem solid var(--mark); margin: .25rem 0 1rem; padding: .1rem 0 .1rem 1rem;
  white-space: pre-wrap }
.answer { font-size: 1.2rem; white-space: pre-wrap }
.note, caption, figcaption { color: var(--soft); font-size: .9rem; text-align: left }
a { color: var(--mark) } a:focus-visible, [tabindex]:focus-visible { outline: .2rem solid var(--mark) }
figure { margin: 1rem 0 } svg { display: block; height: auto; width: 100% }
svg text { fill: var(--text); font-size: 14px } svg .edge { fill: none; stroke: var(--line) }
svg .loss { fill: var(--mark) }
.scroll { overflow-x: auto } table { border-collapse: collapse; font-size: .85rem }
th, td { border: 1px solid var(--line); padding: .15rem .4rem; text-align: right; white-space: pre }
th { font-weight: 600 } td { background: color-mix(in srgb, var(--mark) calc(var(--v) * 55%), transparent) }
@media print { body { max-width: none } .scroll { overflow: visible } td, svg { print-color-adjust: exact } }
"""


def source_page(question: str, answer: str, documents: Sequence[Document], found: Explanation) -> str:
    """The page, as HTML.

    Args:
        documents: of the question, in order
        found: what the answer owes to them
    """
    numbers = " ".join(f'<a href="#source-{n}">[{n}]</a>' for n in range(1, len(found.sources) + 1))
    return "".join(
        [
            '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">',
            "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">",
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(question)} – sources</title><style>{_STYLE}</style></head><body><main>\n",
            f'<h1 dir="auto">{escape(question)}</h1>\n',
            f'<p class="answer"><span dir="auto">{escape(answer)}</span> {numbers}</p>\n',
            f'<p class="note">{_verdict(found)}</p>\n',
            *_sources(found.sources),
            *_strips(documents, found),
            *_table(documents, found),
            "</main></body></html>\n",
        ]
    )


def _verdict(found: Explanation) -> str:
    if found.supported is None:
        return "Without documents there is nothing that could support the answer."
    word = "supported" if found.supported else "not supported"
    return (
        f"The answer is <strong>{word}</strong> by the documents: without its sources its tokens lose "
        f"{found.support:.1f} nats, and the documents explain {found.explained:.0%} of it."
    )


def _sources(sources: Sequence[Source]) -> Iterator[str]:
    yield "<h2>Sources</h2>\n"
    if not sources:
        yield "<p>No passage was found that the answer rests on.</p>\n"
        return
    yield "<ol>\n"
    for number, source in enumerate(sources, 1):
        where = escape(source.name or f"document {source.document + 1}")
        if source.page is not None:
            where += f", page {source.page:,}"
        if source.start is not None:
            where += f", characters {source.start:,} to {source.end:,}"
        yield (
            f'<li id="source-{number}">{where}: {source.score:.1f} nats, {_ROLES[source.role]}'
            f'<blockquote dir="auto">{escape(source.excerpt)}</blockquote></li>\n'
        )
    yield "</ol>\n"


# --- the documents as strips ------------------------------------------------------------------------------------------


def _strips(documents: Sequence[Document], found: Explanation) -> Iterator[str]:
    if not found.chunks:
        return
    yield "<h2>Where in the documents</h2>\n"
    highest = max(part.loss for part in _parts(documents, found))
    for index, document in enumerate(documents):
        boxes = list(_boxes(index, found))
        if document.text is not None and boxes:
            marks = [(n, s) for n, s in enumerate(found.sources, 1) if s.document == index and s.start is not None]
            yield _strip(document.name or f"document {index + 1}", len(document.text), boxes, marks, highest)


@dataclass(frozen=True)
class _Box:
    """Characters of a document, what the answer loses without them, and without how many chunks together."""

    start: int
    end: int
    loss: float
    chunks: int = 1


def _boxes(document: int, found: Explanation) -> Iterator[_Box]:
    """Of each chunk of a document; chunks that were left out together and follow one another are one box."""
    there = [chunk for chunk in found.chunks if chunk.documents == (document,)]
    for group, run in groupby(there, key=lambda chunk: chunk.group):
        spans = [(chunk.start, chunk.end, chunk.loss) for chunk in run]
        known = [(start, end, loss) for start, end, loss in spans if start is not None and end is not None]
        if group is None:
            yield from (_Box(start, end, loss) for start, end, loss in known if loss is not None)
        elif known:
            together = found.groups[group]
            yield _Box(known[0][0], known[-1][1], together.loss, len(together.chunks))


def _strip(
    name: str, characters: int, boxes: Sequence[_Box], marks: Sequence[tuple[int, Source]], highest: float
) -> str:
    def x(character: int | None) -> float:
        return round((character or 0) * _STRIP / characters, 1)

    drawn = "".join(_drawn(box, x(box.start), x(box.end), _share(box.loss, highest)) for box in boxes)
    labels = "".join(f'<text x="{x(s.start)}" y="15">[{n}]</text>' for n, s in marks)
    told = ", ".join(f"source {n} at {100 * (s.start or 0) // characters} %" for n, s in marks) or "no source in it"
    label = escape(f"{name}: {told}", quote=True)
    return (
        f'<figure><svg role="img" aria-label="{label}" viewBox="0 0 {_STRIP} 42">'
        f"{drawn}{labels}</svg><figcaption>{escape(name)}, {characters:,} characters: {escape(told)}</figcaption>"
        "</figure>\n"
    )


def _drawn(box: _Box, left: float, right: float, share: float) -> str:
    at = f'x="{left}" y="20" width="{round(right - left, 1)}" height="20"'
    together = "" if box.chunks == 1 else f" without all {box.chunks} chunks of their group"
    told = f"characters {box.start:,} to {box.end:,}: {_number(box.loss)} nats{together}"
    return f'<rect class="loss" {at} fill-opacity="{share:.2f}"><title>{told}</title></rect><rect class="edge" {at}/>'


# --- tokens by chunks -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Part:
    """A row of the table: a chunk, or chunks that were left out together."""

    name: str
    loss: float
    token_losses: Sequence[float]


def _parts(documents: Sequence[Document], found: Explanation) -> list[_Part]:
    """In the order of their first chunks."""
    chunks = {
        number: _Part(_name(documents, number, chunk), chunk.loss, chunk.token_losses)
        for number, chunk in enumerate(found.chunks)
        if chunk.loss is not None
    }
    groups = {
        group.chunks[0]: _Part(_name_of_group(documents, group, found), group.loss, group.token_losses)
        for group in found.groups
    }
    return [part for _, part in sorted([*chunks.items(), *groups.items()], key=lambda numbered: numbered[0])]


def _table(documents: Sequence[Document], found: Explanation) -> Iterator[str]:
    if not found.chunks:
        return
    parts = _parts(documents, found)
    order = sorted(range(len(parts)), key=lambda number: -parts[number].loss)
    shown = sorted(order[:_MOST_ROWS])
    highest = max(max(part.token_losses) for part in parts)
    yield "<h2>Every token of the answer, without each part of the text</h2>\n"
    yield '<div class="scroll" role="region" tabindex="0" aria-label="Losses of tokens by parts of the text">'
    yield f"<table><caption>Loss in log-probability (nats). {_shown(len(shown), len(order))}{_together(found)}"
    yield '</caption>\n<thead><tr><th scope="col">part</th><th scope="col">all</th>'
    yield "".join(f'<th scope="col">{escape(piece) or "·"}</th>' for piece in found.pieces)
    yield "</tr></thead>\n<tbody>"
    for part in (parts[number] for number in shown):
        cells = "".join(
            f'<td style="--v:{_share(loss, highest):.2f}">{_number(loss)}</td>' for loss in part.token_losses
        )
        total = f'<td style="--v:0">{_number(part.loss)}</td>'
        yield f'<tr><th scope="row">{escape(part.name)}</th>{total}{cells}</tr>\n'
    yield "</tbody></table></div>\n"


def _shown(shown: int, there: int) -> str:
    return "" if shown == there else f"Of {there:,} parts the {shown} without which the answer loses most. "


def _together(found: Explanation) -> str:
    if not found.groups:
        return ""
    return "Where a part is several chunks, they were left out together, and no number is known for one of them."


def _name(documents: Sequence[Document], number: int, chunk: ChunkLoss) -> str:
    names = [documents[index].name or f"document {index + 1}" for index in chunk.documents if index < len(documents)]
    where = "" if chunk.start is None else f" {chunk.start:,}–{chunk.end:,}"
    return f"{number + 1}: {', '.join(names)}{where}"


def _name_of_group(documents: Sequence[Document], group: GroupLoss, found: Explanation) -> str:
    """The numbers of its chunks, and their documents."""
    inside = dict.fromkeys(index for chunk in group.chunks for index in found.chunks[chunk].documents)
    names = [documents[index].name or f"document {index + 1}" for index in inside if index < len(documents)]
    shown = names if len(names) <= _MOST_NAMES else [*names[:_MOST_NAMES], f"{len(names) - _MOST_NAMES} more"]
    numbers = groupby(enumerate(group.chunks), key=lambda placed: placed[1] - placed[0])  # consecutive ones
    runs = [[chunk + 1 for _, chunk in run] for _, run in numbers]
    told = ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs)
    return f"{told} together: {', '.join(shown)}"


def _number(loss: float) -> str:
    """Without a minus in front of 0."""
    return f"{loss:.2f}".replace("-0.00", "0.00")


def _share(loss: float, highest: float) -> float:
    return max(loss, 0.0) / highest if highest > 0 else 0.0
