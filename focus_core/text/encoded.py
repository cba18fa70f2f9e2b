"""Tokens of a text with their characters, and the segments of texts that were encoded last."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from sys import getsizeof
from threading import Lock
from typing import NamedTuple

_REMEMBERED_BYTES = 64 << 20  # a token of English takes about 45, with its part of the segment's text
_BYTES_OF_AN_ENTRY = 300  # beside its parts


class Encoded(NamedTuple):
    """A text as tokens.

    Attributes:
        token_ids: without special tokens
        starts: for each token the index of its first character
    """

    token_ids: Sequence[int]
    starts: Sequence[int]


class EncodedSegments:
    """Remembers segments by their text, so that of an edited text only what is new is encoded. Safe under threads.

    What was not used for longest is forgotten.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._known: OrderedDict[str, Encoded] = OrderedDict()
        self._bytes = 0

    def encoded(self, segments: Sequence[str], encode: Callable[[list[str]], Iterable[Encoded]]) -> list[Encoded]:
        """Each of the segments; those that are not known are encoded together, each once."""
        with self._lock:
            found = {segment: self._recall(segment) for segment in segments}
        missing = [segment for segment, known in found.items() if known is None]
        if missing:
            new = dict(zip(missing, encode(missing), strict=True))
            with self._lock:
                for segment, encoded in new.items():
                    self._remember(segment, encoded)
            found |= new
        return [known for segment in segments if (known := found[segment]) is not None]

    def _recall(self, segment: str) -> Encoded | None:
        known = self._known.get(segment)
        if known is not None:
            self._known.move_to_end(segment)
        return known

    def _remember(self, segment: str, encoded: Encoded) -> None:
        if segment in self._known:  # another thread was quicker
            return
        self._known[segment] = encoded
        self._bytes += _bytes_of(segment, encoded)
        while self._bytes > _REMEMBERED_BYTES:
            self._bytes -= _bytes_of(*self._known.popitem(last=False))


def _bytes_of(segment: str, encoded: Encoded) -> int:
    return _BYTES_OF_AN_ENTRY + getsizeof(segment) + getsizeof(encoded.token_ids) + getsizeof(encoded.starts)
