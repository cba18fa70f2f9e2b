"""From generated tokens to text, piece by piece: no half characters, no stop string, no leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

_UNFINISHED = "\ufffd"  # what a tokenizer shows for the first bytes of a character


@dataclass
class TextStream:
    """Turns one answer's tokens into text that may be shown at once.

    Held back are bytes of an unfinished character, and any ending that could be the beginning of a stop string.

    Attributes:
        stop: strings that end the answer and are not part of it
        strip_start: drop white space before the first visible character (after a chat template)
        after: the token that the answer continues; some tokenizers drop the space of a first word
    """

    tokenizer: PreTrainedTokenizerBase
    stop: Sequence[str] = ()
    strip_start: bool = False
    after: int | None = None
    stopped: bool = False
    _tokens: list[int] = field(default_factory=list)
    _decoded_from: int = 0  # tokens from here on are decoded together, so that spaces between words survive
    _decoded_to: int = 0  # tokens up to here have become text
    _held: str = ""
    _started: bool = False

    def __post_init__(self) -> None:
        if self.after is not None:
            self._tokens, self._decoded_to = [self.after], 1

    def push(self, token: int) -> str:
        """The text that `token` makes certain; sets `stopped` when a stop string is complete."""
        self._tokens.append(token)
        before = self._decode(self._tokens[self._decoded_from : self._decoded_to])
        now = self._decode(self._tokens[self._decoded_from :])
        if now.endswith(_UNFINISHED):
            return ""
        if len(now) > len(before):  # else a special token, after which a word would lose its space
            self._decoded_from = self._decoded_to
        self._decoded_to = len(self._tokens)
        return self._release(now[len(before) :])

    def finish(self) -> str:
        """What was held back, at the end of the answer."""
        if self.stopped:
            return ""
        before = self._decode(self._tokens[self._decoded_from : self._decoded_to])
        rest = self._decode(self._tokens[self._decoded_from :])[len(before) :]
        shown, self._held = self._held + self._without_start(rest), ""
        cut = _first_stop(shown, self.stop)
        return shown if cut is None else shown[:cut]

    def _release(self, new: str) -> str:
        text = self._held + self._without_start(new)
        cut = _first_stop(text, self.stop)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        keep = _possible_start(text, self.stop)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def _without_start(self, new: str) -> str:
        if self.strip_start and not self._started:
            new = new.lstrip()
            self._started = bool(new)
        return new

    def _decode(self, tokens: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


def _first_stop(text: str, stop: Sequence[str]) -> int | None:
    """Where the earliest stop string in `text` begins."""
    found = [index for index in (text.find(string) for string in stop) if index >= 0]
    return min(found, default=None)


def _possible_start(text: str, stop: Sequence[str]) -> int:
    """How many characters at the end of `text` could begin a stop string: 2 for "answer is\\n#" and "\\n###"."""
    longest = 0
    for string in stop:
        for size in range(min(len(string) - 1, len(text)), longest, -1):
            if text.endswith(string[:size]):
                longest = size
                break
    return longest
