"""Many chunks: they are left out in groups, and only the groups that matter are opened.

    a group      takes one row of the local context for each token of the answer, whatever the number of its chunks
    opening it   on those tokens alone that lose most without it: the chunk that they attend to most, and all others
                 together; where these matter too, their halves, and theirs, down to single chunks

A chunk that is found is then left out by itself, for all tokens. The others of its group are left out together again,
so that every number is the loss without exactly the chunks that it names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from math import ceil, sqrt

from torch import Tensor

from focus_core.engine.ledger import Ledger, decisive, lost
from focus_core.engine.support import NOTICEABLE, nearly_any, restored, sufficient
from focus_core.methods.evidence import NOTHING, Evidence, LeftOut, Passage

EACH = 24  # chunks that are left out one by one: as many tokens as the groups of a hundred take (docs/sources.md)
_ROOTS = (
    3.0  # chunks of a group, in square roots of their number: a group costs more than to open one (docs/sources.md)
)
_RESTORED = 0.5  # of what the decisive tokens lose without all chunks; a part that restores less is not opened

Group = tuple[int, ...]  # chunks, rising
Values = Callable[[Sequence[Group]], list[float]]


def chunk_groups(
    units: Sequence[Passage], documents: Sequence[tuple[int, ...]], evidence: Evidence, *, every_chunk: bool
) -> list[Group]:
    """What is left out together at first: groups, or each chunk by itself where groups would save less than half.

    Args:
        units: every chunk, whole
        documents: of each chunk the documents in it
    """
    each: list[Group] = [(number,) for number in range(len(units))]
    if every_chunk or len(units) <= EACH:
        return each
    groups = list(_grouped(documents, ceil(_ROOTS * sqrt(len(units)))))
    saved, cost = (evidence.cost(first_parts(units, kind)).tokens for kind in (groups, each))
    return groups if 2 * saved <= cost else each


def first_parts(units: Sequence[Passage], groups: Sequence[Group]) -> list[LeftOut]:
    """What is left out of every answer: nothing, each group, all chunks."""
    return [NOTHING, *(_part(units, group) for group in groups), frozenset(units)]


def _grouped(documents: Sequence[tuple[int, ...]], size: int) -> Iterator[Group]:
    """Consecutive chunks, at most `size` together. Only documents of less than half of that share a group."""
    small: Group = ()
    for _, numbers in groupby(range(len(documents)), key=lambda number: documents[number]):
        run = tuple(numbers)
        if small and (2 * len(run) >= size or len(small) + len(run) > size):
            yield small
            small = ()
        if 2 * len(run) < size:
            small += run
            continue
        parts = ceil(len(run) / size)
        borders = [part * len(run) // parts for part in range(parts + 1)]
        yield from (run[start:stop] for start, stop in pairwise(borders))
    if small:
        yield small


@dataclass(frozen=True, eq=False)
class GroupSearch:
    """The chunks of one answer that matter, looked for in groups.

    Args:
        units: every chunk, whole
        groups: of the chunks' numbers; groups of one chunk make this the search chunk by chunk
    """

    units: Sequence[Passage]
    groups: Sequence[Group]
    ledger: Ledger

    def necessity(self, given: LeftOut) -> dict[int, float]:
        """What the answer's tokens lose without each chunk that may be necessary, these left out anyway."""
        rests = [tuple(chunk for chunk in group if self.units[chunk] not in given) for group in self.groups]
        rests = [rest for rest in rests if rest]
        before, *of_rests = self.ledger.token_losses([given, *(given | _part(self.units, rest) for rest in rests)])
        found = list[int]()
        for rest, losses in zip(rests, of_rests, strict=True):
            if len(rest) == 1 or lost(losses, before) >= NOTICEABLE:
                found += self._opened([rest], self._lost_by(losses - before, given), NOTICEABLE / 2, losses - before)
        of_chunks = self.ledger.token_losses([given | {self.units[chunk]} for chunk in found])
        return {chunk: lost(losses, before) for chunk, losses in zip(found, of_chunks, strict=True)}

    def best(self) -> int:
        """The chunk to which the group with the highest loss leads, and the half with the highest, and so on."""
        losses = self._of_groups()
        highest = max(range(len(self.groups)), key=lambda number: lost(losses[number]))
        group, lost_by = self.groups[highest], self._lost_by(losses[highest])
        while len(group) > 1:
            halves = _halves(group)
            group = max(zip(lost_by(halves), halves, strict=True))[1]
        return group[0]

    def alone(self, without_all: Tensor, whole: Tensor, *, told: bool) -> list[int]:
        """The chunks that support the answer by themselves, as `sufficient`."""
        asked: Sequence[int] = range(len(self.units))
        if lost(whole) >= NOTICEABLE and len(self.groups) < len(self.units):
            asked = self._restoring(told=told)
        return sufficient(self.units, NOTHING, without_all, whole, self.ledger.token_losses, asked, told=told)

    def left_together(self) -> list[tuple[Group, Tensor]]:
        """Chunks whose own losses are not known, in their groups, with what each token loses without all of these."""
        rests = [tuple(chunk for chunk in group if not self.is_known(chunk)) for group in self.groups]
        rests = [rest for rest in rests if rest]
        losses = self.ledger.token_losses([_part(self.units, rest) for rest in rests])
        return [(rest, loss) for rest, loss in zip(rests, losses, strict=True) if len(rest) > 1]

    def is_known(self, chunk: int) -> bool:
        """Whether the chunk has been left out by itself, for all tokens."""
        return self.ledger.knows(frozenset({self.units[chunk]}))

    def _of_groups(self) -> list[Tensor]:
        """What each token loses without each group."""
        return self.ledger.token_losses(first_parts(self.units, self.groups))[1:-1]

    def _lost_by(self, losses: Tensor, given: LeftOut = NOTHING) -> Values:
        """What is lost without parts of a group, of those tokens that lose most without it.

        Args:
            given: what is left out anyway
        """
        tokens = decisive(losses)

        def values(parts: Sequence[Group]) -> list[float]:
            left_out = [given, *(given | _part(self.units, part) for part in parts)]
            before, *without = self.ledger.screened(left_out, tokens)
            return [lost(one, before) for one in without]

        return values

    def _restoring(self, *, told: bool) -> Sequence[int]:
        """Chunks that may support the answer by themselves."""
        everything = frozenset(self.units)
        (losses,) = self.ledger.token_losses([everything])
        tokens = decisive(losses)
        (without_all,) = self.ledger.screened([everything], tokens)

        def restored_by(parts: Sequence[Group]) -> list[float]:
            left_out = [everything - _part(self.units, part) for part in parts]
            return [restored(without_all - loss, without_all) for loss in self.ledger.screened(left_out, tokens)]

        least = _RESTORED * lost(without_all)
        groups = [group for group, value in zip(self.groups, restored_by(self.groups), strict=True) if value >= least]
        if nearly_any(len(groups), len(self.groups)) and not told:
            # Either any text restores as much, or groups hold several chunks that say the same: one of each tells.
            drawn = restored_by([(group[len(group) // 2],) for group in groups])
            if nearly_any(sum(value >= least for value in drawn), len(drawn)):
                return []
        return self._opened(groups, restored_by, least, losses)

    def _opened(self, groups: Sequence[Group], values: Values, least: float, losses: Tensor) -> list[int]:
        """The chunks of these groups that may have such a value.

        Of each group that is the chunk that is attended to most, where the method tells; of the others those to which
        halves lead, if they have the value together.

        Args:
            losses: of each token, which these chunks are to explain
        """
        attended, large = self.ledger.attended, [group for group in groups if len(group) > 1]
        if attended is None or not large:
            return halved(groups, values, least)
        draws = (losses.clamp(min=0) @ attended).tolist()
        first = [max(group, key=draws.__getitem__) for group in large]
        rests = [tuple(chunk for chunk in group if chunk != best) for group, best in zip(large, first, strict=True)]
        left = [rest for rest, value in zip(rests, values(rests), strict=True) if value >= least]
        small = [group for group in groups if len(group) == 1]
        return sorted(first + halved([*small, *left], values, least))


def halved(groups: Sequence[Group], values: Values, least: float) -> list[int]:
    """The members to which halves of such a value lead."""
    found = [group[0] for group in groups if len(group) == 1]
    opened = [group for group in groups if len(group) > 1]
    while opened:
        halves = [half for group in opened for half in _halves(group)]
        kept = [half for half, value in zip(halves, values(halves), strict=True) if value >= least]
        found += [half[0] for half in kept if len(half) == 1]
        opened = [half for half in kept if len(half) > 1]
    return sorted(found)


def _halves(group: Group) -> list[Group]:
    middle = len(group) // 2
    return [group[:middle], group[middle:]]


def _part(units: Sequence[Passage], group: Group) -> LeftOut:
    return frozenset(units[chunk] for chunk in group)
