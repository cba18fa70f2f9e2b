"""Chunks of the documents that were cut last, so that further questions about them cut and hash nothing."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from threading import Lock

from focus_core.text.chunking import Chunk, Cutting
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout

_REMEMBERED_TOKENS = 2_000_000  # of the documents; a token takes 8 bytes here


class Cuts:
    """Remembers chunks by the tokenized documents themselves: those of a prepared handle are the same every time."""

    def __init__(self) -> None:
        self._lock = Lock()
        # The documents are held too, so that no other object can have their identities.
        self._known: OrderedDict[Hashable, tuple[Sequence[TokenizedDocument], tuple[Chunk, ...]]] = OrderedDict()
        self._tokens = 0

    def chunks_of(self, documents: Sequence[TokenizedDocument], layout: Layout, cutting: Cutting) -> tuple[Chunk, ...]:
        """As `layout.chunks_of` cuts them."""
        key = (tuple(map(id, documents)), cutting, layout.chunk_opening)
        with self._lock:
            if key in self._known:
                self._known.move_to_end(key)
                return self._known[key][1]
        chunks = tuple(layout.chunks_of(documents, cutting))
        with self._lock:
            if key not in self._known:
                self._known[key] = (tuple(documents), chunks)
                self._tokens += sum(map(len, documents))
            while self._tokens > _REMEMBERED_TOKENS:
                _, (forgotten, _) = self._known.popitem(last=False)
                self._tokens -= sum(map(len, forgotten))
        return chunks
