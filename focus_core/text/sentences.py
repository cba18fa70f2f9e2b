"""Where sentences begin and end: the smallest passages that sources name."""

from __future__ import annotations

import re

STOP = r"[.!?…][\"'”’)\]]*"  # a mark and what it closes, as a pattern
# After these a sentence ends: its mark with closing quotes and white space, a mark that needs no white space, a line.
_ENDS = re.compile(STOP + r"[^\S\n]+(?=\S)|[。！？][”’」』）]*|\n\s*")
_SHORTEST = 3  # words: after fewer ("Dr.", "No. 5") a full stop ends no sentence


def sentence_spans(text: str) -> list[tuple[int, int]]:
    """First character of each sentence and the one after its last, white space around it not counted.

    A line ends a sentence too, so that headings, rows of a table and lines of code stand by themselves.
    """
    spans, start = list[tuple[int, int]](), 0
    for found in [*_ENDS.finditer(text), None]:
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
