"""Each option does what its name says, also through the engine; a seed repeats a draw."""

from __future__ import annotations

import pytest
import torch

from focus_core import FocusEngine, UnsupportedModelError
from focus_core.config import SamplingConfig
from focus_core.engine.sampling import Sampler, choose
from focus_core.methods.continuation import continue_tokens
from tests.engines import QUESTION, A, make_engine
from tests.tiny import byte_tokenizer

LOGITS = torch.tensor([2.0, 1.9, 0.0, -1.0, -8.0])
NOTHING_SEEN = torch.tensor([], dtype=torch.long)


def _drawn(seen: torch.Tensor = NOTHING_SEEN, draws: int = 300, **options: float) -> set[int]:
    found: set[int] = set()
    for seed in range(draws):
        sampler = Sampler(SamplingConfig(seed=seed, **options), seen)  # type: ignore[arg-type]
        found |= {*choose([sampler], LOGITS[None])}
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


def test_whole_numbers_are_numbers() -> None:
    """transformers takes 1.0 and refuses 1, and its error would not be one of ours."""
    assert _drawn(temperature=1, top_p=1, min_p=1) == {0}
    assert _drawn(torch.tensor([0]), draws=1, repetition_penalty=5) == {1}


def test_questions_with_other_options_together() -> None:
    """The token of one would be chosen by the options of another."""
    likeliest = Sampler(SamplingConfig(), torch.tensor([0]))
    penalised = Sampler(SamplingConfig(repetition_penalty=5.0), torch.tensor([0]))
    rows = torch.stack([LOGITS, LOGITS])
    assert choose([likeliest, likeliest], rows) == [0, 0]
    assert choose([likeliest, penalised], rows) == [0, 1]


def test_only_tokens_leave_the_device_where_nothing_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The logits of the whole vocabulary would be copied for every token."""

    def copied(logits: torch.Tensor) -> torch.Tensor:
        raise AssertionError("copied")

    monkeypatch.setattr(torch.Tensor, "cpu", copied)
    assert choose([Sampler(SamplingConfig(), NOTHING_SEEN)], LOGITS[None]) == [0]
    with pytest.raises(AssertionError, match="copied"):
        choose([Sampler(SamplingConfig(temperature=1.0), NOTHING_SEEN)], LOGITS[None])


def test_same_seed_same_draws_and_another_seed_others() -> None:
    def draws(seed: int) -> list[int]:
        sampler = Sampler(SamplingConfig(temperature=1.0, seed=seed), NOTHING_SEEN)
        return [sampler.choose(LOGITS) for _ in range(30)]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


NOT_FINITE = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "seed": 1}], ids=["greedy", "drawn"])
def test_a_token_is_never_chosen_from_logits_that_are_not_finite(value: float, drawn: dict[str, float]) -> None:
    """A NaN was the likeliest token in silence, and while drawing an error of torch. Others go on."""
    samplers = [Sampler(SamplingConfig(**drawn), NOTHING_SEEN) for _ in range(2)]  # type: ignore[arg-type]
    damaged = LOGITS.clone()
    damaged[3] = value
    spoiled, token = choose(samplers, torch.stack([damaged, LOGITS]))
    assert isinstance(spoiled, UnsupportedModelError)
    assert "logits are not finite" in str(spoiled)
    assert isinstance(token, int)


def test_tokens_that_a_model_rules_out_are_no_damage() -> None:
    """Some set the logits of unused tokens to minus infinity."""
    ruled_out = LOGITS.clone()
    ruled_out[0] = -float("inf")
    assert choose([Sampler(SamplingConfig(), NOTHING_SEEN)], ruled_out[None]) == [1]
    assert choose([Sampler(SamplingConfig(temperature=1.0, top_k=1), NOTHING_SEEN)], ruled_out[None]) == [1]


# --- through the engine -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine()


@pytest.mark.parametrize("method", ["focus", "plain"])
@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.0, "seed": 1}], ids=["greedy", "drawn"])
def test_damaged_weights_give_an_error_and_no_answer(method: str, drawn: dict[str, float]) -> None:
    damaged = make_engine()
    damaged.focus.model.lm_head.weight.data[5, 3] = float("nan")
    with pytest.raises(UnsupportedModelError, match="logits are not finite"):
        damaged.generate(QUESTION, [A], max_new_tokens=2, method=method, **drawn)
    with pytest.raises(UnsupportedModelError, match="logits are not finite"):
        continue_tokens(damaged.focus, [1, 5, 7], max_new_tokens=1)
    assert damaged.shared.scheduler.idle


@pytest.mark.parametrize("only_the_likeliest", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_limits_reach_the_sampler(engine: FocusEngine, only_the_likeliest: dict[str, float]) -> None:
    def answer(**options: float) -> str:
        return engine.generate(QUESTION, [A], max_new_tokens=12, **options).text

    drawn = {"temperature": 1.5, "seed": 1}
    assert answer(**drawn) != answer()
    assert answer(**drawn, **only_the_likeliest) == answer()


@pytest.mark.parametrize("drawn", [{}, {"temperature": 1.5, "seed": 1}], ids=["greedy", "drawn"])
def test_repetition_penalty_reaches_the_sampler(engine: FocusEngine, drawn: dict[str, float]) -> None:
    def answer(penalty: float) -> str:
        return engine.generate(QUESTION, [A], max_new_tokens=12, repetition_penalty=penalty, **drawn).text

    assert answer(1.0) == engine.generate(QUESTION, [A], max_new_tokens=12, **drawn).text
    assert answer(20.0) != answer(1.0)


def test_each_of_several_end_of_sequence_ids_ends_an_answer() -> None:
    """Models with a turn of their own (Llama 3, Gemma) list two; with one of them lost, answers would run on."""
    made = make_engine(plain_up_to=400)
    questions = ["Why?", "Where is it?", "And then"]
    ids = [[1, *made.tokenize(question)] for question in questions]
    first = [int(continue_tokens(made.focus, row, max_new_tokens=1).tokens[0]) for row in ids]
    assert len(set(first)) == 3
    assert made.generate(questions[2], max_new_tokens=1, chat_template=False).finish_reason == "length"
    made.focus.model.generation_config.eos_token_id = first[:2]
    engine = FocusEngine.from_model(made.focus.model, byte_tokenizer())
    answers = engine.generate(questions, max_new_tokens=1, chat_template=False)
    assert [answer.finish_reason for answer in answers] == ["stop", "stop", "length"]
    assert [answer.text for answer in answers[:2]] == ["", ""]
