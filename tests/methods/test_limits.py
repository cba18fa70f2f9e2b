"""What does not fit the window is refused before any work, with both numbers; what just fits is answered."""

from __future__ import annotations

import pytest
import torch

from focus_core.config import FocusConfig, ResolvedConfig
from focus_core.engine.planning import Planner
from focus_core.errors import ConfigError, ContextOverflowError
from focus_core.methods.continuation import continue_tokens
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import (
    FocusLimits,
    Lengths,
    PlainLimits,
    RowLimits,
    check_sizes,
    expected_answer,
    fits_window,
)
from focus_core.text.layout import Layout
from tests.cases import assert_equal_logits
from tests.model_zoo import BOS, build, random_projections, random_tokens
from tests.reference import Reference

CONFIG: ResolvedConfig = FocusConfig(chunk_size=30, local_window=30, dynamic_prompt=16).resolve(64)


def _focus(chunks: list[int], prompt: int, local: int) -> FocusLimits:
    return FocusLimits(CONFIG, Lengths.of(chunks, prompt, local, whole=0))


def _plain(whole: int) -> PlainLimits:
    return PlainLimits(CONFIG, Lengths.of((), 0, 0, whole))


def _row(longest_chunk: int, *, chunks: int = 3, local: int = 16, rows: int = 0) -> RowLimits:
    return RowLimits(
        CONFIG, Lengths(chunks, longest_chunk, chunks * longest_chunk, 12, local, 0, before=4, after=12), rows
    )


def _planner(**config: int | None) -> Planner:
    focus = FocusModel(build("llama"), config=FocusConfig(window=64, **config))  # type: ignore[arg-type]
    focus.trained = True
    return Planner(focus, Layout(focus.config, bos=1), "auto", str)


def test_a_row_that_just_fits() -> None:
    """The last usable position would be given away."""
    limits = _focus([10, 31, 20], 17, 5)
    limits.check(64 - 31 - 17)
    assert limits.positions_left == 64 - 31 - 17


def test_a_row_one_token_too_long() -> None:
    """The candidate would stand beyond the window, where the model never learned positions."""
    with pytest.raises(ContextOverflowError) as raised:
        _focus([10, 31, 20], 17, 5).check(64 - 31 - 17 + 1)
    message = str(raised.value)
    for part in ("chunk of 31", "prompt of 17", "max_new_tokens=17", "need 65", "64 positions"):
        assert part in message
    assert "Lower max_new_tokens to 16" in message


def test_a_memory_that_just_fits() -> None:
    """The last usable slot would be given away."""
    _focus([5] * 30, 6, 31).check(3)


def test_a_memory_one_slot_too_long() -> None:
    """The answer would run beyond the window."""
    with pytest.raises(ContextOverflowError) as raised:
        _focus([5] * 31, 6, 31).check(3)
    message = str(raised.value)
    for part in ("31 chunks", "local context of 31", "max_new_tokens=3", "need 65", "64 positions", "30 chunks fit"):
        assert part in message
    assert "about 900 tokens" in message  # 30 chunks of 30
    assert "chunk_size (now 30)" in message


def test_small_documents_that_overflow_may_share_chunks() -> None:
    """2,500 tickets take a slot each; a larger chunk_size would not help."""
    with pytest.raises(ContextOverflowError, match=r"Let small documents share chunks \(pack=True\), hand over fewer"):
        _focus([5] * 70, 6, 5).check(3)
    with pytest.raises(ContextOverflowError) as raised:
        _focus([31] * 70, 6, 5).check(3)
    assert "pack" not in str(raised.value)


def test_a_local_context_that_fills_the_window() -> None:
    """A negative number of chunks would be said to fit."""
    with pytest.raises(ContextOverflowError, match=r"of 70 tokens .* leave no positions for a memory: .* 64 positions"):
        _focus([5], 6, 70).check(3)
    with pytest.raises(ContextOverflowError, match=r"Lower max_new_tokens to 0,"):
        _focus([60], 6, 5).check(3)


@pytest.mark.parametrize("chunks", [1, 10_000])
@pytest.mark.parametrize("rows", [0, 8], ids=["select", "experts"])
def test_a_chunk_of_full_size_in_a_row_that_just_fits(chunks: int, rows: int) -> None:
    """However many chunks there are to choose from."""
    limits = _row(31, chunks=chunks, rows=rows)
    assert limits.positions_left == 64 - 4 - 30 - 12
    limits.check(18)
    with pytest.raises(ContextOverflowError) as raised:
        limits.check(19)
    message = str(raised.value)
    for part in (
        "chunk of 31",
        "16 of question",
        "max_new_tokens=19 need 65",
        "64 positions",
        "to 18, or",
        "smaller chunk_",
    ):
        assert part in message


def test_a_chunk_that_begins_with_more_than_the_row_does() -> None:
    """Its own opening takes the place of the row's."""
    assert _row(30 + 9).positions_left == 64 - 9 - 30 - 12


def test_a_row_without_documents_takes_its_place_in_the_window() -> None:
    """The amateur of experts; its answer would run beyond the window."""
    assert _row(31, local=50, rows=8).positions_left == 64 - 50
    assert _row(31, local=50).positions_left == 18
    with pytest.raises(ContextOverflowError, match="Lower max_new_tokens to 14,"):
        _row(31, local=50, rows=8).check(15)


def test_a_ceiling_for_the_plain_model_leaves_room_for_an_answer() -> None:
    """Without a length of its own, the answer would have been cut off after two tokens."""
    planner = _planner(chunk_size=20, local_window=30, dynamic_prompt=8, plain_up_to=63)
    outline = planner.outline([], 60)
    assert outline.chunks
    assert outline.new_tokens >= expected_answer(CONFIG)
    assert planner.outline([], 60, 2).chunks == 0


