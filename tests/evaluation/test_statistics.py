"""Intervals and tests against values from tables or by hand."""

from __future__ import annotations

import pytest

from focus_core.evaluation.statistics import bootstrap, mcnemar, wilson


def test_the_interval_of_a_share() -> None:
    assert wilson(78, 100) == pytest.approx((0.6892, 0.8503), abs=1e-3)
    assert wilson(0, 20)[0] == 0.0
    assert wilson(100, 100)[1] <= 1.0
    assert wilson(100, 100)[0] == pytest.approx(0.963, abs=1e-3)


def test_mcnemar_by_hand() -> None:
    assert mcnemar(1, 5) == pytest.approx(2 * (1 + 6) / 2**6)
    assert mcnemar(5, 1) == mcnemar(1, 5)
    assert mcnemar(0, 22) == pytest.approx(2 / 2**22)
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(3, 3) == 1.0
    assert mcnemar(3000, 3200) == pytest.approx(0.0115, abs=2e-3)  # no overflow


def test_the_bootstrap_covers_the_mean_as_the_normal_approximation_does() -> None:
    values = [1.0] * 60 + [0.0] * 40
    low, high = bootstrap(values)
    assert (low, high) == pytest.approx((0.6 - 0.096, 0.6 + 0.096), abs=0.011)
    assert bootstrap(values) == (low, high)  # seeded
    assert bootstrap(values, seed=1) != (low, high)


def test_no_spread_has_no_interval() -> None:
    assert bootstrap([0.25] * 7) == (0.25, 0.25)
