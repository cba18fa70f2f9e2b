"""Each option does what its name says; a seed repeats a draw."""

from __future__ import annotations

import torch

from focus_core.config import SamplingConfig
from focus_core.sampling import Sampler

LOGITS = torch.tensor([2.0, 1.9, 0.0, -1.0, -8.0])
NOTHING_SEEN = torch.tensor([], dtype=torch.long)


def _drawn(seen: torch.Tensor = NOTHING_SEEN, draws: int = 300, **options: float) -> set[int]:
    found = set()
    for seed in range(draws):
        found.add(Sampler(SamplingConfig(seed=seed, **options), seen).choose(LOGITS))  # type: ignore[arg-type]
    return found


def test_temperature_zero_is_greedy() -> None:
    assert _drawn(draws=5) == {0}


def test_without_limits_unlikely_tokens_are_drawn_too() -> None:
    assert _drawn(temperature=1.5) >= {0, 1, 2, 3}


def test_top_k_top_p_and_min_p_cut_the_tail() -> None:
    assert _drawn(temperature=1.0, top_k=2) == {0, 1}
    assert _drawn(temperature=1.0, top_p=0.5) == {0, 1}
    assert _drawn(temperature=1.0, min_p=0.5) == {0, 1}


def test_repetition_penalty_counts_local_context_and_answer() -> None:
    sampler = Sampler(SamplingConfig(repetition_penalty=5.0), torch.tensor([0]))
    # 0 is in the local context, so 1 is next; then both are penalised alike and 0 leads again.
    assert [sampler.choose(LOGITS), sampler.choose(LOGITS)] == [1, 0]
    assert Sampler(SamplingConfig(), torch.tensor([0])).choose(LOGITS) == 0


def test_same_seed_same_draws_and_another_seed_others() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed), NOTHING_SEEN)
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)
