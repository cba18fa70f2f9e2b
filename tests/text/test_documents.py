"""Documents: known by their content, refused where there is none."""

from __future__ import annotations

from typing import Any

import pytest

from focus_core import Document, DocumentError


def test_equal_content_is_an_equal_document() -> None:
    """Two copies of a file would be read twice, and a changed one not at all."""
    assert Document("a", name="x") == Document("a", name="y", metadata={"page": 1})
    assert Document("a") != Document("b")
    assert Document(token_ids=[1, 2]) == Document(token_ids=(1, 2))
    assert Document(token_ids=[1, 2]) != Document(token_ids=[1, 3])
    assert len({Document("a"), Document("a", name="x"), Document("b")}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "needs either text or token_ids"),
        ({"text": "a", "token_ids": [1]}, "needs either text or token_ids"),
        ({"text": " \n"}, "A document is empty"),
        ({"text": "", "name": "a.txt"}, "Document 'a.txt' is empty"),
        ({"text": b"a"}, "is a bytes, not a string"),
        ({"text": "caf\udce9"}, "half of a character at place 3"),
    ],
)
def test_what_is_no_text_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        Document(**arguments)


def test_a_document_shows_its_size_and_not_its_content() -> None:
    assert repr(Document("secret " * 1000, name="a.txt")) == "<Document 'a.txt': 7,000 characters>"
    assert repr(Document(token_ids=range(3))) == "<Document: 3 tokens>"
