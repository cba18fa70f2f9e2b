"""Passages: nothing is lost, none is too long, and what was read is known by the character."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.evaluation.passages import Passage, cut, fill, joined, share_read
from focus_core.evaluation.tasks.base import Sheet, Span


def words(text: str) -> int:
    return len(text.split())


@given(st.lists(st.text("ab .?\n", min_size=1), min_size=1, max_size=3), st.integers(1, 12))
def test_passages_are_the_documents_in_pieces_of_the_size(documents: list[str], size: int) -> None:
    """By letters, so that a word may be too long itself."""
    passages = cut(Sheet(tuple(documents), ()), size, len)
    for passage in passages:
        assert documents[passage.span.document][passage.span.start : passage.span.stop] == passage.text
        assert 0 < passage.tokens <= size
    for number, document in enumerate(documents):
        spans = [passage.span for passage in passages if passage.span.document == number]
        covered = "".join(document[span.start : span.stop] for span in spans)
        assert "".join(covered.split()) == "".join(document.split())
        assert all(one.stop <= other.start for one, other in pairwise(spans))


def test_paragraphs_and_sentences_stay_whole_and_neighbours_go_together() -> None:
    text = "One two.\n\nThree four.\n\nFive six seven. Eight nine ten eleven.\n\nTwelve."
    found = [passage.text for passage in cut(Sheet((text,), ()), 5, words)]
    assert found == ["One two.\n\nThree four.\n\n", "Five six seven. ", "Eight nine ten eleven.\n\nTwelve."]


def test_a_budget_is_filled_with_the_best_that_fit() -> None:
    sizes = [4, 5, 3, 3]
    ranked = [Passage(Span(0, number, number + 1), "x", size) for number, size in enumerate(sizes)]
    assert [passage.tokens for passage in fill(ranked, 8)] == [4, 3]
    assert [passage.tokens for passage in fill(ranked, 8, each=1)] == [4]
    assert [passage.tokens for passage in fill(ranked, 10)] == [4, 5]
    assert fill(ranked, 2) == []


def test_spans_that_touch_are_joined_in_document_order() -> None:
    spans = [Span(1, 0, 5), Span(0, 10, 20), Span(0, 0, 10), Span(0, 30, 40)]
    assert joined(spans) == (Span(0, 0, 20), Span(0, 30, 40), Span(1, 0, 5))


def test_the_share_of_the_gold_that_was_read() -> None:
    gold = [Span(0, 0, 10), Span(1, 0, 30)]
    assert share_read(gold, [Span(0, 5, 100)]) == pytest.approx(5 / 40)
    assert share_read(gold, [Span(0, 0, 10), Span(1, 0, 10), Span(1, 5, 30)]) == 1.0
    assert share_read(gold, []) == 0.0
