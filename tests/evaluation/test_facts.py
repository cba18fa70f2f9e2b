"""Facts, keys and look-alikes: distinct at any length."""

from __future__ import annotations

import random

import pytest

from focus_core import ConfigError
from focus_core.evaluation import facts


@pytest.mark.parametrize("count", [8, 400, 5000])
@pytest.mark.parametrize("seed", range(8))
def test_keys_are_distinct_at_any_length(seed: int, count: int) -> None:
    lines = facts.key_values(random.Random(seed), count)
    assert len({fact.entity for fact in lines}) == len(lines) == count


def test_more_keys_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="2000000 keys"):
        facts.key_values(random.Random(0), 2_000_000)


def test_look_alikes_share_something_and_are_never_the_fact_itself() -> None:
    fact = facts.make_fact(random.Random(3))
    others = facts.distractors(random.Random(4), fact, 20)
    assert len({(other.attribute, other.entity) for other in [fact, *others]}) == 21
