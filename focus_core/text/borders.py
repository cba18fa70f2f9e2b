"""Where a document may be cut: tokens that begin a paragraph, a line or a sentence, and which of them ends a chunk."""

from __future__ import annotations

import re
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from hashlib import sha256

from focus_core.text.documents import TokenizedDocument
from focus_core.text.sentences import STOP, broken_lines

_LINES = re.compile(r"\n")
_KINDS = (re.compile(r"\n\s*\n"), _LINES, re.compile(STOP + r"\s"))  # paragraphs, lines, sentences: the best first
_NEIGHBOURS = 16  # tokens on each side that make a border's digest: fewer recur in the document, more are edited sooner


class Borders:
    """The borders of one document. Where its tokenizer does not report characters, there are none."""

    def __init__(self, document: TokenizedDocument) -> None:
        self._document = document
        self._found: dict[re.Pattern[str], list[int]] = {}
        self._ids: array[int] | None = None

    def last(self, first: int, stop: int) -> int:
        """The last border of the best kind after token `first`, up to token `stop`; without borders `stop`."""
        borders = self._between(first, stop)
        return borders[-1] if borders else stop

    def steady(self, first: int, stop: int) -> int:
        """The border of the best kind with the smallest digest of its neighbouring tokens; without borders any token.

        Of two ranges that overlap, both have the same one unless the smallest lies outside the overlap. Of equal
        digests the last one counts: chunks of repetitive text are long.
        """
        candidates = self._between(first, stop) or range(first + 1, stop + 1)
        return min(reversed(candidates), key=self._digest)

    def _digest(self, token: int) -> bytes:
        if self._ids is None:
            self._ids = array("q", self._document.token_ids)
        return sha256(memoryview(self._ids)[max(token - _NEIGHBOURS, 0) : token + _NEIGHBOURS]).digest()

    def _between(self, first: int, stop: int) -> Sequence[int]:
        for kind in _KINDS:
            tokens = self._of(kind)
            between = tokens[bisect_right(tokens, first) : bisect_right(tokens, stop)]
            if between:
                return between
        return ()

    def _of(self, kind: re.Pattern[str]) -> list[int]:
        """All borders of a kind. The whole text is searched: what a search in a part finds depends on the part."""
        if kind not in self._found:
            starts, text = self._document.starts or (), self._document.document.text or ""
            self._found[kind] = [_token_at(end, starts, text) for end in _ends(kind, text)] if starts else []
        return self._found[kind]


def _ends(kind: re.Pattern[str], text: str) -> Iterator[int]:
    """Where borders of a kind end. Lines of prose that were broken at a width are none."""
    broken = broken_lines(text) if kind is _LINES else ()
    return (found.end() for found in kind.finditer(text) if found.start() not in broken)


def _token_at(character: int, starts: Sequence[int], text: str) -> int:
    """The token with which the text from `character` on begins."""
    token = bisect_left(starts, character)
    # Most tokenizers make the blank before a word a part of its token.
    if token and starts[token] > character and text[starts[token - 1] : character].isspace():
        return token - 1
    return token
