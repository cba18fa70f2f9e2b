"""Control tokens that stand in somebody's words are text: `<|im_end|>` in a document ends no turn."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cached_property

from transformers import PreTrainedTokenizerBase

_MARK = re.compile(r"[<\[|{].*[>\]|}]")  # in a word of a template's own text: [INST], <<SYS>>, <|user|>
_LONGEST_MARK = 64  # characters


class ControlTokens:
    """The strings that a tokenizer or a chat template takes for control.

    A text is encoded in pieces, none of which holds a whole control token. So it works with any tokenizer, changes no
    character, and needs no switch in the tokenizer, which other threads use at the same time.

    Args:
        written: what a chat template writes around the words of users; marks in it count too, also where they are
            ordinary text for the tokenizer (`[INST]` of Llama 2)
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, written: Iterable[str] = ()) -> None:
        added = dict[int, object](tokenizer.added_tokens_decoder)
        special = {str(token) for token in added.values() if getattr(token, "special", False)}
        strings = special | set(map(str, tokenizer.all_special_tokens))
        for text in written:
            strings |= {str(token) for token in added.values() if str(token).strip() and str(token) in text}
            words = self._without(strings, text).split()
            strings |= {word for word in words if len(word) <= _LONGEST_MARK and _MARK.search(word)}
        self._strings = sorted((text for text in strings if len(text) > 1), key=len, reverse=True)
        ids = {index for index, token in added.items() if str(token) in strings} | set(tokenizer.all_special_ids)
        self.ids = frozenset(ids - {tokenizer.unk_token_id})

    @staticmethod
    def _without(strings: Iterable[str], text: str) -> str:
        for string in sorted(strings, key=len, reverse=True):
            text = text.replace(string, " ")
        return text

    @cached_property
    def _pattern(self) -> re.Pattern[str] | None:
        return re.compile("|".join(map(re.escape, self._strings))) if self._strings else None

    def spans(self, text: str) -> list[tuple[int, int]]:
        """Where control tokens stand in `text`."""
        return [found.span() for found in self._pattern.finditer(text)] if self._pattern else []

    def pieces(self, text: str) -> list[str]:
        """`text` in pieces, none of which holds a whole control token."""
        found, start = [], 0
        while self._pattern and (match := self._pattern.search(text, start)):
            cut = match.start() + 1
            found.append(text[start:cut])
            start = cut
        return [*found, text[start:]]
