"""Where a text is cut and where a BOS stands."""

from __future__ import annotations

import random
import textwrap
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.config import BOUNDARIES, FocusConfig
from focus_core.evaluation.facts import filler_sentences
from focus_core.text.chunking import Chunk, Cutting
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.layout import Layout, Prompt
from focus_core.text.tokenizer import TextTokenizer
from tests.engines import make_engine
from tests.tiny import byte_tokenizer

BOS = 1


def _layout(*, bos: int | None = BOS, bos_per_chunk: bool = True) -> Layout:
    config = FocusConfig(chunk_size=4, local_window=5, dynamic_prompt=3, bos_per_chunk=bos_per_chunk)
    return Layout(config.resolve(64), bos)


def _document(tokens: range | list[int]) -> TokenizedDocument:
    return TokenizedDocument.of_tokens(list(tokens))


def _prompt(tokens: range | list[int], *opening: int) -> Prompt:
    return Prompt(opening, _document(tokens))


def _rows(chunks: list[Chunk]) -> list[list[int]]:
    return [chunk.row for chunk in chunks]


def test_chunks_of_a_document() -> None:
    """Tokens would be lost at a cut, or a chunk would differ with the place of its document."""
    rows = _rows(_layout().document_chunks(_document(range(10, 19))))
    assert rows == [[1, 10, 11, 12, 13], [1, 14, 15, 16, 17], [1, 18]]


def test_authors_rule_has_a_bos_at_the_start_only() -> None:
    """Checkpoints of the authors would see a BOS where they never saw one."""
    layout = _layout(bos_per_chunk=False)
    rows = _rows(layout.document_chunks(_document(range(10, 19))))
    assert rows == [[1, 10, 11, 12, 13], [14, 15, 16, 17], [18]]
    chunks, local = layout.long_prompt(_prompt(range(10, 23), BOS))
    assert _rows(chunks) == [[1, 10, 11, 12], [13, 14, 15, 16], [17]]
    assert local.row == [1, 18, 19, 20, 21, 22]


def test_authors_rule_leaves_a_prompt_without_bos_as_it_is() -> None:
    """The authors' code adds none to the first chunk of a prompt that has none, and numbers would differ."""
    chunks, _ = _layout(bos_per_chunk=False).long_prompt(_prompt(range(10, 20)))
    assert _rows(chunks) == [[10, 11, 12, 13], [14]]


def test_long_prompt() -> None:
    """Between chunks and local context a token would be lost or read twice."""
    chunks, local = _layout().long_prompt(_prompt(range(10, 20)))
    assert _rows(chunks) == [[1, 10, 11, 12, 13], [1, 14]]
    assert local.row == [1, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("tokens", [[], [10], [10, 11, 12, 13], [10, 11, 12, 13, 14]])
def test_short_prompt_is_all_local(tokens: list[int]) -> None:
    """A prompt that fits the local window would be cut."""
    chunks, local = _layout().long_prompt(_prompt(tokens))
    assert (chunks, local.row) == ([], [1, *tokens])


def test_empty_document_has_no_chunk() -> None:
    """A slot of the memory would stand for nothing but a BOS."""
    assert _layout().document_chunks(_document([])) == []


@pytest.mark.parametrize(("tokens", "sizes"), [(4, [5]), (5, [5, 2]), (8, [5, 5])])
def test_cut_at_the_border(tokens: int, sizes: list[int]) -> None:
    """A document of exactly one chunk would get an empty second one."""
    assert [len(chunk) for chunk in _layout().document_chunks(_document(range(10, 10 + tokens)))] == sizes


@pytest.mark.parametrize(
    ("local", "dynamic_prompt"),
    [([10, 11, 12, 13], [1, 11, 12, 13]), ([10], [1, 10]), ([10, 11, 12], [1, 10, 11, 12])],
)
def test_dynamic_prompt(local: list[int], dynamic_prompt: list[int]) -> None:
    """Two BOS in a row, or one token less of the question after every chunk."""
    assert _layout().dynamic_prompt(_prompt(local, BOS)) == dynamic_prompt


def test_tokenizer_without_bos_has_none() -> None:
    """Token `None` would reach the model (Qwen has no BOS)."""
    layout = _layout(bos=None)
    assert _rows(layout.document_chunks(_document(range(10, 15)))) == [[10, 11, 12, 13], [14]]
    assert layout.dynamic_prompt(_prompt([10, 11, 12, 13])) == [11, 12, 13]
    assert layout.long_prompt(_prompt([10]))[1].row == [10]
    assert layout.plain([_document([10])], _prompt([11])) == [10, 11]


def test_a_document_that_begins_with_the_bos_string_counts_right() -> None:
    """Its first token would be taken for the layout's own, and be missing in usage. In a text the string is text."""
    chunk = _layout().document_chunks(_document([BOS, 10, 11]))[0]
    assert (chunk.row, chunk.token_ids, chunk.opening) == ([1, 1, 10, 11], [1, 10, 11], (1,))
    usage = make_engine().generate("Why?", ["<bos>" + "a" * 100], max_new_tokens=1).usage
    assert usage.document_tokens == usage.cache_creation == 105


def test_plain_text_is_one_large_chunk_with_its_question() -> None:
    """The plain model would read other tokens than a model that gets documents and question in one row."""
    layout, documents = _layout(), [_document([10, 11]), _document([12])]
    assert layout.plain(documents, _prompt([20, 21], BOS)) == [1, 10, 11, 12, 1, 20, 21]
    assert layout.plain([], _prompt([20, 21])) == [20, 21]
    apart = replace(layout, separator=(9, 9))  # texts that touch would read as one: "…12" and "34…"
    assert apart.plain(documents, _prompt([20], BOS)) == [1, 10, 11, 9, 9, 12, 1, 20]
    assert replace(apart, bos=None).plain(documents, _prompt([20])) == [10, 11, 9, 9, 12, 9, 9, 20]


@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    size=st.integers(1, 12),
    bos=st.sampled_from([None, BOS]),
    per_chunk=st.booleans(),
)
def test_chunks_joined_are_the_documents(sizes: list[int], size: int, bos: int | None, per_chunk: bool) -> None:
    """A chunk would span two documents, miss a token, or say that it lies elsewhere."""
    config = FocusConfig(chunk_size=size, local_window=5, dynamic_prompt=3, bos_per_chunk=per_chunk).resolve(64)
    documents = [_document(range(100 * i, 100 * i + length)) for i, length in enumerate(sizes)]
    chunks = Layout(config, bos).chunks_of(documents)
    for document in documents:
        own = [chunk for chunk in chunks if chunk.document is document.document]
        assert [token for chunk in own for token in chunk.token_ids] == list(document.token_ids)
        assert [(chunk.start, chunk.stop) for chunk in own] == [
            (start, min(start + size, len(document))) for start in range(0, len(document), size)
        ]
        has_bos = [chunk.opening == (BOS,) for chunk in own]
        assert has_bos == [bos is not None and (per_chunk or index == 0) for index in range(len(own))]


