"""Where sentences begin and end, also in prose that is broken into lines of one width."""

from __future__ import annotations

import re
from itertools import pairwise

STOP = r"[.!?…][\"'”’)\]]*"  # a mark and what it closes, as a pattern
# After these a sentence ends: its mark with closing quotes and white space, a mark that needs no white space, a line.
_ENDS = re.compile(STOP + r"[^\S\n]+(?=\S)|[。！？][”’」』）]*|\n\s*")
_SHORTEST = 3  # words: after fewer ("Dr.", "No. 5") a full stop ends no sentence

_PARAGRAPH = re.compile(r"[^\S\n]*\S[^\n]*(?:\n[^\S\n]*\S[^\n]*)*")  # lines without an empty one between them
_NARROWEST = 50  # characters: lines of prose are wider, verse and columns of numbers seldom
_FULL = 0.75  # of the widest line of the paragraph; in a PDF, letters differ in width
_COLUMNS = re.compile(r"\t\S|[^\s.!?…\"'”’)][^\S\n]{2,}\S|\||;\S|,[^\W\d]")  # in a row of a table
_ENDED = re.compile(rf"(?:{STOP}|[:;。！？][”’」』）]*)\s*$")
_BLANK = re.compile(r"\s*")
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
        stop = len(text) if found is None else found.end()
        part = text[start:stop]
        stopped = found is not None and found.group()[0] in ".!?…"
        if stopped and len(part.split()) < _SHORTEST:
            continue
        if found is not None and found.start() in wrapped:
            continue
        words = part.strip()
        if words:
            first = start + len(part) - len(part.lstrip())
            spans.append((first, first + len(words)))
        start = stop
    return spans


def joined_lines(text: str) -> str:
    """The text with the lines of its prose put together, and words that were hyphenated at the end of one."""
    pieces, start = list[str](), 0
    for end in sorted(_wrapped(text)):
        line = text[start:end].rstrip()
        start = end + len(_BLANK.match(text, end).group())  # type: ignore[union-attr]  # it matches the empty text too
        hyphenated = _HYPHENATED.search(line) and text[start : start + 1].islower()
        pieces.append(line[:-1] if hyphenated else f"{line} ")
    return "".join([*pieces, text[start:]])


def _wrapped(text: str) -> set[int]:
    """Ends of lines behind which the sentence goes on."""
    found = set[int]()
    for paragraph in _PARAGRAPH.finditer(text):
        lines = paragraph.group().split("\n")
        width = max(map(len, lines))
        place = paragraph.start()
        for line, following in pairwise(lines):
            place += len(line)
            if width >= _NARROWEST and len(line.rstrip()) >= _FULL * width and _goes_on(line, following):
                found.add(place)
            place += 1
    return found


def _goes_on(line: str, following: str) -> bool:
    if _ENDED.search(line) or _ITEM.match(following) or _indent(following) > _indent(line):
        return False
    return not any(_COLUMNS.search(one) for one in (line, following))


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
