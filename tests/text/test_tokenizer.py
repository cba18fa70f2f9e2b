"""From strings to tokens: the BOS that a tokenizer writes, templates, and documents that are tokenized once."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from tokenizers import normalizers, processors

from focus_core import ConfigError, Document, DocumentError
from focus_core.text import tokenizer as tokenizer_module
from focus_core.text.sentences import sentence_spans
from focus_core.text.tokenizer import TextTokenizer
from tests.tiny import byte_tokenizer

_SAYS_BOS = "{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}"
_SAYS_NONE = "{% for m in messages %}{{ m.content }}{% endfor %}"
_MARKS_TURNS_WITH_BOS = "{% for m in messages %}{{ bos_token + m.content }}{% endfor %}{{ bos_token + 'assistant' }}"
_REFUSES = "{{ raise_exception('no') }}"


def _tokenizer(template: str | None = None, *, writes_bos: bool = True) -> TextTokenizer:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = template
    if not writes_bos:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
    return TextTokenizer(tokenizer)


@pytest.mark.parametrize(
    ("writes", "template", "bos"),
    [
        (True, None, 1),
        (True, _SAYS_NONE, 1),
        (False, _SAYS_BOS, 1),
        (False, _SAYS_NONE, None),
        (False, None, None),
        (False, _REFUSES, None),
        (False, _MARKS_TURNS_WITH_BOS, None),
    ],
)
def test_a_bos_that_nothing_writes_is_none(writes: bool, template: str | None, bos: int | None) -> None:
    """Chunks would start with a token that stands in front of no text otherwise (GPT-2 and its like)."""
    tokenizer = _tokenizer(template, writes_bos=writes)
    assert tokenizer.tokenizer.bos_token_id == 1
    assert tokenizer.bos == bos


@pytest.mark.parametrize("template", [_SAYS_BOS, _SAYS_NONE])
def test_a_prompt_has_one_bos_whoever_writes_it(template: str) -> None:
    prompt = _tokenizer(template).prompt([{"role": "user", "content": "ab"}], chat_template=True)
    assert prompt.opening == (1,)
    assert len(prompt) == 3


def test_a_bos_string_in_a_question_is_text() -> None:
    """It would begin a text anew in the middle of the question; by hand, in a template of one's own, it may."""
    messages = [{"role": "user", "content": "<bos>ab"}]
    assert _tokenizer(_SAYS_NONE).prompt(messages, chat_template=True).row.count(1) == 1
    assert len(_tokenizer(_SAYS_NONE).prompt(messages, chat_template=True)) == 1 + len("<bos>ab")
    assert len(_tokenizer(None).prompt(messages, chat_template=True)) == 1 + len("<bos>ab")
    assert _tokenizer(_SAYS_NONE).prompt(messages, chat_template=False).row[:2] == [1, 1]


def test_a_template_that_refuses_is_named() -> None:
    with pytest.raises(ConfigError, match="refuses these messages: no"):
        _tokenizer(_REFUSES).prompt([{"role": "user", "content": "a"}], chat_template=True)


def test_equal_documents_are_tokenized_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By content, and each keeps its own name."""
    tokenizer = _tokenizer()
    first = tokenizer.document(Document("some text", name="a"))
    monkeypatch.setattr(tokenizer, "_with_characters", None)
    second = tokenizer.document(Document("some text", name="b"))
    assert second.token_ids is first.token_ids
    assert (first.document.name, second.document.name) == ("a", "b")


def test_a_name_and_metadata_are_never_read() -> None:
    """A file may be called `<eos>.txt`."""
    named = _tokenizer().document(Document("some text", name="<eos>.txt", metadata={"path": "<bos>"}))
    assert list(named.token_ids) == list(_tokenizer().document(Document("some text")).token_ids)


def test_documents_are_remembered_up_to_a_number_of_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory would grow with every text that was ever asked about."""
    monkeypatch.setattr(tokenizer_module, "_REMEMBERED_TOKENS", 20)
    tokenizer = _tokenizer()
    made: list[str] = []
    tokenize = tokenizer._with_characters

    def noting(document: Document, front: str) -> object:
        made.append(str(document.text))
        return tokenize(document, front)

    monkeypatch.setattr(tokenizer, "_with_characters", noting)
    texts = [letter * 10 for letter in "abc"]
    for text in (*texts, texts[2], texts[1], texts[0], texts[2]):  # of tokens that are letters, two fit
        tokenizer.document(Document(text))
    assert made == [*texts, texts[0], texts[2]]


def test_characters_of_tokens() -> None:
    """Bytes of one character begin where it begins."""
    document = _tokenizer().document(Document("aé\U0001f600b"))
    assert list(document.starts or ()) == [0, 1, 1, 2, 2, 2, 2, 3, 4]
    assert document.characters(0, 3) == (0, 2)
    assert document.characters(3, len(document)) == (2, 4)


def test_half_a_character_is_refused() -> None:
    with pytest.raises(DocumentError, match=r"half of a character at place 1 \('.udce9'\)"):
        _tokenizer().tokenize("a\udce9")


@pytest.mark.parametrize(
    "normalizer",
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()]),
        normalizers.Replace("  ", " "),
    ],
    ids=["NFKC", "NFD", "lower case", "blanks"],
)
def test_characters_are_those_of_the_text_before_it_is_normalised(normalizer: normalizers.Normalizer) -> None:
    """A source has the characters of the document, whatever a tokenizer makes of them."""
    backend = byte_tokenizer()
    backend.backend_tokenizer.normalizer = normalizer
    tokenizer = TextTokenizer(backend)
    text = "The \ufb01le of \uff23lara. Cafe\u0301 is \u00e9 here.  Two  blanks. The key is \u24607. End."
    document = tokenizer.document(Document(text))
    assert document.starts is not None
    spans = sentence_spans(text)
    assert len(spans) == 4
    for start, stop in spans:
        tokens = document.token_ids[bisect_left(document.starts, start) : bisect_left(document.starts, stop)]
        assert tokenizer.decode(list(tokens)) == normalizer.normalize_str(text[start:stop])