@given(tokens=st.integers(0, 60), own=st.booleans(), size=st.integers(1, 9), per_chunk=st.booleans())
def test_a_long_prompt_is_read_once(tokens: int, own: bool, size: int, per_chunk: bool) -> None:
    """Chunks and local context together are the prompt, whatever its length and opening."""
    config = FocusConfig(chunk_size=size, local_window=7, dynamic_prompt=3, bos_per_chunk=per_chunk).resolve(64)
    prompt = _prompt(range(10, 10 + tokens), *([BOS] if own else []))
    chunks, local = Layout(config, BOS).long_prompt(prompt)
    read = [token for chunk in chunks for token in chunk.token_ids] + list(local.tokens.token_ids)
    assert read == list(range(10, 10 + tokens))
    assert len(local.tokens) <= 7
    assert all(len(chunk.token_ids) <= size for chunk in chunks)


@given(text=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=60), size=st.integers(1, 9))
def test_chunks_know_their_characters(text: str, size: int) -> None:
    """Spans touch and cover the document; a chunk's text is what its tokens say, up to halves of characters."""
    if not text.strip():
        return
    tokenizer = byte_tokenizer()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [*(start for start, _ in encoded["offset_mapping"]), len(text)]
    document = TokenizedDocument(Document(text), encoded["input_ids"], starts)
    config = FocusConfig(chunk_size=size, local_window=5, dynamic_prompt=3).resolve(64)
    chunks = Layout(config, BOS).document_chunks(document)
    spans = [chunk.characters for chunk in chunks]
    assert None not in spans
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]  # type: ignore[misc]
    assert "".join(chunk.text or "" for chunk in chunks) == text
    for chunk in chunks:
        whole = tokenizer.decode(chunk.token_ids).strip("\ufffd")
        assert (chunk.text or "").startswith(whole) or whole in text


def test_the_key_is_the_row() -> None:
    """Two chunks with other tokens or another opening would get each other's keys and values."""
    layout, without = _layout(), _layout(bos=None)
    chunks = [layout.document_chunks(_document(tokens))[0] for tokens in ([10, 11], [10, 12], [10, 11, 0])]
    chunks += without.document_chunks(_document([10, 11]))
    assert len({chunk.key for chunk in chunks}) == 4
    assert layout.document_chunks(_document([10, 11]))[0].key == chunks[0].key


def test_a_chunk_says_where_it_lies() -> None:
    document = TokenizedDocument(Document("abcdefgh", name="a.txt"), list(range(8)), list(range(9)))
    first, second = _layout().document_chunks(document)
    assert repr(second) == "<Chunk of 'a.txt': tokens 4 to 8>"
    assert (first.characters, second.text) == ((0, 4), "efgh")


