"""Where sentences begin and end, also in prose that is broken into lines of one width."""

from __future__ import annotations

import re
from itertools import groupby, pairwise

STOP = r"[.!?…][\"'”’)\]]*"  # a mark and what it closes, as a pattern
# After these a sentence ends: its mark with closing quotes and white space, a mark that needs no white space, a line.
_ENDS = re.compile(STOP + r"[^\S\n]+(?=\S)|[。！？][”’」』）]*|\n\s*")
_SHORTEST = 3  # words: after fewer ("Dr.", "No. 5") a full stop ends no sentence

_NARROWEST = 50  # characters: lines of prose are wider, verse and columns of numbers seldom
_FULL = 0.75  # of the widest line of the paragraph; in a PDF, letters differ in width
_COLUMNS = re.compile(r"\t\S|[^\s.!?…\"'”’)][^\S\n]{2,}\S|\||;\S|,[^\W\d]")  # in a row of a table
_ENDED = re.compile(rf"(?:{STOP}|[:;。！？][”’」』）]*)\s*$")
_LINE_END = re.compile(r"\n[^\S\n]*")
_HYPHENATED = re.compile(r"[^\W\d][-\u00ad\u2010]$")
_ITEM = re.compile(r"\s*(?:[-*•–—#>]|\(?\w{1,3}[.)])\s")  # what begins a line of its own: an item of a list, a heading


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """First character of each sentence and the one after its last, white space around it not counted.

    A line ends a sentence too, so that headings, rows of a table and lines of code stand by themselves; but not where
    prose was broken into lines of one width, as in a PDF.
    """
    wrapped = _wrapped(text)
    spans, start = list[tuple[int, int]](), 0
    for found in [*_ENDS.finditer(text), None]:
        if found is not None and found.start() in wrapped:
            continue
        stop = len(text) if found is None else found.end()
        part = text[start:stop]
        stopped = found is not None and found.group()[0] in ".!?…"
        if stopped and len(part.split()) < _SHORTEST:
            continue
        words = part.strip()
        if words:
            first = start + len(part) - len(part.lstrip())
            spans.append((first, first + len(words)))
        start = stop
    return spans


def joined_lines(text: str) -> str:
    """The text with the lines of its prose put together, and words that were hyphenated at the end of one."""
    wrapped = _wrapped(text)
    pieces, start = list[str](), 0
    for found in _LINE_END.finditer(text):
        if found.start() in wrapped:
            line, start = text[start : found.start()].rstrip(), found.end()
            hyphenated = _HYPHENATED.search(line) and text[start].islower()
            pieces.append(line[:-1] if hyphenated else f"{line} ")
    return "".join([*pieces, text[start:]])


def _wrapped(text: str) -> set[int]:
    """Ends of lines behind which the sentence goes on, in lines without an empty one between them."""
    found, place = set[int](), 0
    for _, paragraph in groupby(text.split("\n"), key=lambda line: bool(line.strip())):
        lines = list(paragraph)
        width = max(map(len, lines))
        for line, following in pairwise([*lines, ""]):
            place += len(line)
            if width >= _NARROWEST and len(line.rstrip()) >= _FULL * width and _goes_on(line, following):
                found.add(place)
            place += 1
    return found


def _goes_on(line: str, following: str) -> bool:
    if not following.strip() or _ENDED.search(line) or _ITEM.match(following) or _indent(following) > _indent(line):
        return False
    return not any(_COLUMNS.search(one) for one in (line, following))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
