"""Where a text is cut and where a BOS stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from focus_core.config import FocusConfig
from focus_core.text.chunking import Chunk
from focus_core.text.documents import Document, TokenizedDocument
from focus_core.text.layout import Layout, Prompt
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
