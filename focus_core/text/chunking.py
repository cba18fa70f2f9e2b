"""Where a text is cut and where a BOS stands: chunks, local context and dynamic prompt (paper §2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from focus_core.config import ResolvedConfig

TokenIds = list[int]


@dataclass(frozen=True)
class TextLayout:
    """The rows that the model sees, made from token ids without special tokens of their own.

    With `bos_per_chunk` (the default) every chunk starts with a BOS, so that it is the same wherever its document
    stands. The authors' rule has a BOS only at the start of a text. Under both rules one stands before the local
    context and before the dynamic prompt. A tokenizer without BOS simply has none (see `tokenizer.bos_of`).
    """

    config: ResolvedConfig
    bos: int | None
    separator: tuple[int, ...] = ()  # between texts that the plain model reads one behind the other

    def document_chunks(self, tokens: Sequence[int]) -> list[TokenIds]:
        """Chunks of one document; a chunk never spans two documents. An empty document has none."""
        pieces = self._cut(tokens)
        if self.config.bos_per_chunk:
            return [self.with_bos(piece) for piece in pieces]
        return [self.with_bos(piece) for piece in pieces[:1]] + pieces[1:]

    def chunks_of(self, documents: Sequence[Sequence[int]]) -> list[TokenIds]:
        """Chunks of all documents, in order."""
        return [chunk for document in documents for chunk in self.document_chunks(document)]

    def long_prompt(self, tokens: Sequence[int]) -> tuple[list[TokenIds], TokenIds]:
        """One long prompt: chunks of all but its last `local_window` tokens, and those as local context."""
        border = max(len(tokens) - self.config.local_window, 0)
        pieces = self._cut(tokens[:border])
        if self.config.bos_per_chunk:
            pieces = [self.with_bos(piece) for piece in pieces]
        return pieces, self.with_bos(tokens[border:])

    def dynamic_prompt(self, local_context: Sequence[int]) -> TokenIds:
        """What is appended to every chunk: the end of the local context (paper eq. 1)."""
        return self.with_bos(self._without_bos(local_context)[-self.config.dynamic_prompt :])

    def plain(self, documents: Sequence[Sequence[int]], local_context: Sequence[int]) -> TokenIds:
        """All documents in front of the local context, for the plain model: the row of a single large chunk.

        A separator stands between two documents, and before the local context unless a BOS does.
        """
        rows = [list(document) for document in documents if document]
        if not rows:
            return list(local_context)
        joined = self.with_bos(rows[0])
        for row in rows[1:]:
            joined += [*self.separator, *row]
        starts_anew = self.bos is not None and list(local_context[:1]) == [self.bos]
        return [*joined, *(() if starts_anew else self.separator), *local_context]

    def plain_length(self, documents: Sequence[Sequence[int]], local_context: Sequence[int]) -> int:
        """How long `plain` is, without putting it together."""
        rows = [document for document in documents if document]
        first = [row[:1] for row in rows[:1]]  # all that a BOS depends on
        left_out = sum(map(len, rows)) - len(first) + len(self.separator) * max(len(rows) - 1, 0)
        return len(self.plain(first, local_context)) + left_out

    def with_bos(self, tokens: Sequence[int]) -> TokenIds:
        """`tokens` with a BOS in front, unless they start with one or the model has none."""
        tokens = list(tokens)
        if self.bos is None or tokens[:1] == [self.bos]:
            return tokens
        return [self.bos, *tokens]

    def _without_bos(self, tokens: Sequence[int]) -> TokenIds:
        tokens = list(tokens)
        return tokens[1:] if self.bos is not None and tokens[:1] == [self.bos] else tokens

    def _cut(self, tokens: Sequence[int]) -> list[TokenIds]:
        size = self.config.chunk_size
        return [list(tokens[start : start + size]) for start in range(0, len(tokens), size)]
