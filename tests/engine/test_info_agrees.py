"""The plan from lengths, the planner and the rows that are made agree, for any sizes, up to the window's edge."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_core.cache.store import DeviceTier
from focus_core.cache.tiers import ChunkStore
from focus_core.config import ResolvedConfig
from focus_core.engine.engine import SHORT_QUESTION
from focus_core.engine.memory_plan import Memories
from focus_core.engine.planning import Planner
from focus_core.engine.reading_plan import ReadingPlan, plan_of_lengths
from focus_core.errors import ContextOverflowError
from focus_core.methods.base import Plan
from focus_core.methods.limits import Lengths, measure
from focus_core.text.chat import Turn
from focus_core.text.chunking import Chunk
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout, Prompt

BOS = 1
LAYERS, BYTES_PER_LAYER = 3, 128
ROWS = "select", "experts"  # methods that put chunks into the plain model's row


@pytest.fixture(scope="module", autouse=True)
def _much_memory() -> Iterator[None]:
    """Asking the system takes longer than all the rest of an example."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("focus_core.device.free_memory", lambda device: 1 << 40)
        yield


def planner_of(layout: Layout, method: str = "auto", *, trained: bool = True) -> Planner:
    """A planner for a model of which only sizes are known."""
    model: Any = SimpleNamespace(
        config=layout.config,
        trained=trained,
        cached_layers=LAYERS - 1,
        chunk_bytes=lambda chunks, tokens: (LAYERS - 1) * BYTES_PER_LAYER * tokens,
        chunk_bytes_per_layer=lambda chunks, tokens: BYTES_PER_LAYER * tokens,
        bytes_per_layer=BYTES_PER_LAYER,
        parts=SimpleNamespace(num_layers=LAYERS),
    )
    return Planner(model, layout, method, str)


def plan_of(planner: Planner, lengths: Sequence[int]) -> ReadingPlan:
    """As `FocusEngine.plan_lengths`."""
    outline = planner.outline(lengths, SHORT_QUESTION)
    left = planner.positions_left(lengths, outline.method)
    memories = Memories(torch.device("cpu"), ChunkStore(DeviceTier(0)), ())
    return plan_of_lengths(outline, lengths, SHORT_QUESTION, left, memories)


@dataclass(frozen=True)
class Rows:
    """What the model would read for one question."""

    chunks: list[Chunk]
    dynamic_prompt: int
    local: int
    whole: int
    before: int
    after: int
    size: int

    @classmethod
    def of(cls, layout: Layout, documents: Sequence[TokenizedDocument], prompt: Prompt) -> Rows:
        if documents:
            chunks, context = layout.chunks_of(documents), prompt
        else:
            chunks, context = layout.long_prompt(prompt)
        whole = len(layout.plain(documents, prompt))
        around = len(layout.before(context)), len(layout.after(context))
        return cls(
            chunks, len(layout.dynamic_prompt(context)), len(context.row), whole, *around, layout.config.chunk_size
        )

    @property
    def lengths(self) -> Lengths:
        lengths = Lengths.of([len(chunk.row) for chunk in self.chunks], self.dynamic_prompt, self.local, self.whole)
        return replace(lengths, before=self.before, after=self.after)

    def longest(self, method: str) -> int:
        """Positions that are taken before the first token of the answer."""
        if method == "plain":
            return self.whole
        if method in ROWS:
            row = max(max(self.before, len(one.opening)) + len(one.token_ids) for one in self.chunks) + self.after
            return max(row, self.local) if method == "experts" else row
        longest_chunk = max(len(chunk.row) for chunk in self.chunks)
        return max(longest_chunk + self.dynamic_prompt, len(self.chunks) + self.local)

    def exact(self, method: str) -> bool:
        """Whether limits count every position once; those of `ROWS` count the opening of a short chunk twice."""
        return method not in ROWS or any(len(chunk.token_ids) == self.size for chunk in self.chunks)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Any sizes, with the window still to be set."""
    chunk_size, local_window = draw(st.integers(1, 40)), draw(st.integers(1, 40))
    config = ResolvedConfig(
        chunk_size=chunk_size,
        local_window=local_window,
        dynamic_prompt=min(draw(st.integers(1, 50)), chunk_size, local_window),
        parallel_chunks=None,
        pack=False,
        shortlist=0,
        bos_per_chunk=draw(st.booleans()),
        plain_up_to=draw(st.none() | st.integers(0, 200)),
        window=1,
        window_is="test",
    )
    bos, separator = draw(st.sampled_from([None, BOS])), (5,) * draw(st.integers(0, 2))
    opening = (*([] if bos is None else [bos]), 6, 6)
    return Layout(config, bos, separator, turn_opening=draw(st.sampled_from([None, opening])))


def prompt_of(layout: Layout, tokens: int) -> Prompt:
    """A question of so many tokens; in layout "chat" some of them stand before the user's words."""
    prompt = layout.prompt(list(range(10, 10 + tokens)))
    if layout.turn_opening is None:
        return prompt
    words = prompt.row[len(layout.turn_opening) :]
    suffix = (*layout.separator, *words)
    return replace(prompt, turn=Turn(layout.turn_opening, suffix, (len(layout.separator), len(suffix))))


