"""What an answer owes to the text: its log-probability again, with parts of the text left out.

A part is a `Passage`: some tokens of a chunk, or all of them. What leaving it out means is defined by each method:

    focus             a whole chunk: its slot of the memory is hidden; all other slots keep their positions
                      a part of a chunk: the chunk is read anew without these tokens, and fills the same slot
    plain, select     the tokens are hidden in the row that the answer was read from; all others keep their positions
    experts           a whole chunk: its row takes no part; a part of a chunk: hidden in its row, as above

The answer's tokens are given, so that they pass the model together and none is generated again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from focus_core.cache.chunks import ChunkSet
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenIds


@dataclass(frozen=True, order=True)
class Passage:
    """The tokens `start` to `stop - 1` of a chunk, counted in its `token_ids`."""

    chunk: int
    start: int
    stop: int


def whole_chunk(chunks: Sequence[Chunk], number: int) -> Passage:
    """One of these chunks as a passage."""
    return Passage(number, 0, len(chunks[number].token_ids))


def whole_chunks(chunks: Sequence[Chunk]) -> list[Passage]:
    """Each of them."""
    return [whole_chunk(chunks, number) for number in range(len(chunks))]


LeftOut = frozenset[Passage]  # what is left out together; nothing, if it is empty
NOTHING: LeftOut = frozenset()

ReadChunks = Callable[[], ChunkSet]  # gives the chunks of a question, and prefills those that are not there


@dataclass(frozen=True)
class Cost:
    """What passes the model.

    Attributes:
        passes: of the model
        tokens: in all of them, padding not counted
    """

    passes: int = 0
    tokens: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.passes + other.passes, self.tokens + other.tokens)


NO_COST = Cost()


class Evidence(Protocol):
    """A finished answer, of which parts of the text can be left out."""

    @property
    def attended(self) -> Tensor | None:
        """How much each token of the answer attends to each chunk, `[answer, chunks]`, as `live_evidence` has it.

        There once `log_probs` was asked with nothing left out; `None` where the method or the model does not tell.
        """

    def begin(self) -> None:
        """Call for the chunks, if they are needed: before the passes, because it may wait for those of others."""

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        """What `log_probs` of these will take, without the prefill of chunks that have been evicted."""

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        """Log-probability (nats) of tokens of the answer without each of these, `[left_out, tokens]`, float32.

        The model's own, before sampling options. Each entry depends on its own passages alone.

        Args:
            tokens: numbers of the answer's tokens, rising; by default all of them
        """


Item = TypeVar("Item")


def groups(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Consecutive items, at most `size` together."""
    return (items[start : start + size] for start in range(0, len(items), max(size, 1)))


def tokens_left(token_ids: Sequence[int], left_out: Collection[Passage]) -> TokenIds:
    """A chunk's tokens without some passages of it."""
    if any(passage.start == 0 and passage.stop >= len(token_ids) for passage in left_out):
        return []
    gone = {token for passage in left_out for token in range(passage.start, passage.stop)}
    return [token for place, token in enumerate(token_ids) if place not in gone]


def by_chunk(left_out: LeftOut) -> dict[int, LeftOut]:
    """The passages of each chunk that has any."""
    found: dict[int, set[Passage]] = {}
    for passage in left_out:
        found.setdefault(passage.chunk, set()).add(passage)
    return {chunk: frozenset(passages) for chunk, passages in found.items()}
