"""Where a text is cut and where a BOS stands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tokenizers import processors

from focus_core.text.chunking import TextLayout
from focus_core.config import FocusConfig
from focus_core.text.tokenizer import bos_of
from tests.tiny import byte_tokenizer

BOS = 1


def _layout(*, bos: int | None = BOS, bos_per_chunk: bool = True) -> TextLayout:
    config = FocusConfig(chunk_size=4, local_window=5, dynamic_prompt=3, bos_per_chunk=bos_per_chunk)
    return TextLayout(config.resolve(64), bos)


def test_chunks_of_a_document() -> None:
    """Tokens would be lost at a cut, or a chunk would differ with the place of its document."""
    assert _layout().document_chunks(range(10, 19)) == [[1, 10, 11, 12, 13], [1, 14, 15, 16, 17], [1, 18]]


def test_authors_rule_has_a_bos_at_the_start_only() -> None:
    """Checkpoints of the authors would see a BOS where they never saw one."""
    layout = _layout(bos_per_chunk=False)
    assert layout.document_chunks(range(10, 19)) == [[1, 10, 11, 12, 13], [14, 15, 16, 17], [18]]
    chunks, local = layout.long_prompt([1, *range(10, 23)])
    assert chunks == [[1, 10, 11, 12], [13, 14, 15, 16], [17]]
    assert local == [1, 18, 19, 20, 21, 22]


def test_authors_rule_leaves_a_prompt_without_bos_as_it_is() -> None:
    """The authors' code adds none to the first chunk of a prompt that has none, and numbers would differ."""
    chunks, _ = _layout(bos_per_chunk=False).long_prompt(list(range(10, 20)))
    assert chunks == [[10, 11, 12, 13], [14]]


def test_long_prompt() -> None:
    """Between chunks and local context a token would be lost or read twice."""
    chunks, local = _layout().long_prompt(list(range(10, 20)))
    assert chunks == [[1, 10, 11, 12, 13], [1, 14]]
    assert local == [1, 15, 16, 17, 18, 19]


@pytest.mark.parametrize("tokens", [[], [10], [10, 11, 12, 13], [10, 11, 12, 13, 14]])
def test_short_prompt_is_all_local(tokens: list[int]) -> None:
    """A prompt that fits the local window would be cut."""
    assert _layout().long_prompt(tokens) == ([], [1, *tokens])


def test_empty_document_has_no_chunk() -> None:
    """A slot of the memory would stand for nothing but a BOS."""
    assert _layout().document_chunks([]) == []


@pytest.mark.parametrize(("tokens", "sizes"), [(4, [5]), (5, [5, 2]), (8, [5, 5])])
def test_cut_at_the_border(tokens: int, sizes: list[int]) -> None:
    """A document of exactly one chunk would get an empty second one."""
    assert [len(chunk) for chunk in _layout().document_chunks(range(10, 10 + tokens))] == sizes


@pytest.mark.parametrize(
    ("local", "prompt"),
    [
        ([1, 10, 11, 12, 13], [1, 11, 12, 13]),  # the last three, and a BOS in front
        ([1, 10], [1, 10]),
        ([1, 10, 11, 12], [1, 10, 11, 12]),  # the local context's own BOS does not count as text
        ([10, 11], [1, 10, 11]),
    ],
)
def test_dynamic_prompt(local: list[int], prompt: list[int]) -> None:
    """Two BOS in a row, or one token less of the question behind every chunk."""
    assert _layout().dynamic_prompt(local) == prompt


def test_tokenizer_without_bos_has_none() -> None:
    """Token `None` would reach the model (Qwen has no BOS)."""
    layout = _layout(bos=None)
    assert layout.document_chunks(range(10, 15)) == [[10, 11, 12, 13], [14]]
    assert layout.dynamic_prompt([10, 11, 12, 13]) == [11, 12, 13]
    assert layout.long_prompt([10])[1] == [10]
    assert layout.plain([[10]], [11]) == [10, 11]


def test_bos_that_is_there_already_is_not_doubled() -> None:
    """A document that was tokenized with special tokens would start with two."""
    assert _layout().document_chunks([1, 10, 11])[0] == [1, 10, 11]


def test_plain_text_is_one_large_chunk_with_its_question() -> None:
    """The plain model would read other tokens than a model that gets documents and question in one row."""
    layout = _layout()
    assert layout.plain([[10, 11], [12]], [1, 20, 21]) == [1, 10, 11, 12, 1, 20, 21]
    assert layout.plain([], [20, 21]) == [20, 21]
    apart = replace(layout, separator=(9, 9))  # texts that touch would read as one: "…12" and "34…"
    assert apart.plain([[10, 11], [12], []], [1, 20]) == [1, 10, 11, 9, 9, 12, 1, 20]
    assert replace(apart, bos=None).plain([[10], [12]], [20]) == [10, 9, 9, 12, 9, 9, 20]
    assert layout.plain([[]], [20, 21]) == [20, 21]


@pytest.mark.parametrize("bos", [BOS, None])
@pytest.mark.parametrize("separator", [(), (7,), (7, 8)])
@pytest.mark.parametrize("documents", [[], [[]], [[10]], [[BOS, 10], [11, 12]], [[10, 11], [], [BOS, 12]]])
@pytest.mark.parametrize("local", [[20], [BOS, 20]])
def test_length_of_a_plain_text(
    bos: int | None, separator: tuple[int, ...], documents: list[list[int]], local: list[int]
) -> None:
    """What decides between the plain model and chunks is computed without putting the text together."""
    layout = replace(_layout(bos=bos), separator=separator)
    assert layout.plain_length(documents, local) == len(layout.plain(documents, local))


_SAYS_BOS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
_SAYS_NONE = "{% for m in messages %}{{ m.content }}{% endfor %}"
_REFUSES = "{{ raise_exception('no') }}"


@pytest.mark.parametrize(
    ("writes", "template", "bos"),
    [
        (True, None, 1),
        (True, _SAYS_NONE, 1),
        (False, _SAYS_BOS, 1),
        (False, _SAYS_NONE, None),
        (False, None, None),
        (False, _REFUSES, None),
    ],
)
def test_a_bos_that_nothing_writes_is_none(writes: bool, template: str | None, bos: int | None) -> None:
    """Chunks would start with a token that stands in front of no text otherwise (GPT-2 and its like)."""
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if not writes:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    assert tokenizer.bos_token_id == 1
    assert bos_of(tokenizer) == bos
