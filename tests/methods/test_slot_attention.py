"""What the newest token attends to, against eager attention over a memory that is made from scratch."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from focus_core.attention import slot_attention
from focus_core.attention.slot_attention import SlotAttention
from focus_core.cache.chunks import ChunkSet
from focus_core.config import FocusConfig
from focus_core.methods.focus import FocusDecoding, FocusModel
from tests.model_zoo import FAMILIES_BY_KIND, build, random_projections, random_tokens
from tests.reference import Reference, TokenIds

TOLERANCE = 1e-5
# The longest chunk is not the first: blocks of equal length lie apart, and slots are not in the order of the pass.
CHUNKS = [random_tokens(length, seed=length) for length in (17, 24, 11, 24)]
PROMPT, LOCAL = random_tokens(9, seed=1), random_tokens(14, seed=2)
SHORT_PROMPT, SHORT_LOCAL = random_tokens(5, seed=3), random_tokens(8, seed=4)
ANSWER = random_tokens(3, seed=5)


class _Watched(Reference):
    """The oracle, which hands out the weights of its eager attention."""

    def _run(self, model: Any, row: TokenIds, **arguments: Any) -> Tensor:  # type: ignore[override]
        output = model(torch.tensor([list(row)]), output_attentions=True, **arguments)
        self.weights: Sequence[Tensor] = output.attentions
        logits: Tensor = output.logits[0, -1]
        return logits

    def shares(self, prompt: TokenIds, local: TokenIds, generated: TokenIds) -> list[float]:
        self.logits(CHUNKS, prompt, local, generated)  # the last pass is the one over the memory
        of_last = torch.stack([weights[0, :, -1, : len(CHUNKS)] for weights in self.weights])
        mean: list[float] = of_last.mean((0, 1)).tolist()
        return mean


def _focus(family: str, **config: Any) -> FocusModel:
    model = build(family)
    settings = {"chunk_size": 32, "local_window": 32, "dynamic_prompt": 9, **config}
    return FocusModel(model, random_projections(model), config=FocusConfig(**settings))


def _decoding(focus: FocusModel, watched: Sequence[int] = (0, 1), questions: Sequence[int] = (0, 1)) -> FocusDecoding:
    locals_, prompts = [LOCAL, SHORT_LOCAL], [PROMPT, SHORT_PROMPT]
    return FocusDecoding(
        focus,
        ChunkSet.of(focus.prefill(CHUNKS)),
        [locals_[question] for question in questions],
        [prompts[question] for question in questions],
        watched,
    )


def _close(found: Sequence[float] | None, wanted: Sequence[float]) -> None:
    assert found is not None
    torch.testing.assert_close(torch.tensor(found), torch.tensor(wanted), atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("parallel_chunks", [None, 1], ids=["one pass", "several passes"])
@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
def test_the_shares_are_the_oracles_attention(family: str, parallel_chunks: int | None) -> None:
    """Two questions of different lengths, so that one of them has padding; every token of an answer."""
    focus = _focus(family, parallel_chunks=parallel_chunks)
    reference = _Watched(focus.model, focus.projections)
    decoding, unwatched = _decoding(focus), _decoding(focus, watched=())
    for said in range(len(ANSWER) + 1):
        newest = torch.tensor([ANSWER[said - 1]] * 2)
        logits = decoding.step(newest) if said else decoding.start()
        # Watching changes no bit of what is computed.
        assert torch.equal(logits, unwatched.step(newest) if said else unwatched.start())
        assert unwatched.shares() == [None, None]
        long, short = decoding.shares()
        _close(long, reference.shares(PROMPT, LOCAL, ANSWER[:said]))
        _close(short, reference.shares(SHORT_PROMPT, SHORT_LOCAL, ANSWER[:said]))
    assert long is not None
    assert torch.tensor(long).sort().values.diff().min() > 10 * TOLERANCE  # slots that are mixed up would show
    assert sum(long) < 1


def test_questions_that_stay_leave_and_join_keep_their_own_shares() -> None:
    focus = _focus("llama")
    reference = _Watched(focus.model, focus.projections)
    first = torch.tensor([ANSWER[0]])
    decoding, other = _decoding(focus, watched=[1]), _decoding(focus, watched=[0], questions=[0])
    decoding.start()
    decoding.step(first.expand(2))
    other.start()
    other.step(first)
    decoding.join(other)  # the long one unwatched, the short one and the long one watched
    decoding.step(torch.tensor([ANSWER[1]] * 3))
    nothing, short, long = decoding.shares()
    assert nothing is None
    _close(short, reference.shares(SHORT_PROMPT, SHORT_LOCAL, ANSWER[:2]))
    _close(long, reference.shares(PROMPT, LOCAL, ANSWER[:2]))
    decoding.keep([2, 1])
    decoding.step(torch.tensor([ANSWER[2]] * 2))
    long, short = decoding.shares()
    _close(long, reference.shares(PROMPT, LOCAL, ANSWER))
    _close(short, reference.shares(SHORT_PROMPT, SHORT_LOCAL, ANSWER))
    decoding.keep([1])  # padding leaves
    decoding.step(torch.tensor([7]))
    _close(decoding.shares()[0], reference.shares(SHORT_PROMPT, SHORT_LOCAL, [*ANSWER, 7]))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_the_watched_model_attends_as_the_model_does(attention: str) -> None:
    focus = _focus("llama")
    focus.model.set_attn_implementation(attention)
    decoding, unwatched = _decoding(focus), _decoding(focus, watched=())
    assert torch.equal(decoding.start(), unwatched.start())


def test_nothing_is_made_or_called_where_nothing_is_watched(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError("computed without being asked for")

    for name, _ in inspect.getmembers(SlotAttention, inspect.isfunction):
        monkeypatch.setattr(SlotAttention, name, refuse)
    monkeypatch.setattr(slot_attention, "_watched_attention", refuse)
    focus = _focus("llama")
    decoding = _decoding(focus, watched=())
    decoding.start()
    decoding.step(torch.tensor([3, 4]))
    assert "watched_model" not in vars(focus)


def test_only_watched_questions_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []
    add = SlotAttention.add

    def counted(self: SlotAttention, *arguments: Any) -> None:
        add(self, *arguments)
        rows.append(len(self._layers[-1]))

    monkeypatch.setattr(SlotAttention, "add", counted)
    decoding = _decoding(_focus("llama"), watched=[1])
    decoding.start()
    decoding.step(torch.tensor([3, 4]))
    assert rows == [1] * 6  # three layers, twice
