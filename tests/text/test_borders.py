"""Where chunks end: at borders of the text."""

from __future__ import annotations

from focus_core.text.borders import Borders
from focus_core.text.documents import Document, TokenizedDocument


def _words(text: str, *tokens: str) -> TokenizedDocument:
    """A document whose tokens are given as text."""
    assert "".join(tokens) == text
    starts = [len("".join(tokens[:index])) for index in range(len(tokens) + 1)]
    return TokenizedDocument(Document(text), list(range(len(tokens))), starts)


def test_a_sentence_begins_with_the_blank_of_its_first_token() -> None:
    """Byte-pair tokenizers join blank and word: a chunk would begin with the second token of a sentence."""
    document = _words("It ends. Next one", "It", " ends", ".", " Ne", "xt", " one")
    assert Borders(document).last(0, 5) == 3
    assert Borders(_words("It ends. Next", "It", " ends", ".", " ", "Next")).last(0, 4) == 4


def test_a_token_over_a_border_ends_its_chunk() -> None:
    """Tokens that hold the end of one sentence belong to it."""
    assert Borders(_words("Ja.\nNo yes", "Ja", ".\n", "No", " yes")).last(0, 3) == 2
    assert Borders(_words("Ja.\nNo yes", "Ja", ".\nN", "o", " yes")).last(0, 3) == 2
