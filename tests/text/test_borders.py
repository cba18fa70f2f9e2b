"""Where chunks end: at borders of the text, and after an edit where they ended before."""

from __future__ import annotations

import random
from hashlib import sha256

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from focus_core.config import FocusConfig
from focus_core.evaluation.facts import filler_sentences
from focus_core.text.borders import Borders
from focus_core.text.chunking import Cutting
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.layout import Layout
from focus_core.text.tokenizer import TextTokenizer
from tests.tiny import byte_tokenizer

SIZE = 200


def _tokenized(text: str) -> TokenizedDocument:
    """A token for each byte."""
    return TextTokenizer(byte_tokenizer()).document(Document(text))


def _ends(document: TokenizedDocument, size: int = SIZE) -> list[int]:
    return [stop for _, stop in Cutting(size, boundaries="content").spans(document)]


def _keys(document: TokenizedDocument, boundaries: str = "content", size: int = SIZE) -> list[bytes]:
    layout = Layout(FocusConfig(chunk_size=size, boundaries=boundaries).resolve(2 * size), bos=1)
    return [chunk.key for chunk in layout.document_chunks(document)]


def _story(seed: int, paragraphs: int) -> str:
    rng = random.Random(seed)
    return "\n\n".join(" ".join(filler_sentences(rng, rng.randint(1, 3))) for _ in range(paragraphs))


# --- borders ----------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("rule", ["last", "steady"])
def test_the_best_kind_of_border_comes_first(rule: str) -> None:
    """A chunk would end within a paragraph although one ends near by."""
    borders = Borders(_tokenized("a. b\nc\n\nd\ne. f"))
    choose = getattr(borders, rule)
    assert choose(0, 14) == 8  # the only paragraph, though other borders follow
    assert choose(8, 14) == 10  # the only line
    assert choose(10, 14) == 13  # the only sentence
    assert choose(0, 4) == 3


def test_the_smallest_digest_of_the_neighbours_decides() -> None:
    """With any other order, two chunks that begin at different tokens would rarely end at the same one."""
    text = " ".join(f"Number {number} is here." for number in range(40))
    borders = [found for found in range(2, 500) if text[found - 2 : found] == ". "]  # a token is a character
    document = _tokenized(text)
    ids = document.token_ids

    def digest(token: int) -> bytes:
        near = ids[max(token - 16, 0) : token + 16]
        return sha256(b"".join(one.to_bytes(8, "little") for one in near)).digest()

    for first, stop in ((0, 400), (100, 300), (130, 330)):
        expected = min((border for border in borders if first < border <= stop), key=digest)
        assert Borders(document).steady(first, stop) == expected


def test_repetitive_text_has_long_chunks() -> None:
    """A log of equal lines would be cut after half of a chunk."""
    assert _ends(_tokenized("same line\n" * 50)) == [200, 400, 500]


def test_without_borders_any_token_may_end_a_chunk() -> None:
    """Documents of token ids, and texts of one long line, would be read anew after every edit."""
    rng = random.Random(0)
    ids = [rng.randrange(1000) for _ in range(2000)]
    before, after = (TokenizedDocument.of_tokens(tokens) for tokens in (ids, [7, 7, 7, *ids]))
    assert len(set(_keys(after)) - set(_keys(before))) <= 3
    assert not set(_keys(after, "paragraph")) & set(_keys(before, "paragraph"))


# --- edits ------------------------------------------------------------------------------------------------------------


@given(
    text=st.one_of(st.text("ab \n.", min_size=1, max_size=400), st.integers(0, 99).map(lambda seed: _story(seed, 5))),
    size=st.integers(1, 90),
)
def test_chunks_are_the_document_and_none_is_too_large(text: str, size: int) -> None:
    document = _tokenized(text + "x")
    spans = list(Cutting(size, boundaries="content").spans(document))
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == len(document)
    assert all(size // 2 < stop - start <= size for start, stop in spans[:-1])
    assert 0 < spans[-1][1] - spans[-1][0] <= size


@settings(max_examples=30)
@given(seed=st.integers(0, 99), head=st.text("ab. \n", max_size=300))
def test_ends_depend_on_the_text_near_them(seed: int, head: str) -> None:
    """Whatever stands far before, a range of tokens has the same border: ends that met once stay together."""
    story = _story(seed, 12)
    before, after = _tokenized(story), _tokenized(head + story)
    moved = len(after) - len(before)
    borders, others = Borders(before), Borders(after)
    for first in range(SIZE // 2, len(before) - SIZE, 37):
        assert others.steady(first + moved, first + moved + 100) == borders.steady(first, first + 100) + moved
    met = min({end + moved for end in _ends(before)} & set(_ends(after)))
    assert [end for end in _ends(after) if end >= met] == [end + moved for end in _ends(before) if end + moved >= met]


@pytest.mark.parametrize("kind", ["insert", "delete", "change", "first page"])
def test_an_edit_reads_few_chunks_anew(kind: str) -> None:
    """With fixed borders everything after an edit is read again: the median of seven edits, of about 35 chunks.

    LMCache #4667: about a chunk of every document was lost at seams.
    """
    anew: dict[str, list[int]] = {"content": [], "tokens": []}
    for seed in range(7):
        paragraphs = _story(seed, 40).split("\n\n")
        edited = {
            "insert": [*paragraphs[:12], _story(seed + 100, 1), *paragraphs[12:]],
            "delete": [*paragraphs[:12], *paragraphs[13:]],
            "change": [*paragraphs[:12], "Another sentence stands here. " + paragraphs[12], *paragraphs[13:]],
            "first page": [_story(seed + 200, 4), *paragraphs],
        }[kind]
        before, after = _tokenized("\n\n".join(paragraphs)), _tokenized("\n\n".join(edited))
        for boundaries, counts in anew.items():
            counts.append(len(set(_keys(after, boundaries)) - set(_keys(before, boundaries))))
    assert sorted(anew["content"])[3] <= 6
    assert sorted(anew["tokens"])[3] >= 12


def test_documents_that_share_a_passage_share_its_chunks() -> None:
    """A clause that stands in a hundred contracts would be read a hundred times."""
    passage = _story(5, 40)
    one, other = _tokenized(_story(6, 9) + "\n\n" + passage), _tokenized(_story(7, 4) + "\n\n" + passage)
    shared = set(_keys(one)) & set(_keys(other))
    assert len(shared) >= 0.8 * len(_keys(_tokenized(passage)))