def at_the_edge(layout: Layout, rows: Rows, answer: int) -> Iterator[tuple[Layout, Planner]]:
    """55 cases: windows in which one of the rows just fits with the answer or just does not, and every method."""

    def around(*methods: str) -> Iterator[Layout]:
        for longest in {rows.longest(method) for method in (methods if rows.chunks else ["plain"])}:
            for window in range(max(longest + answer - 2, 1), longest + answer + 3):
                yield replace(layout, config=replace(layout.config, window=window))

    for sized in around("plain", "focus"):
        for method in ("auto", "focus", "plain"):
            yield sized, planner_of(sized, method)
    for method in ROWS:
        for sized in around(method):
            yield sized, planner_of(sized, method)
    for sized in around("select"):
        yield sized, planner_of(sized, trained=False)


def document(tokens: int) -> TokenizedDocument:
    return TokenizedDocument.of_tokens(list(range(10, 10 + tokens)))


def planned(
    planner: Planner,
    documents: Sequence[TokenizedDocument],
    prompt: Prompt,
    max_new_tokens: int | None = None,
) -> Plan | None:
    """`None` where the engine refuses."""
    try:
        return planner.plan(documents, prompt, max_new_tokens)
    except ContextOverflowError:
        return None


@settings(max_examples=100)
@given(
    layout=layouts(), lengths=st.lists(st.integers(1, 130), min_size=1, max_size=5), answer=st.sampled_from([0, 9, 256])
)
def test_info_says_what_the_engine_then_does(layout: Layout, lengths: list[int], answer: int) -> None:
    documents, prompt = [document(tokens) for tokens in lengths], prompt_of(layout, SHORT_QUESTION)
    rows = Rows.of(layout, documents, prompt)
    assert measure(layout, lengths, layout.expected_lengths(SHORT_QUESTION)) == rows.lengths
    for sized, planner in at_the_edge(layout, rows, answer):
        needs, plan = plan_of(planner, lengths), planned(planner, documents, prompt)
        assert (needs.answer_tokens > 0) is needs.fits is (plan is not None)
        # Counted in the rows themselves.
        left = max(min(sized.config.window - rows.longest(needs.method), 256), 0)
        assert needs.answer_tokens == left or (not rows.exact(needs.method) and needs.answer_tokens < left)
        if plan is not None:
            assert_as_planned(needs, plan, rows)


def assert_as_planned(needs: ReadingPlan, plan: Plan, rows: Rows) -> None:
    chunks = rows.chunks if needs.method != "plain" else []
    assert (needs.method, needs.chunks, needs.answer_tokens) == (plan.method.name, len(chunks), plan.new_tokens)
    assert [chunk.row for chunk in plan.chunks] == [chunk.row for chunk in chunks]
    assert needs.positions_left >= needs.answer_tokens
    held = rows.whole + plan.new_tokens
    if needs.method in ROWS:  # at most: which chunks they choose is not known before
        held = sum(len(chunk.row) for chunk in chunks) + rows.longest(needs.method) + plan.new_tokens
        assert needs.needed_bytes >= held * plan.method.bytes_per_token
        return
    if chunks:
        held = sum(len(chunk.row) for chunk in chunks) + len(chunks) * (rows.dynamic_prompt + plan.new_tokens)
    assert needs.needed_bytes == held * plan.method.bytes_per_token


@settings(max_examples=100)
@given(layout=layouts(), tokens=st.integers(1, 200), answer=st.integers(1, 40))
def test_a_long_prompt_is_refused_where_its_rows_do_not_fit(layout: Layout, tokens: int, answer: int) -> None:
    prompt = prompt_of(layout, tokens)
    rows = Rows.of(layout, (), prompt)
    for sized, planner in at_the_edge(layout, rows, answer):
        outline, plan = planner.outline((), tokens, answer), planned(planner, (), prompt, answer)
        assert outline.lengths == rows.lengths
        fits = rows.longest(outline.method.name) + answer <= sized.config.window
        assert fits is (plan is not None) or (fits and not rows.exact(outline.method.name))
        if plan is not None:
            assert len(plan.chunks) == outline.chunks
            assert len(plan.question.context.row) == (rows.local if plan.chunks else rows.whole)


@settings(max_examples=200)
@given(layout=layouts(), tokens=st.integers(0, 200), with_bos=st.booleans(), question=st.none() | st.integers(1, 200))
def test_a_prompt_with_and_without_a_bos_of_its_own_is_measured_as_it_is_cut(
    layout: Layout, tokens: int, with_bos: bool, question: int | None
) -> None:
    """As `continue_tokens` takes it: the tokens are given, and whether a BOS is among them. And one in the middle."""
    layout = replace(layout, turn_opening=None)
    own = (BOS,) * (with_bos and layout.bos is not None)
    ids = list(range(10, 10 + tokens))
    inner = question if question is not None and question < tokens else None
    prompt = Prompt(own, TokenizedDocument.of_tokens(ids), question=inner)
    rows = Rows.of(layout, (), prompt)
    assert measure(layout, (), layout.lengths(prompt)) == rows.lengths
    chunks, context = layout.long_prompt(prompt)
    read = [token for chunk in chunks for token in chunk.token_ids]
    if chunks and inner is not None and 1 + tokens - inner <= layout.config.local_window:
        read.append(ids[inner - 1])  # the BOS, which begins the local context
        assert list(context.tokens.token_ids) == ids[inner:]
    assert [*read, *context.tokens.token_ids] == ids


@pytest.mark.parametrize("method", ["auto", "focus"])
def test_any_number_of_tokens_is_measured_at_once(method: str) -> None:
    """A list of the lengths of all chunks would fill the memory."""
    config = ResolvedConfig(1, 8, 1, None, True, None, 512, "test")
    outline = planner_of(Layout(config, BOS), method).outline([10**15, 10**15], 1)
    assert (outline.chunks, outline.limits.chunk_tokens) == (2 * 10**15, 4 * 10**15)
