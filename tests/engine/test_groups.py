"""Many chunks, left out in groups: what leaving each of them out finds is found, for a few rows."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from focus_core import Document, FocusEngine, FocusModel
from focus_core.engine.groups import EACH, Group, GroupSearch, chunk_groups, first_parts
from focus_core.engine.ledger import Ledger
from focus_core.engine.source_page import source_page
from focus_core.engine.sources import Explanation
from focus_core.engine.support import Support, find_support
from focus_core.methods.evidence import NOTHING, Cost, LeftOut, Passage, whole_chunks
from tests.engines import QUESTION, make_engine

CHUNKS, TOKENS, LOCAL = 100, 14, 32
UNITS = [Passage(chunk, 0, 10) for chunk in range(CHUNKS)]
EACH_CHUNK: list[Group] = [(chunk,) for chunk in range(CHUNKS)]
Left = frozenset[int]  # chunks that are still there
Answer = Callable[[Left], dict[int, float]]  # what its tokens lose; those that are not named lose nothing


class MadeUp:
    """Evidence of an answer whose losses are made up; a row costs what it costs FocusLLM."""

    def __init__(self, answer: Answer, attended: Tensor | None = None) -> None:
        self._answer, self.attended = answer, attended

    def begin(self) -> None: ...

    def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
        return Cost(1, len(left_out) * LOCAL * (TOKENS if tokens is None else len(tokens)))

    def log_probs(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Tensor:
        found = torch.zeros(len(left_out), TOKENS)
        for row, one in enumerate(left_out):
            for token, loss in self._answer(frozenset(unit.chunk for unit in set(UNITS) - one)).items():
                found[row, token] = -loss
        return found if tokens is None else found[:, list(tokens)]


def _groups(documents: Sequence[tuple[int, ...]] = ((0,),) * CHUNKS) -> list[Group]:
    return chunk_groups(UNITS[: len(documents)], documents, MadeUp(lambda left: {}), every_chunk=False)


def _support(answer: Answer, groups: Sequence[Group], attended: Tensor | None = None) -> tuple[Support, GroupSearch]:
    search = GroupSearch(UNITS, groups, Ledger(MadeUp(answer, attended), lambda passes: passes()))
    return find_support(UNITS, NOTHING, search, search.ledger.token_losses), search


def _the_same_as_each(answer: Answer) -> GroupSearch:
    """Where nobody says what is attended to, and where attention says nothing about what matters."""
    slow, _ = _support(answer, EACH_CHUNK)
    for attended in (torch.rand(TOKENS, CHUNKS, generator=torch.Generator().manual_seed(1)), None):
        found, search = _support(answer, _groups(), attended)
        assert {one.unit: one.role for one in found.members} == {one.unit: one.role for one in slow.members}
        scores = {one.unit: one.score for one in slow.members}
        assert {one.unit: one.score for one in found.members} == pytest.approx(scores, abs=1e-4)
        assert found.loss == pytest.approx(slow.loss, abs=1e-4)
    return search


# --- what is found ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", range(0, CHUNKS, 3))
def test_a_planted_chunk_is_found_at_every_place(place: int) -> None:
    search = _the_same_as_each(lambda left: {} if place in left else {8: 6.0, 9: 3.0})
    assert search.is_known(place)


@pytest.mark.parametrize(("one", "other"), [(3, 4), (0, 19), (3, 12), (5, 95), (19, 20), (40, 99)])
def test_two_that_say_the_same(one: int, other: int) -> None:
    """In one half of a group, in one group, and in two."""
    _the_same_as_each(lambda left: {} if {one, other} & left else {8: 6.0, 9: 3.0})


def test_many_that_say_the_same() -> None:
    """In every group some do; that is not any text, and each is named."""
    same = set(range(2, CHUNKS, 7))
    found, _ = _support(lambda left: {} if same & left else {8: 9.0}, _groups())
    assert {one.unit for one in found.members} == same
    _the_same_as_each(lambda left: {} if same & left else {8: 9.0})


@pytest.mark.parametrize(("one", "other"), [(3, 4), (3, 12), (5, 95)])
def test_two_that_are_both_needed(one: int, other: int) -> None:
    _the_same_as_each(lambda left: {2: 4.0 * (one not in left), 9: 5.0 * (other not in left)})
    _the_same_as_each(lambda left: {} if {one, other} <= left else {9: 6.0})


def test_one_that_is_needed_beside_two_that_say_the_same() -> None:
    _the_same_as_each(lambda left: {2: 2.0 * (50 not in left), 9: 0.0 if {7, 71} & left else 20.0})


@pytest.mark.parametrize(("one", "other"), [(3, 4), (0, 19), (40, 99)])
def test_one_that_takes_over_together_with_others(one: int, other: int) -> None:
    def answer(left: Left) -> dict[int, float]:
        if one in left or (other in left and len(left) > 40):
            return {}
        return {8: 4.0} if other in left else {8: 6.0, 9: 3.0}

    search = _the_same_as_each(answer)
    assert search.is_known(one)
    assert search.is_known(other)


def test_a_neighbour_that_disturbs() -> None:
    """Without the planted chunk one token loses; without its neighbours another gains."""
    _the_same_as_each(lambda left: {8: 1.5 * (30 not in left), 3: -1.4 * (29 not in left)})


def test_what_any_text_restores_is_the_form_of_the_answer() -> None:
    search = _the_same_as_each(lambda left: {0: 0.3 * (2 not in left), 1: 0.0 if left else 4.0})
    assert search.ledger.cost.tokens < 20 * LOCAL * TOKENS


@pytest.mark.parametrize("seed", range(8))
def test_a_text_in_which_every_chunk_matters_a_little(seed: int) -> None:
    draw = random.Random(seed)
    little = [[draw.gauss(0, 0.01) for _ in range(TOKENS)] for _ in range(CHUNKS)]
    planted = {draw.randrange(CHUNKS): (draw.randrange(TOKENS), 2.0 + draw.random()) for _ in range(3)}

    def answer(left: Left) -> dict[int, float]:
        lost = {token: sum(little[chunk][token] for chunk in set(range(CHUNKS)) - left) for token in range(TOKENS)}
        for chunk, (token, loss) in planted.items():
            lost[token] += loss * (chunk not in left)
        return lost

    _the_same_as_each(answer)


# --- groups -----------------------------------------------------------------------------------------------------------


def test_few_chunks_are_left_out_one_by_one() -> None:
    assert _groups([(0,)] * EACH) == EACH_CHUNK[:EACH]
    assert len(_groups([(0,)] * (EACH + 1))) < EACH / 3


def test_where_groups_save_little_each_chunk_is_left_out() -> None:
    """As with select and experts, which read few of the chunks: the others cost nothing."""

    class ReadsFew(MadeUp):
        def cost(self, left_out: Sequence[LeftOut], tokens: Sequence[int] | None = None) -> Cost:
            return Cost(1, 4 * LOCAL * TOKENS)

    found = chunk_groups(UNITS, [(0,)] * CHUNKS, ReadsFew(lambda left: {}), every_chunk=False)
    assert found == EACH_CHUNK


@pytest.mark.parametrize("lengths", [[100], [50, 50], [30, 3, 4, 60, 3], [1] * 100, [12] * 8 + [4], [11, 2] * 7 + [9]])
def test_groups_hold_every_chunk_once_and_no_part_of_a_large_document_beside_another(lengths: list[int]) -> None:
    documents = [(document,) for document, length in enumerate(lengths) for _ in range(length)]
    groups = _groups(documents)
    assert [chunk for group in groups for chunk in group] == list(range(CHUNKS))
    for group in groups:
        inside = {documents[chunk][0] for chunk in group}
        assert len(group) <= 30
        assert len(inside) == 1 or all(lengths[document] < 15 for document in inside)


def test_every_number_is_of_the_chunks_that_it_names() -> None:
    def answer(left: Left) -> dict[int, float]:
        return {8: 9.0 * (33 not in left), 2: 0.001 * (CHUNKS - len(left))}

    _, search = _support(answer, _groups())
    rests = search.left_together()
    assert sorted([chunk for rest, _ in rests for chunk in rest] + [33]) == list(range(CHUNKS))
    for rest, losses in rests:
        assert float(losses.sum()) == pytest.approx(0.001 * len(rest), abs=1e-5)


def test_the_first_round_and_all_of_it_in_decode_steps() -> None:
    """Three for each token, as the memory takes one: 200 tokens of chunks, and the local context."""
    search = _the_same_as_each(lambda left: {} if 37 in left else {8: 6.0, 9: 3.0, 10: 3.0})
    search.left_together()
    memory, steps = TOKENS * 2 * CHUNKS, TOKENS * (2 * CHUNKS + LOCAL)
    assert search.ledger.cost.tokens + memory <= 3 * steps
    each = MadeUp(lambda left: {}).cost(first_parts(UNITS, EACH_CHUNK))
    assert each.tokens + memory > 14 * steps


@pytest.mark.parametrize(
    ("same", "without", "wanted"), [(False, 8 + 16 / 14, 8 + 2 / 14), (True, 16 + 2 / 14, 13 + 12 / 14)]
)
def test_attention_saves_the_halves(same: bool, without: float, wanted: float) -> None:
    """In rows of 14 tokens.

    Of one chunk: nothing left out, four groups, all, the chunk, the others of its group; and two tokens of one row,
    instead of eight rows, to open the group.
    """

    def answer(left: Left) -> dict[int, float]:
        return {} if 37 in left or (same and 88 in left) else {8: 6.0, 9: 3.0}

    attended = torch.zeros(TOKENS, CHUNKS)
    attended[8, 37] = attended[9, 88] = 0.3
    attended[2, 38] = attended[2, 89] = 0.9  # a token that loses nothing
    rows = []
    for known in (None, attended):
        _, search = _support(answer, _groups(), known)
        search.left_together()
        rows.append(search.ledger.cost.tokens / (LOCAL * TOKENS))
    assert rows == pytest.approx([without, wanted])


# --- a whole answer ---------------------------------------------------------------------------------------------------

SMALL = "".join(f"{number:03} " for number in range(120))  # chunks of four letters


@pytest.fixture(scope="module")
def engine() -> FocusEngine:
    return make_engine(chunk_size=4, dynamic_prompt=8)


def _explained(engine: FocusEngine, documents: Sequence[str | Document]) -> Explanation:
    answer = engine.generate(QUESTION, list(documents), max_new_tokens=6, sources=True, method="focus")
    assert answer.explanation is not None
    return answer.explanation


def test_groups_of_an_answer_are_those_chunks_left_out(engine: FocusEngine) -> None:
    answer = engine.generate(QUESTION, SMALL, max_new_tokens=6, method="focus")
    found, each = engine.explain(answer), engine.explain(answer, every_chunk=True)
    assert len(found.chunks) == len(each.chunks) > 100
    assert found.groups
    assert not each.groups
    question = engine._question_of(answer)
    evidence = engine._evidence(answer, question, lambda: engine._chunks_again(answer.plan))  # type: ignore[arg-type]
    whole = whole_chunks(question.chunks)
    parts = [frozenset(whole[chunk] for chunk in group.chunks) for group in found.groups]
    nothing, *without = evidence.log_probs([NOTHING, *parts])
    for group, log_probs in zip(found.groups, without, strict=True):
        assert group.token_losses == pytest.approx((nothing - log_probs).tolist(), abs=1e-4)
        assert group.loss == pytest.approx(sum(group.token_losses), abs=1e-4)
    for number, (chunk, slow) in enumerate(zip(found.chunks, each.chunks, strict=True)):
        if chunk.loss is None:
            assert chunk.group is not None
            assert number in found.groups[chunk.group].chunks
            assert chunk.token_losses == ()
        else:
            assert chunk.token_losses == pytest.approx(slow.token_losses, abs=1e-4)
    assert any(chunk.loss is not None for chunk in found.chunks)


def test_cost_of_groups_is_said_before_and_far_below_that_of_every_chunk(engine: FocusEngine) -> None:
    answer = engine.generate(QUESTION, SMALL, max_new_tokens=6, method="focus")
    before, each = engine.cost_of_sources(answer), engine.cost_of_sources(answer, every_chunk=True)
    found = engine.explain(answer)
    assert before.tokens <= found.cost_of_chunks.tokens <= found.cost.tokens
    assert before.passes <= found.cost_of_chunks.passes
    assert 3 * before.tokens < each.tokens


def test_every_chunk_is_asked_after_groups(engine: FocusEngine) -> None:
    answer = engine.generate(QUESTION, SMALL, max_new_tokens=3, sources=True, method="focus")
    assert engine.explain(answer) is answer.explanation
    assert all(chunk.loss is not None for chunk in engine.explain(answer, every_chunk=True).chunks)


def test_batching_changes_no_group(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    together = _explained(engine, [SMALL])
    monkeypatch.setattr(FocusModel, "tokens_per_pass", 150)  # one row of the local context after the memory
    alone = _explained(engine, [SMALL])
    assert [group.chunks for group in alone.groups] == [group.chunks for group in together.groups]
    assert [group.loss for group in alone.groups] == pytest.approx([g.loss for g in together.groups], abs=1e-4)


def test_documents_in_one_group_have_no_number_of_their_own(engine: FocusEngine) -> None:
    documents = [Document(SMALL[:320], name="long"), *(Document(f"{n} b ", name=f"small {n}") for n in range(40))]
    found = _explained(engine, documents)
    long, *small = found.documents
    assert long.loss is not None
    counted = [chunk.loss for chunk in found.chunks if chunk.documents == (0,) and chunk.loss is not None]
    groups = [group.loss for group in found.groups if found.chunks[group.chunks[0]].documents == (0,)]
    assert long.loss == pytest.approx(sum(counted) + sum(groups), abs=1e-4)
    assert any(document.loss is None for document in small)
    for document in small:
        of_document = [chunk for chunk in found.chunks if chunk.documents == (document.document,)]
        assert document.loss is not None or any(chunk.loss is None for chunk in of_document)


def test_the_page_says_which_numbers_are_of_several_chunks(engine: FocusEngine) -> None:
    found = _explained(engine, [SMALL])
    page = source_page(QUESTION, "!", [Document(SMALL, name="a")], found)
    assert "left out together, and no number is known for one of them" in page
    assert " together: a</th>" in page
    group = found.groups[0]
    first, loss = found.chunks[group.chunks[0]], group.loss
    assert f"characters {first.start:,} to" in page
    told = f"{loss:.2f} nats without all {len(group.chunks)} chunks of their group"
    assert told.replace("-0.00", "0.00") in page
