"""Which of some passages an answer rests on: those it needs, and those that would do by themselves.

    necessity(u)    what its tokens lose without u, all others kept
    sufficiency(u)  what u alone restores of what they lose without all of them

Two passages that say the same hide each other: neither is necessary, and each is sufficient. Of two that are both
needed each is necessary, and neither sufficient. So both are asked; sufficiency only where the necessary ones do not
explain what the answer owes to the passages together. And if the answer stands without the sufficient ones, others have
taken over, which do so together with the rest of the text and not alone: those are asked for next.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from focus_core.engine.ledger import lost
from focus_core.engine.sources import Role
from focus_core.methods.evidence import LeftOut, Passage

TokenLosses = Callable[[Sequence[LeftOut]], list[Tensor]]  # of the answer's tokens without each of these, nats

NOTICEABLE = 1.0  # nats; passages without which an answer's tokens lose less are no sources
_EXPLAINED = 0.5  # of the loss without all passages: if the necessary ones explain so much, no other is looked for
_SUFFICIENT = 0.7  # of the same: what a passage restores that supports the answer by itself
_COMMON = 0.5  # of the passages: what more of them restore is the form of an answer, which any text gives
_FEW = 3  # so many may all say the same
_ALL = 0.9  # of what an answer loses: what a passage restores that tells all of it


@dataclass(frozen=True)
class Member:
    """A passage that an answer rests on.

    Attributes:
        unit: index among the passages that were asked about
        score: its necessity; of a redundant one, given that the passages that say the same are left out
    """

    unit: int
    score: float
    role: Role


@dataclass(frozen=True)
class Support:
    """The passages that an answer rests on, and what it loses without all of these."""

    members: tuple[Member, ...]
    loss: float


class Search(Protocol):
    """The way in which passages that matter are looked for among many."""

    def necessity(self, given: LeftOut) -> Mapping[int, float]:
        """What the answer's tokens lose without each passage that may be necessary, nats, these left out anyway."""

    def alone(self, without_all: Tensor, whole: Tensor, *, told: bool) -> list[int]:
        """The passages that support the answer by themselves, as `sufficient`."""

    def best(self) -> int:
        """The passage without which the answer loses most, where none is necessary or sufficient."""


@dataclass(frozen=True)
class EachPassage:
    """The search that asks about each passage.

    Args:
        given: what is left out anyway
    """

    units: Sequence[Passage]
    given: LeftOut
    losses: TokenLosses

    def necessity(self, given: LeftOut) -> Mapping[int, float]:
        asked = [unit for unit, passage in enumerate(self.units) if passage not in given]
        before, *without = self.losses([given, *(given | {self.units[unit]} for unit in asked)])
        return {unit: lost(loss, before) for unit, loss in zip(asked, without, strict=True)}

    def alone(self, without_all: Tensor, whole: Tensor, *, told: bool) -> list[int]:
        units = range(len(self.units))
        return sufficient(self.units, self.given, without_all, whole, self.losses, units, told=told)

    def best(self) -> int:
        necessity = self.necessity(self.given)
        return max(necessity, key=lambda unit: necessity[unit])


def find_support(
    units: Sequence[Passage], given: LeftOut, search: Search, losses: TokenLosses, *, told: bool = False
) -> Support:
    """The support of an answer among some passages.

    Args:
        given: what is left out anyway
        losses: of the answer's tokens
        told: the passages together explain the answer, so that it is no mere form
    """
    needed = _needed(search, given)
    before, without_all = losses([given, given | frozenset(units)])
    whole = without_all - before
    explained = lost(losses([given | {units[unit] for unit in needed}])[0], before) if needed else 0.0
    alone = [] if explained >= _EXPLAINED * lost(whole) else search.alone(without_all, whole, told=told and not needed)
    if alone:
        alone += _taking_over(units, {*needed, *alone}, given, before, whole, search, losses)
    return _support(units, sorted({*needed, *alone}) or [search.best()], alone, given, losses)


def _needed(search: Search, given: LeftOut) -> list[int]:
    return [unit for unit, loss in search.necessity(given).items() if loss >= NOTICEABLE]