# --- borders and small documents --------------------------------------------------------------------------------------


def _text_document(text: str, name: str | None = None) -> TokenizedDocument:
    return TextTokenizer(byte_tokenizer()).document(Document(text, name=name))


def _texts(text: str, size: int) -> list[str]:
    document = _text_document(text)
    return [text[start:stop] for start, stop in Cutting(size, boundaries="paragraph").spans(document)]


def test_a_chunk_ends_at_the_last_paragraph_of_its_second_half() -> None:
    """A sentence that is cut in two is read by nobody."""
    assert _texts("aaaa\n\nbbbb\n\ncccc", 14) == ["aaaa\n\nbbbb\n\n", "cccc"]
    assert _texts("aaa\n\n" + "b" * 12, 10) == ["aaa\n\nbbbbb", "bbbbbbb"]  # the paragraph ends in the first half
    assert _texts("aaaaaa\nbb. cccc", 12) == ["aaaaaa\n", "bb. cccc"]  # a line before a sentence
    assert _texts("aaaa! bbb. cc", 12) == ["aaaa! bbb. ", "cc"]
    assert _texts("aaaa bbbb cc", 8) == ["aaaa bbb", "b cc"]  # neither: after exactly as many tokens


def test_a_chunk_of_prose_in_broken_lines_ends_at_a_sentence() -> None:
    """A line that only the width of a page has ended is no better end than any other word."""
    prose = textwrap.fill(" ".join(filler_sentences(random.Random(1), 40)), 72)
    *chunks, _ = _texts(prose, 400)
    assert len(chunks) > 3
    assert all(chunk.rstrip().endswith(".") for chunk in chunks)


@given(text=st.text("ab \n.", min_size=1, max_size=200), size=st.integers(1, 40))
def test_borders_lose_nothing_and_keep_the_size(text: str, size: int) -> None:
    document = _text_document(text) if text.strip() else _text_document(text + "x")
    for boundaries in BOUNDARIES:
        spans = list(Cutting(size, boundaries=boundaries).spans(document))
        assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
        assert spans[-1][1] == len(document)
        assert all(0 < stop - start <= size for start, stop in spans)
        if boundaries == "tokens":
            assert all(stop - start == size for start, stop in spans[:-1])


def test_a_tokenizer_without_characters_cuts_after_tokens() -> None:
    document = TokenizedDocument.of_tokens(list(range(10)))
    assert list(Cutting(4, boundaries="paragraph").spans(document)) == [(0, 4), (4, 8), (8, 10)]


def test_small_documents_share_a_chunk_and_keep_their_spans() -> None:
    """2,000 tickets would take 2,000 chunks."""
    layout = replace(_layout(), separator=(9, 9), config=replace(_layout().config, chunk_size=40))
    documents = [_text_document("a" * 10, "a"), _text_document("b" * 10, "b"), _text_document("c" * 30, "c")]
    documents += [_text_document(letter * 10, letter) for letter in "defg"]
    chunks = layout.chunks_of(documents, layout.cutting(pack=True))
    names = [[part.document.name for part in chunk.document_parts] for chunk in chunks]
    assert names == [["a", "b"], ["c"], ["d", "e", "f"], ["g"]]
    first = chunks[0]
    assert first.row == [1, *documents[0].token_ids, 9, 9, *documents[1].token_ids]
    assert [(part.start, part.stop, part.characters) for part in first.document_parts] == [(0, 10, (0, 10))] * 2
    assert [len(chunk) for chunk in layout.chunks_of(documents)] == [11, 11, 31, 11, 11, 11, 11]


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=30),
    size=st.integers(1, 60),
    separator=st.integers(0, 3),
)
def test_packs_are_all_documents_in_order_and_none_is_too_large(lengths: list[int], size: int, separator: int) -> None:
    packs = list(Cutting(size, pack=True).packs(lengths, separator))
    assert [index for first, stop in packs for index in range(first, stop)] == list(range(len(lengths)))
    for first, stop in packs:
        if stop - first > 1:
            assert sum(lengths[first:stop]) + separator * (stop - first - 1) <= size
            assert max(lengths[first:stop]) <= size // 4


def test_selected_chunks_read_on_where_they_touch() -> None:
    """All chunks of all documents are the row of the plain model; between others a paragraph ends."""
    layout = replace(_layout(), separator=(9, 9))
    documents = [_document(range(10, 23)), _document(range(30, 33))]
    chunks, prompt = layout.chunks_of(documents), _prompt([50], BOS)
    assert layout.selection(chunks, prompt) == layout.plain(documents, prompt)
    apart = layout.selection([chunks[0], chunks[2], chunks[4]], prompt)
    assert apart == [1, 10, 11, 12, 13, 9, 9, 18, 19, 20, 21, 9, 9, 30, 31, 32, 1, 50]
