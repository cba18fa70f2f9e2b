"""Where sentences begin and end, also in prose that is broken into lines of one width."""

from __future__ import annotations

import re
from itertools import groupby

_STOPS = ".!?…؟۔।"  # of Latin, Arabic, Urdu and Hindi
STOP = rf"[{_STOPS}][\"'”’)\]]*"  # a mark and what it closes, as a pattern
# After these a sentence ends: its mark with closing quotes and white space, a mark that needs no white space, a line.
_ENDS = re.compile(STOP + r"[^\S\n]+(?=\S)|[。！？][”’」』）]*|\n\s*")
_SHORTEST = 3  # words: after fewer ("Dr.", "No. 5") a full stop ends no sentence

_NARROWEST = 50  # characters: lines of prose are wider, verse and columns of numbers seldom
_FULL = 0.75  # of the widest line of the paragraph; in a PDF, letters differ in width
_NEAR = 3  # lines on each side: where prose was broken, most of them begin with a small letter
_LINE_END = re.compile(r"\n[^\S\n]*")
_CONTINUED = re.compile(r"[^\W\d_]$|[,–—\u00ad\u2010-]$")  # how a line ends that goes on, whatever follows
_ENDED = re.compile(rf"(?:{STOP}|[:;])$")
# In rows of tables, code and logs: columns, commas without a blank, marks that prose has no use for, names with dots.
_NO_PROSE = re.compile(
    r"\t|[^\s.!?…\"'”’)][^\S\n]{2,}\S|[|=<>{}_\\]|[;,][^\W\d]|\",\"|\"\s*:|://|\w\(|[a-z]{2}\.[a-z]{2}"
)
# What begins a line of its own: an item of a list, a heading, a quoted line.
_ITEM = re.compile(r"\s*(?:[-*•–—#>]|\(?(?:\d{1,3}|[A-Za-z]|[ivxIVX]+)[.)])\s")
_SHORT_WORD = 3  # letters: "the", with which two lines of prose begin now and then
_WORD = re.compile(r"\w+")
_SOFT_HYPHEN = "\u00ad"
_HYPHENS = f"-\u2010{_SOFT_HYPHEN}"
_LAST_WORD = re.compile(r"([^\W\d_]+)[-\u2010]$")


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """First character of each sentence and the one after its last; what holds no letter or digit is none.

    A line ends a sentence too, so that headings, rows of a table and lines of code stand by themselves; but not where
    prose was broken into lines of one width, as in a PDF.
    """
    wrapped = broken_lines(text)
    spans, start = list[tuple[int, int]](), 0
    for found in [*_ENDS.finditer(text), None]:
        if found is not None and found.start() in wrapped:
            continue
        stop = len(text) if found is None else found.end()
        part = text[start:stop]
        stopped = found is not None and found.group()[0] in _STOPS
        words = part.strip()
        rest = start == 0 and (words[:1].islower() or not words[:1].isalnum())  # of a sentence of the chunk before
        if stopped and len(part.split()) < _SHORTEST and not rest:
            continue
        if any(map(str.isalnum, words)):
            first = start + len(part) - len(part.lstrip())
            spans.append((first, first + len(words)))
        start = stop
    return spans


def joined_lines(text: str) -> str:
    """The text with the lines of its prose put together.

    A hyphen at the end of a line goes where the text has the whole word elsewhere; others stay ("long-term").
    """
    wrapped = broken_lines(text)
    words = set(_WORD.findall(text)) if wrapped else set()
    pieces, start = list[str](), 0
    for found in _LINE_END.finditer(text):
        if found.start() in wrapped:
            line, start = text[start : found.start()].rstrip(), found.end()
            pieces.append(_line(line, _WORD.match(text, start), words) if line[-1:] in _HYPHENS else f"{line} ")
    return "".join([*pieces, text[start:]])


def _line(line: str, end: re.Match[str] | None, words: set[str]) -> str:
    """A line that ends in a hyphen, as it stands in front of the next one, which begins with the word `end`."""
    begin = _LAST_WORD.search(line)
    if line[-1] == _SOFT_HYPHEN or (begin and end and begin[1] + end[0] in words):
        return line[:-1]
    return line if begin else f"{line} "


def broken_lines(text: str) -> set[int]:
    """Ends of lines behind which the sentence goes on, in lines without an empty one between them.

    Told by small letters: in scripts that have none, every line ends a sentence.
    """
    found, place = set[int](), 0
    for _, paragraph in groupby(text.split("\n"), key=lambda line: bool(line.strip())):
        lines = list(paragraph)
        width, small = max(map(len, lines)), [_begins_small(line) for line in lines]
        for number, line in enumerate(lines):
            place += len(line)
            full = width >= _NARROWEST and len(line.rstrip()) >= _FULL * width
            if full and number + 1 < len(lines) and _goes_on(line, lines[number + 1]):
                near = small[max(number + 1 - _NEAR, 1) : number + 2 + _NEAR]
                if 2 * sum(near) >= len(near):
                    found.add(place)
            place += 1
    return found


def _goes_on(line: str, following: str) -> bool:
    if _ENDED.search(line.rstrip()) or _ITEM.match(following) or _indent(following) > _indent(line):
        return False
    if any(_NO_PROSE.search(one) for one in (line, following)):
        return False
    first, then = (one.split(maxsplit=1)[0] for one in (line, following))
    alike = first == then and not (first.islower() and len(first) <= _SHORT_WORD)
    if alike or (first[0].isdigit() and then[0].isdigit()):  # rows of one kind
        return False
    return then[0].islower() or bool(_CONTINUED.search(line.rstrip()))


def _begins_small(line: str) -> bool:
    return next((character for character in line if character.isalpha()), "").islower()


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