def _taking_over(
    units: Sequence[Passage],
    found: set[int],
    given: LeftOut,
    before: Tensor,
    whole: Tensor,
    search: Search,
    losses: TokenLosses,
) -> list[int]:
    """What stands in for the passages that were found, until the answer loses what it owes to all of them."""
    others = list[int]()
    while True:
        left_out = given | {units[unit] for unit in (*found, *others)}
        (without,) = losses([left_out])
        if lost(without, before) >= _EXPLAINED * lost(whole):
            return others
        more = _needed(search, left_out)
        if not more:
            return others
        others += more


def sufficient(
    units: Sequence[Passage],
    given: LeftOut,
    without_all: Tensor,
    whole: Tensor,
    losses: TokenLosses,
    asked: Sequence[int],
    *,
    told: bool = False,
) -> list[int]:
    """The passages that support the answer by themselves.

    Where nearly any passage would do, that is the form of an answer, and none is named; if the passages are known to
    tell the answer, it is those that restore nearly all of it.

    Args:
        without_all: losses of the tokens without all passages
        whole: what these are more than `given` costs
        asked: those that may
        told: the passages together explain the answer
    """
    if lost(whole) < NOTICEABLE:
        return []
    only = losses([given | (frozenset(units) - {units[unit]}) for unit in asked])
    shares = [restored(without_all - loss, whole) / lost(whole) for loss in only]
    found = [unit for unit, share in zip(asked, shares, strict=True) if share >= _SUFFICIENT]
    if not nearly_any(len(found), len(units)):
        return found
    return [unit for unit, share in zip(asked, shares, strict=True) if share >= _ALL] if told else []


def restoring_a_token(
    units: Sequence[Passage], given: LeftOut, without_all: Tensor, whole: Tensor, losses: TokenLosses
) -> list[int]:
    """The passages that restore by themselves what some token loses: of two statements each restores its own tokens.

    Tokens that nearly any passage restores tell nothing.

    Args:
        without_all: losses of the tokens without all passages
        whole: what these are more than `given` costs
    """
    only = losses([given | (frozenset(units) - {unit}) for unit in units])
    enough = torch.stack([without_all - loss >= _SUFFICIENT * whole for loss in only])  # [passages, tokens]
    enough &= whole >= NOTICEABLE
    telling = torch.tensor([not nearly_any(found, len(units)) for found in enough.sum(0).tolist()])
    return (enough & telling).any(1).nonzero()[:, 0].tolist()


def restored(gained: Tensor, whole: Tensor) -> float:
    """What passages give back of what tokens lose without all of them: to each token at most what it had lost."""
    return float(gained.clamp(min=0).minimum(whole.clamp(min=0)).sum())


def nearly_any(found: int, asked: int) -> bool:
    """Whether so many of the passages restore an answer that its form alone does."""
    return found > max(_FEW, asked * _COMMON)


def _support(
    units: Sequence[Passage], chosen: Sequence[int], alone: Sequence[int], given: LeftOut, losses: TokenLosses
) -> Support:
    """Scores and roles of the passages that were found."""
    together = frozenset(units[unit] for unit in chosen)
    # Of each: the loss without it, the loss without those that do its work, and without these and it.
    rivals = [frozenset(units[other] for other in alone if other != unit) for unit in chosen]
    before, joint, *rest = losses(
        [
            given,
            given | together,
            *(given | {units[unit]} for unit in chosen),
            *(given | others for others in rivals),
            *(given | others | {units[unit]} for unit, others in zip(chosen, rivals, strict=True)),
        ]
    )
    count = len(chosen)
    necessity, without, without_both = ([*rest[part * count : (part + 1) * count]] for part in range(3))
    members = list[Member]()
    redundant = [
        unit in alone and bool(others) and lost(loss, before) < _EXPLAINED * lost(both, other)
        for unit, others, loss, other, both in zip(chosen, rivals, necessity, without, without_both, strict=True)
    ]
    role: Role = "needed" if redundant.count(False) > 1 else "sole"
    for place, unit in enumerate(chosen):
        pair = (without_both[place], without[place]) if redundant[place] else (necessity[place], before)
        members.append(Member(unit, lost(*pair), "redundant" if redundant[place] else role))
    return Support(tuple(sorted(members, key=lambda member: -member.score)), lost(joint, before))
