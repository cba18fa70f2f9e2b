"""The losses of one answer: each computed once, for all of its tokens or for some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from focus_core.engine.sources import NOISE
from focus_core.methods.evidence import NO_COST, NOTHING, Cost, Evidence, LeftOut

_DECISIVE = 0.9  # of what the answer loses without a part: the tokens that hold it tell smaller parts apart

Exclusively = Callable[[Callable[[], Tensor]], Tensor]  # runs passes of the model while no other step runs


@dataclass(eq=False)
class Ledger:
    """Losses of one answer, each computed once.

    Attributes:
        cost: of all that was computed
    """

    evidence: Evidence
    exclusively: Exclusively
    cost: Cost = NO_COST
    _known: dict[LeftOut, Tensor] = field(default_factory=dict)
    _screened: dict[tuple[LeftOut, tuple[int, ...]], Tensor] = field(default_factory=dict)

    def token_losses(self, left_out: Sequence[LeftOut]) -> list[Tensor]:
        """Of each token of the answer, without each of these."""
        new = [one for one in dict.fromkeys([NOTHING, *left_out]) if one not in self._known]
        if new:
            self.cost += self.evidence.cost(new)
            found = self.exclusively(lambda: self.evidence.log_probs(new))
            self._known |= dict(zip(new, found, strict=True))
        return [self._known[NOTHING] - self._known[one] for one in left_out]

    def losses(self, left_out: Sequence[LeftOut]) -> list[float]:
        """Of the whole answer: what its log-probability loses."""
        return [float(loss.sum()) for loss in self.token_losses(left_out)]

    def screened(self, left_out: Sequence[LeftOut], tokens: tuple[int, ...]) -> list[Tensor]:
        """Of some tokens of the answer."""
        new = [one for one in dict.fromkeys(left_out) if one not in self._known and (one, tokens) not in self._screened]
        if new:
            self.cost += self.evidence.cost(new, tokens)
            found = self.exclusively(lambda: self.evidence.log_probs(new, tokens))
            self._screened |= {(one, tokens): of_one for one, of_one in zip(new, found, strict=True)}

        def log_probs(one: LeftOut) -> Tensor:
            known = self._known.get(one)
            return self._screened[one, tokens] if known is None else known[list(tokens)]

        return [log_probs(NOTHING) - log_probs(one) for one in left_out]

    def knows(self, left_out: LeftOut) -> bool:
        """Whether the losses of all tokens without these are there."""
        return left_out in self._known

    @property
    def attended(self) -> Tensor | None:
        """How much each token of the answer attends to each chunk, `[answer, chunks]`; `None` where nothing tells."""
        self.token_losses([NOTHING])
        return self.evidence.attended

    @property
    def log_probs(self) -> Tensor:
        """Of the answer's tokens, with nothing left out."""
        self.token_losses([NOTHING])
        return self._known[NOTHING]


def lost(losses: Tensor, before: Tensor | None = None) -> float:
    """What those tokens lose that lose, nats. What others gain does not count against it.

    A passage makes its own statement of an answer likely, and another passage's statement less likely: in the sum over
    the answer one would hide the other. Losses below `NOISE` do not count, which add up in long answers.

    Args:
        losses: of each token, without something
        before: of each token, without less than that; by default with everything there
    """
    more = losses if before is None else losses - before
    return float(more[more >= NOISE].sum())


def decisive(losses: Tensor) -> tuple[int, ...]:
    """The tokens of an answer that lose most: as few as hold nearly all that is lost."""
    order = losses.argsort(descending=True).tolist()
    held, wanted, chosen = 0.0, _DECISIVE * lost(losses), list[int]()
    for token in order:
        chosen.append(token)
        held += float(losses[token])
        if held >= wanted:
            break
    return tuple(sorted(chosen))
