"""What questions append: grown, kept and joined without a value out of place."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from focus_core.cache.appended import AppendedCache

CHUNKS, LAYERS, HEADS, DIM = 3, 2, 2, 4


def _cache(padding: list[int]) -> AppendedCache:
    return AppendedCache.empty(
        LAYERS,
        (CHUNKS * len(padding), HEADS, DIM),
        padding=torch.tensor(padding),
        dtype=torch.float32,
        device=torch.device("cpu"),
        tokens_per_pass=100,
    )


def _append(cache: AppendedCache, new: int, first: float) -> None:
    cache.reserve(cache.length + new)
    for layer in range(LAYERS):
        shape = (CHUNKS * cache.questions, HEADS, new, DIM)
        states = first + layer * 1000 + torch.arange(CHUNKS * cache.questions * HEADS * new * DIM).reshape(shape)
        cache.store(layer, states.float(), -states.float())


def _columns(cache: AppendedCache, question: int) -> list[torch.Tensor]:
    """Of one question, keys and values of each layer without padding, `[chunks, heads, columns, dim]`."""
    shown = slice(int(cache.padding[question]), cache.length)
    states = [*cache.keys, *cache.values]
    return [layer.unflatten(0, (CHUNKS, cache.questions))[:, question, :, shown].clone() for layer in states]


@given(
    first=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    second=st.lists(st.integers(0, 5), min_size=1, max_size=3),
    lengths=st.tuples(st.integers(6, 70), st.integers(6, 70)),
    more=st.integers(0, 40),
)
def test_join_keeps_every_question(first: list[int], second: list[int], lengths: tuple[int, int], more: int) -> None:
    """A question would go on with the columns of another, or with padding that is not masked."""
    mine, theirs = _cache(first), _cache(second)
    _append(mine, lengths[0], 0.0)
    _append(theirs, lengths[1], 5e5)
    wanted = [_columns(mine, q) for q in range(len(first))] + [_columns(theirs, q) for q in range(len(second))]
    mine.join(theirs)
    assert mine.questions == len(wanted)
    if more:
        mine.reserve(mine.length + more)
        mine.length -= more
    for question, columns in enumerate(wanted):
        for found, expected in zip(_columns(mine, question), columns, strict=True):
            assert torch.equal(found, expected)
    hidden = [layer.unflatten(0, (CHUNKS, mine.questions)) for layer in (*mine.keys, *mine.values)]
    for question in range(mine.questions):
        added = mine.length - (lengths[0] if question < len(first) else lengths[1])
        assert all(torch.all(layer[:, question, :, :added] == 0) for layer in hidden)  # 0 × NaN is NaN


@given(padding=st.lists(st.integers(0, 5), min_size=2, max_size=4), length=st.integers(6, 70), data=st.data())
def test_keep_keeps_the_others(padding: list[int], length: int, data: st.DataObject) -> None:
    cache = _cache(padding)
    _append(cache, length, 0.0)
    kept = data.draw(st.lists(st.sampled_from(range(len(padding))), min_size=1, unique=True))
    wanted = [_columns(cache, question) for question in kept]
    cache.keep(kept, min(padding[question] for question in kept))
    assert int(cache.padding.min()) == 0
    for question, columns in enumerate(wanted):
        for found, expected in zip(_columns(cache, question), columns, strict=True):
            assert torch.equal(found, expected)
