"""Documents are cut once, and what is remembered of them is theirs."""

from __future__ import annotations

import gc

import pytest

from focus_core.config import FocusConfig
from focus_core.text import cuts as cuts_module
from focus_core.text.cuts import Cuts
from focus_core.text.documents import TokenizedDocument
from focus_core.text.layout import Layout

LAYOUT = Layout(FocusConfig(chunk_size=4).resolve(64), bos=1)


def document(*tokens: int) -> TokenizedDocument:
    return TokenizedDocument.of_tokens(list(tokens))


def test_the_same_documents_are_cut_once() -> None:
    cuts, first, second = Cuts(), document(*range(10)), document(7, 8)
    cutting = LAYOUT.cutting()
    chunks = cuts.chunks_of([first, second], LAYOUT, cutting)
    assert [chunk.row for chunk in chunks] == [chunk.row for chunk in LAYOUT.chunks_of([first, second], cutting)]
    assert cuts.chunks_of((first, second), LAYOUT, cutting) is chunks
    assert cuts.chunks_of([second, first], LAYOUT, cutting) != chunks
    packed = LAYOUT.cutting(pack=True)
    assert cuts.chunks_of([first, second], LAYOUT, packed) is not chunks


def test_another_opening_is_another_cut() -> None:
    cuts, one = Cuts(), document(*range(6))
    other = Layout(LAYOUT.config, bos=2)
    rows = [[chunk.row for chunk in cuts.chunks_of([one], layout, layout.cutting())] for layout in (LAYOUT, other)]
    assert [rows[0][0][0], rows[1][0][0]] == [1, 2]


def test_equal_documents_keep_their_names() -> None:
    """Their chunks say which document they are of."""
    cuts, one, two = Cuts(), document(1, 2, 3), document(1, 2, 3)
    for which in (one, two):
        (chunk,) = cuts.chunks_of([which], LAYOUT, LAYOUT.cutting())
        assert chunk.document is which.document


def test_the_oldest_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuts_module, "_REMEMBERED_TOKENS", 10)
    cuts, documents = Cuts(), [document(*range(4)) for _ in range(3)]
    found = [cuts.chunks_of([one], LAYOUT, LAYOUT.cutting()) for one in documents[:2]]
    assert cuts.chunks_of([documents[0]], LAYOUT, LAYOUT.cutting()) is found[0]
    cuts.chunks_of([documents[2]], LAYOUT, LAYOUT.cutting())
    assert cuts.chunks_of([documents[0]], LAYOUT, LAYOUT.cutting()) is found[0]  # used since
    assert cuts.chunks_of([documents[1]], LAYOUT, LAYOUT.cutting()) is not found[1]


def test_a_document_that_is_gone_is_mistaken_for_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new object may lie where an old one lay, and have its identity."""
    monkeypatch.setattr(cuts_module, "_REMEMBERED_TOKENS", 40)
    cuts = Cuts()
    for number in range(200):
        (chunk,) = cuts.chunks_of([document(number, 1)], LAYOUT, LAYOUT.cutting())
        assert chunk.row == [1, number, 1]
        gc.collect(0)
