"""How several rows become one distribution, against a row that has no documents (the amateur).

PCED (arXiv 2601.08670):
    once:       p = softmax(a), q = softmax(e_k), m = (p + q) / 2
                β_k = clamp((p log(p/m) + q log(q/m)) / 2, 0, 1)        # of each vocabulary entry
    each step:  c_k = (1 + β_k) e_k − β_k a
                k*  = argmax_k (max_v c_k[v] + γ log r_k)               # r_k: relevance of the chunk, 0 to 1

NBCE (github.com/bojone/NBCE): k* is the row of the smallest entropy, with a bonus η for the row of the step before, and
    c = (1 + β) log p_k − β log p_amateur, where the amateur's nucleus has the token, else log p_k
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from focus_core.methods.decoder import Decoder

DEFAULT_MIXING = "pced"
_GAMMA = 2.5  # weight of relevance, as in the published code of PCED
_BETA = 0.25  # of the amateur, in NBCE
_ETA = 0.1  # nats of entropy that the row of the step before is given, in NBCE
_NUCLEUS = 0.95  # of each row's probability, in NBCE


class Mixing(Protocol):
    """How rows become one distribution. Holds what it remembers between steps, for each question.

    Attributes:
        winners: `[questions]`, the row that the newest logits are of
    """

    winners: Tensor

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        """`[questions, experts, vocab]` and `[questions, vocab]` to next-token logits `[questions, vocab]`."""

    def keep(self, questions: Sequence[int]) -> None: ...

    def join(self, other: Any) -> None: ...


class Pced:
    """Parallel context-of-experts decoding.

    Args:
        relevance: log r_k `[questions, experts]`
    """

    winners: Tensor

    def __init__(self, relevance: Tensor) -> None:
        self._relevance = relevance
        self._contrast: Tensor | None = None

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        if self._contrast is None:
            self._contrast = contrast_weights(experts, amateur[:, None])
        contrasted = (1 + self._contrast) * experts - self._contrast * amateur[:, None]
        best = (contrasted.amax(-1) + _GAMMA * self._relevance).argmax(1)
        self.winners = best
        return contrasted[torch.arange(len(best), device=best.device), best]

    def keep(self, questions: Sequence[int]) -> None:
        self._relevance = self._relevance[list(questions)]
        self._contrast = None if self._contrast is None else self._contrast[list(questions)]

    def join(self, other: Pced) -> None:
        self._relevance = torch.cat([self._relevance, other._relevance])
        if self._contrast is not None and other._contrast is not None:  # with a single expert nothing is mixed
            self._contrast = torch.cat([self._contrast, other._contrast])


class Nbce:
    """Naive Bayes-based context extension, with pooling by entropy."""

    def __init__(self, relevance: Tensor) -> None:
        self.winners = torch.full_like(relevance[:, 0], -1, dtype=torch.long)  # of the step before; -1: none yet

    def mix(self, experts: Tensor, amateur: Tensor) -> Tensor:
        log_probs, absent = nucleus(experts.log_softmax(-1)), nucleus(amateur.log_softmax(-1))
        entropy = -(log_probs.exp() * log_probs.clamp(min=torch.finfo(log_probs.dtype).min)).sum(-1)
        rows = torch.arange(entropy.shape[1], device=entropy.device)
        best = (entropy - _ETA * (rows == self.winners[:, None])).argmin(1)
        self.winners = best
        chosen = log_probs[torch.arange(len(best), device=best.device), best]
        return torch.where(absent.isfinite(), (1 + _BETA) * chosen - _BETA * absent, chosen)

    def keep(self, questions: Sequence[int]) -> None:
        self.winners = self.winners[list(questions)]

    def join(self, other: Nbce) -> None:
        self.winners = torch.cat([self.winners, other.winners])


MIXINGS: dict[str, type[Pced] | type[Nbce]] = {"pced": Pced, "nbce": Nbce}


def contrast_weights(experts: Tensor, amateur: Tensor) -> Tensor:
    """β of PCED: what each vocabulary entry adds to the Jensen–Shannon divergence of expert and amateur."""
    p, q = amateur.softmax(-1), experts.softmax(-1)
    middle = ((p + q) / 2).log()
    return (0.5 * (_weighted_log(p, middle) + _weighted_log(q, middle))).clamp(0, 1)


def _weighted_log(p: Tensor, other: Tensor) -> Tensor:
    """p log(p / other), 0 where p is."""
    return torch.where(p > 0, p * (p.log() - other), 0.0)


def nucleus(log_probs: Tensor) -> Tensor:
    """Log-probabilities of the likeliest tokens that make up `_NUCLEUS`; the others get −∞."""
    ordered, index = log_probs.sort(-1, descending=True)
    before = ordered.exp().cumsum(-1) - ordered.exp()
    return log_probs.masked_fill((before >= _NUCLEUS).gather(-1, index.argsort(-1)), -torch.inf)


def mixing_of(decoder: Decoder, relevance: Sequence[float]) -> Mixing:
    """The configured way to mix the rows of one question; `relevance` is log r_k of each."""
    made = MIXINGS[decoder.config.mixing or DEFAULT_MIXING]
    return made(torch.tensor([list(relevance)], device=decoder.device))