def test_what_cannot_help_is_not_advised() -> None:
    with pytest.raises(ContextOverflowError) as raised:
        _plain(5).check(1000)
    assert "Lower max_new_tokens to 59" in str(raised.value)
    assert "documents" not in str(raised.value)
    with pytest.raises(ContextOverflowError, match=r"\. Hand the text over as documents") as raised:
        _plain(70).check(1000)
    assert "Lower" not in str(raised.value)
    with pytest.raises(ContextOverflowError) as raised:
        _plain(64).check(1)
    assert "Lower" not in str(raised.value)


@pytest.mark.parametrize(
    ("chunks", "local", "left"), [(1, 3, 64 - 31 - 4), (40, 3, 64 - 40 - 4), (20, 30, 64 - 20 - 31)]
)
def test_an_answer_of_default_length_takes_what_the_window_leaves(chunks: int, local: int, left: int) -> None:
    """Of a chunk's row and of memory and local context, the longer one decides."""
    planner = _planner(chunk_size=30, local_window=30, dynamic_prompt=3, plain_up_to=0)
    documents = [30 if chunks == 1 else 1 for _ in range(chunks)]
    assert planner.outline(documents, local).new_tokens == left


def test_no_positions_for_an_answer_of_default_length() -> None:
    """The message would speak of a negative number of tokens."""
    outline = _planner(chunk_size=30, local_window=30, dynamic_prompt=3, plain_up_to=0).outline([1] * 70, 2)
    with pytest.raises(ContextOverflowError, match="max_new_tokens=1 "):
        outline.limits.check(outline.new_tokens)


def test_the_plain_model_has_the_same_borders() -> None:
    _plain(60).check(4)
    with pytest.raises(ContextOverflowError) as raised:
        _plain(60).check(5)
    message = str(raised.value)
    for part in ("60 tokens", "max_new_tokens=5", "together 65", "64 positions", "max_new_tokens to 4", "documents"):
        assert part in message


@pytest.mark.parametrize("limit", ["row", "memory"])
def test_the_last_position_is_answered_and_the_next_refused(limit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check would not agree with what a pass really needs, or come after the work."""
    model = build("mistral", sliding_window=64)  # beyond this window a wrong answer would show
    projections = random_projections(model)
    chunk_size, local_window, chunks = {"row": (40, 13, 2), "memory": (4, 20, 36)}[limit]
    config = FocusConfig(chunk_size=chunk_size, local_window=local_window, plain_up_to=0, dynamic_prompt=13)
    focus = FocusModel(model, projections, config=config)
    text = random_tokens(chunks * chunk_size + local_window, seed=4)
    # A BOS, 40 tokens, a BOS and 13 tokens; or 36 slots, a BOS and 20 tokens.
    room = {"row": 64 - 41 - 14, "memory": 64 - 36 - 21}[limit]
    generation = continue_tokens(focus, text, max_new_tokens=room, return_logits=True)
    pieces = [[BOS, *text[i * chunk_size : (i + 1) * chunk_size]] for i in range(chunks)]
    prompt, local = [BOS, *text[-focus.config.dynamic_prompt :]], [BOS, *text[-local_window:]]
    # After the last generated token, which stands at the last position of the window.
    wanted = Reference(model, projections).logits(pieces, prompt, local, generation.tokens.tolist())
    assert generation.logits is not None
    assert_equal_logits(generation.logits[-1], wanted)

    def no_work(*_: object) -> None:
        raise AssertionError("a pass ran before the limits were checked")

    monkeypatch.setattr(torch.nn.Module, "__call__", no_work)
    with pytest.raises(ContextOverflowError):
        continue_tokens(focus, text, max_new_tokens=room + 1)


def test_chunk_and_prompt_leave_room_for_one_token() -> None:
    """Every question would fail later, with a message about the question instead of the setting."""
    fits = FocusConfig(chunk_size=40, dynamic_prompt=21, local_window=30)  # 61 tokens, two BOS, one new token
    check_sizes(fits.resolve(64))
    with pytest.raises(ConfigError, match=r"chunk_size=41 and dynamic_prompt=21 need 65 positions .* has 64 .*Lower"):
        check_sizes(FocusConfig(chunk_size=41, dynamic_prompt=21, local_window=30).resolve(64))


def test_local_window_leaves_room() -> None:
    """The same for the local context: a memory slot and an answer must fit too."""
    check_sizes(FocusConfig(local_window=61).resolve(64))
    with pytest.raises(ConfigError, match=r"local_window=62 leaves no positions .* 64 .*Lower it"):
        check_sizes(FocusConfig(local_window=62).resolve(64))


def test_messages_say_what_limits_the_window() -> None:
    """A user with a 128k model would not learn that its sliding window is what counts."""
    with pytest.raises(ConfigError, match=r"64 positions \(its sliding window\)"):
        check_sizes(FocusConfig(chunk_size=64).resolve(64, window_is="its sliding window"))


@pytest.mark.parametrize(
    ("plain_up_to", "tokens", "new_tokens", "plainly"),
    [
        (None, 60, 4, True),
        (None, 61, 4, False),
        (50, 50, 10, True),
        (50, 51, 1, False),
        (60, 60, 10, False),
        (0, 1, 1, False),
    ],
)
def test_up_to_where_the_plain_model_reads(
    plain_up_to: int | None, tokens: int, new_tokens: int, plainly: bool
) -> None:
    """A text that the model could read as it is would be cut, or one that does not fit would not."""
    resolved = FocusConfig(plain_up_to=plain_up_to, chunk_size=20, local_window=20).resolve(64)
    assert fits_window(resolved, tokens, new_tokens) is plainly
