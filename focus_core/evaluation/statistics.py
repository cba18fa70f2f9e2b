"""What chance could have done: intervals of shares and of differences, and a test for pairs."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

RESAMPLES = 10_000
_RESAMPLES_AT_ONCE = 500  # bounds the memory


def wilson(right: float, trials: int) -> tuple[float, float]:
    """95 % interval of a share: (0.70, 0.85) for 78 of 100."""
    z, share = 1.96, right / trials
    middle = share + z * z / (2 * trials)
    spread = z * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    low, high = ((middle + side) / (1 + z * z / trials) for side in (-spread, spread))
    return max(low, 0.0), min(high, 1.0)  # rounding may lead beyond


def bootstrap(values: Sequence[float], *, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """95 % percentile interval of the mean (Efron, 1979).

    For a paired comparison, `values` are the differences between two contenders, question by question.
    """
    rng, drawn = np.random.default_rng(seed), np.asarray(values, dtype=np.float64)
    means = [
        drawn[rng.integers(len(drawn), size=(min(_RESAMPLES_AT_ONCE, resamples - start), len(drawn)))].mean(axis=1)
        for start in range(0, resamples, _RESAMPLES_AT_ONCE)
    ]
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return float(low), float(high)


def mcnemar(only_one: int, only_other: int) -> float:
    """Two-sided p of McNemar's exact test.

    Args:
        only_one: questions that only the first contender answers right
        only_other: questions that only the second one does
    """
    discordant = only_one + only_other
    tail, ways = 0, 1  # ways: discordant over count
    for count in range(min(only_one, only_other) + 1):
        tail += ways
        ways = ways * (discordant - count) // (count + 1)
    return min(1.0, 2 * tail / 2**discordant)
