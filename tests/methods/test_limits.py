"""What does not fit the window is refused before any work, with both numbers; what just fits is answered."""

from __future__ import annotations

import pytest
import torch

from focus_core.text.chunking import TextLayout
from focus_core.config import FocusConfig, ResolvedConfig
from focus_core.errors import ContextOverflowError
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import check_plain_room, check_room, make_plan
from tests.cases import assert_equal_logits
from tests.model_zoo import BOS, build, random_projections, random_tokens
from tests.reference import Reference

CONFIG: ResolvedConfig = FocusConfig(chunk_size=30, local_window=30, dynamic_prompt=16).resolve(64)


def test_a_row_that_just_fits() -> None:
    """The last usable position would be given away."""
    check_room(CONFIG, chunk_lengths=[10, 31, 20], prompt=17, local=5, new_tokens=64 - 31 - 17)


def test_a_row_one_token_too_long() -> None:
    """The candidate would stand behind the window, where the model never learned positions."""
    with pytest.raises(ContextOverflowError) as raised:
        check_room(CONFIG, chunk_lengths=[10, 31, 20], prompt=17, local=5, new_tokens=64 - 31 - 17 + 1)
    message = str(raised.value)
    for part in ("chunk of 31", "prompt of 17", "max_new_tokens=17", "need 65", "64 positions"):
        assert part in message
    assert "Lower max_new_tokens to 16" in message


def test_a_memory_that_just_fits() -> None:
    """The last usable slot would be given away."""
    check_room(CONFIG, chunk_lengths=[5] * 30, prompt=6, local=31, new_tokens=3)


def test_a_memory_one_slot_too_long() -> None:
    """The answer would run behind the window."""
    with pytest.raises(ContextOverflowError) as raised:
        check_room(CONFIG, chunk_lengths=[5] * 31, prompt=6, local=31, new_tokens=3)
    message = str(raised.value)
    for part in ("31 chunks", "local context of 31", "max_new_tokens=3", "need 65", "64 positions", "30 chunks fit"):
        assert part in message
    assert "about 900 tokens" in message  # 30 chunks of 30
    assert "chunk_size (now 30)" in message


def test_a_local_context_that_fills_the_window() -> None:
    """A negative number of chunks would be said to fit."""
    with pytest.raises(ContextOverflowError, match=r"of 70 tokens .* leave no room for a memory: .* 64 positions"):
        check_room(CONFIG, chunk_lengths=[5], prompt=6, local=70, new_tokens=3)
    with pytest.raises(ContextOverflowError, match=r"Lower max_new_tokens to 0,"):
        check_room(CONFIG, chunk_lengths=[60], prompt=6, local=5, new_tokens=3)


def test_a_ceiling_for_the_plain_model_leaves_room_for_an_answer() -> None:
    """Nobody said how long the answer may be, and it would have been cut off after two tokens."""
    config = FocusConfig(chunk_size=20, local_window=30, dynamic_prompt=8, plain_up_to=63).resolve(64)
    plan = make_plan(TextLayout(config, bos=1), list(range(2, 63)))
    assert plan.chunks
    assert plan.new_tokens >= config.expected_answer
    assert make_plan(TextLayout(config, bos=1), list(range(2, 63)), new_tokens=2).chunks == []


def test_what_cannot_help_is_not_advised() -> None:
    with pytest.raises(ContextOverflowError) as raised:
        check_plain_room(CONFIG, prompt=5, new_tokens=1000)
    assert "Lower max_new_tokens to 59" in str(raised.value)
    assert "documents" not in str(raised.value)
    with pytest.raises(ContextOverflowError, match=r"\. Hand the text over as documents") as raised:
        check_plain_room(CONFIG, prompt=70, new_tokens=1000)
    assert "Lower" not in str(raised.value)
    with pytest.raises(ContextOverflowError) as raised:
        check_plain_room(CONFIG, prompt=64, new_tokens=1)
    assert "Lower" not in str(raised.value)


@pytest.mark.parametrize(
    ("chunks", "local", "room"), [(1, 3, 64 - 31 - 4), (40, 3, 64 - 40 - 4), (20, 30, 64 - 20 - 31)]
)
def test_an_answer_of_default_length_takes_what_the_window_leaves(chunks: int, local: int, room: int) -> None:
    """Of a row and of the local context behind the memory, whichever leaves less."""
    config = FocusConfig(chunk_size=30, local_window=30, dynamic_prompt=3, plain_up_to=0).resolve(64)
    documents = [[5] * (30 if chunks == 1 else 1) for _ in range(chunks)]
    assert make_plan(TextLayout(config, bos=1), [1, *range(5, 5 + local)], documents).new_tokens == room


def test_no_room_for_an_answer_of_default_length() -> None:
    """The message would speak of a negative number of tokens."""
    config = FocusConfig(chunk_size=30, local_window=30, dynamic_prompt=3, plain_up_to=0).resolve(64)
    with pytest.raises(ContextOverflowError, match="max_new_tokens=1 "):
        make_plan(TextLayout(config, bos=1), [1, 5, 6], [[5]] * 70)


def test_plain_room() -> None:
    """The same borders for the plain model."""
    check_plain_room(CONFIG, prompt=60, new_tokens=4)
    with pytest.raises(ContextOverflowError) as raised:
        check_plain_room(CONFIG, prompt=60, new_tokens=5)
    message = str(raised.value)
    for part in ("60 tokens", "max_new_tokens=5", "together 65", "64 positions", "max_new_tokens to 4", "documents"):
        assert part in message


@pytest.mark.parametrize("limit", ["row", "memory"])
def test_the_last_position_is_answered_and_the_next_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check would not agree with what a pass really needs, or come after the work."""
    model = build("mistral", sliding_window=64)  # behind this window a wrong answer would show
    projections = random_projections(model)
    chunk_size, local_window, chunks = {"row": (40, 13, 2), "memory": (4, 20, 36)}[limit]
    config = FocusConfig(chunk_size=chunk_size, local_window=local_window, plain_up_to=0, dynamic_prompt=13)
    focus = FocusModel(model, projections, config=config)
    text = random_tokens(chunks * chunk_size + local_window, seed=4)
    # A BOS, 40 tokens, a BOS and 13 tokens; or 36 slots, a BOS and 20 tokens.
    room = {"row": 64 - 41 - 14, "memory": 64 - 36 - 21}[limit]
    generation = focus.generate(text, max_new_tokens=room, return_logits=True)
    pieces = [[BOS, *text[i * chunk_size : (i + 1) * chunk_size]] for i in range(chunks)]
    prompt, local = [BOS, *text[-focus.config.dynamic_prompt :]], [BOS, *text[-local_window:]]
    # Behind the last generated token, which stands at the last position of the window.
    wanted = Reference(model, projections).logits(pieces, prompt, local, generation.tokens.tolist())
    assert generation.logits is not None
    assert_equal_logits(generation.logits[-1], wanted)

    def no_work(*_: object) -> None:
        raise AssertionError("a pass ran before the limits were checked")

    monkeypatch.setattr(torch.nn.Module, "__call__", no_work)
    with pytest.raises(ContextOverflowError):
        focus.generate(text, max_new_tokens=room + 1)
