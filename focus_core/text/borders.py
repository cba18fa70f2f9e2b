"""Where a document may be cut: tokens that begin a paragraph, a line or a sentence, and which of them ends a chunk."""

from __future__ import annotations

import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence

from focus_core.text.documents import TokenizedDocument

_SENTENCE_END = re.compile(r"[.!?…][\"'”’)\]]*\s")
_KINDS = (re.compile(r"\n\s*\n"), re.compile(r"\n"), _SENTENCE_END)  # paragraphs, lines, sentences: the best first


class Borders:
    """The borders of one document. Where its tokenizer does not report characters, there are none."""

    def __init__(self, document: TokenizedDocument) -> None:
        self._document = document
        self._found: dict[re.Pattern[str], list[int]] = {}

    def last(self, first: int, stop: int) -> int:
        """The last border of the best kind after token `first`, up to token `stop`; without borders `stop`."""
        borders = self._between(first, stop)
        return borders[-1] if borders else stop

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
            starts, text = self._document.starts, self._document.document.text
            ends = () if starts is None or text is None else (found.end() for found in kind.finditer(text))
            self._found[kind] = [_token_at(end, starts or (), text or "") for end in ends]
        return self._found[kind]


def _token_at(character: int, starts: Sequence[int], text: str) -> int:
    """The token with which the text from `character` on begins."""
    token = bisect_left(starts, character)
    # Most tokenizers make the blank before a word a part of its token.
    if token and starts[token] > character and text[starts[token - 1] : character].isspace():
        return token - 1
    return token
