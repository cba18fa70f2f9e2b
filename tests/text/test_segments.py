"""The tokens of a text's segments are the tokens of the text, or it is one segment."""

from __future__ import annotations

import json
from functools import cache
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from focus_core.text import segments as segments_module
from focus_core.text.segments import segmenter
from focus_core.text.tokenizer import TextTokenizer
from tests.text.tokenizers import tokenizer_of

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = GGUF_PRE_TOKENIZER_SPLITS["llama3"]
_CONTROL = "<|end|>"
_CORPUS = [
    "It is. The end! Who? I'll go.\nIt's 12.5 o'clock\n\n  - one\n\n  - two\t(three)\r\n\r\nfour: x = 5;\n\tif (x) {\n",
    "\t\ty();\n/ a\n// b ./ ?\u0301 e\u0301 \u00e9 \u1112\u1161\u11ab 第一。 第二。\n\n\u3000第三。 👩\u200d🚀! ",
    "a\u00a0b.\u2003c \x1c\x85.\n",
] * 4
_FRAGMENTS = [
    *(
        "a",
        "Be",
        "1",
        "23",
        "²",
        "Ⅷ",
        "é",
        "e\u0301",
        "\u0301",
        "\u1112\u1161\u11ab",
        "\u1161",
        "第一",
        "。",
        "ſ",
        "\ufb01",
    ),
    *(" ", "  ", "\t", "\n", "\n\n", "\r\n", "\r", "\v", "\f", "\x1c", "\x85", "\u00a0", "\u2003", "\u2028", "\u3000"),
    *(
        ".",
        "!",
        "?",
        "…",
        "\u037e",
        "'",
        "'s",
        "'LL",
        '"',
        "”",
        ")",
        "]",
        "/",
        "//",
        ":",
        "=",
        "_",
        "👩\u200d🚀",
        "\u200b",
    ),
    *(". ", ".\n", "\n ", "\n/", "a. B", "a\nb", _CONTROL, "<|end", "|>", "    "),
]
TEXTS = st.one_of(st.lists(st.sampled_from(_FRAGMENTS), max_size=40).map("".join), st.text(max_size=40))


def _by_pattern(pattern: str) -> pre_tokenizers.PreTokenizer:
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _byte_level(**settings: bool) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.ByteLevel(**{"add_prefix_space": False, **settings})


def _apart(digits: pre_tokenizers.PreTokenizer, others: pre_tokenizers.PreTokenizer) -> pre_tokenizers.PreTokenizer:
    return pre_tokenizers.Sequence([digits, others])


# What splits, what normalizes, what comes last; the names are of models that have them.
_CUT: dict[str, tuple[Any, Any, Any]] = {
    "GPT-2": (_byte_level(), None, processors.ByteLevel(trim_offsets=False)),
    "SmolLM2": (_apart(pre_tokenizers.Digits(individual_digits=True), _byte_level()), None, None),
    "StarCoder": (_apart(pre_tokenizers.Digits(), _byte_level()), None, processors.ByteLevel(add_prefix_space=False)),
    "GPT-2, as a pattern": (_by_pattern(_GPT2), normalizers.Sequence([]), None),
    "Llama 3": (_by_pattern(_LLAMA3), None, processors.Sequence([processors.ByteLevel(trim_offsets=False)])),
    "Llama 3, digits apart": (_apart(pre_tokenizers.Digits(individual_digits=True), _by_pattern(_LLAMA3)), None, None),
    "Qwen 2": (_by_pattern(GGUF_PRE_TOKENIZER_SPLITS["qwen2"]), normalizers.NFC(), None),
    "Qwen 3.5": (_by_pattern(GGUF_PRE_TOKENIZER_SPLITS["qwen35"]), normalizers.NFC(), None),
    "Mistral Nemo": (_by_pattern(GGUF_PRE_TOKENIZER_SPLITS["tekken"]), None, None),
    "gpt-oss": (_by_pattern(GGUF_PRE_TOKENIZER_SPLITS["gpt-4o"]), normalizers.Sequence([normalizers.NFC()]), None),
}
_KINDS = pytest.mark.parametrize("kind", _CUT)


@cache
def _merging_over_borders() -> str:
    """Its merges were learned without any pattern, so that nothing but a pattern keeps them from a border."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = _byte_level(use_regex=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=700, initial_alphabet=alphabet, show_progress=False, max_token_length=6)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    return str(tokenizer.to_str())


def _tokenizer(
    splitter: Any = None, normalizer: Any = None, processor: Any = None, added: tuple[AddedToken, ...] = ()
) -> PreTrainedTokenizerFast:
    backend = Tokenizer.from_str(_merging_over_borders())
    backend.pre_tokenizer = splitter or _byte_level()
    if normalizer is not None:
        backend.normalizer = normalizer
    if processor is not None:
        backend.post_processor = processor
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(_CONTROL, special=True)])
    backend.add_tokens([AddedToken("    ", normalized=True), *added])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=_CONTROL)


@cache
def _of_kind(kind: str) -> PreTrainedTokenizerFast:
    return _tokenizer(*_CUT[kind])


def _encoded(tokenizer: PreTrainedTokenizerFast, text: str, offset: int = 0) -> list[tuple[int, int, int]]:
    """Tokens, each with its first character and the one after its last."""
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    places = zip(found["input_ids"], found["offset_mapping"], strict=True)
    return [(token, start + offset, stop + offset) for token, (start, stop) in places]


def _in_segments(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int, int]]:
    found, offset = [], 0
    for segment in segmenter(tokenizer)(text):
        found += _encoded(tokenizer, segment, offset)
        offset += len(segment)
    return found


@_KINDS
@given(text=TEXTS)
def test_segments_have_the_tokens_and_characters_of_the_whole(kind: str, text: str) -> None:
    tokenizer = _of_kind(kind)
    assert "".join(segmenter(tokenizer)(text)) == text
    assert _in_segments(tokenizer, text) == _encoded(tokenizer, text)


@_KINDS
@given(text=TEXTS.filter(bool), front=st.sampled_from(["", " ", "\n"]))
def test_a_text_has_the_same_tokens_whether_it_is_cut_or_not(kind: str, text: str, front: str) -> None:
    """With control tokens in it, and after what a template writes."""
    cut, whole = TextTokenizer(_of_kind(kind)), TextTokenizer(_of_kind(kind))
    whole._segments = lambda text: [text]
    assert cut._joined([text], front)[0] == whole._behind(front, text).token_ids
    assert cut._as_text(text, front) == whole._as_text(text, front)
    assert cut._encode(text) == whole._encode(text)
    assert cut._as_text(text, front) == whole._as_text(text, front)  # from remembered segments


@pytest.mark.parametrize("pattern", segments_module._BORDERS)
def test_no_short_text_is_split_otherwise_where_it_is_cut(pattern: str) -> None:
    """All texts of five characters, of each class that the patterns tell apart."""
    find, split = segments_module._BORDERS[pattern], pre_tokenizers.Split(Regex(pattern), "isolated")
    cut = 0
    for letters in product("aA1./\u0301 \t\n\r", repeat=5):
        text = "".join(letters)
        borders = [*find(text)]
        if borders:
            parts = [text[start:stop] for start, stop in zip([0, *borders], [*borders, len(text)], strict=True)]
            of_parts = [word for part in parts for word, _ in split.pre_tokenize_str(part)]
            assert of_parts == [word for word, _ in split.pre_tokenize_str(text)], repr(text)
            cut += 1
    assert cut > 1000


@_KINDS
def test_sentences_and_lines_are_segments(kind: str) -> None:
    """Texts would be encoded as a whole, and nobody would notice."""
    cut = segmenter(_of_kind(kind))
    assert cut("One. Two (2.) Three?” No.3") == ["One.", " Two (2.)", " Three?”", " No.3"]
    lines = cut("第一。\n\n第二\n  if x;\n  y;")
    assert [line.strip() for line in lines] == ["第一。", "第二", "if x;", "y;"]
    assert cut("no border \n") == ["no border \n"]
    assert cut("") == [""]


def test_the_patterns_of_every_kind_are_tested() -> None:
    known = {str(split) for split in GGUF_PRE_TOKENIZER_SPLITS.values()} | {_GPT2}
    assert segments_module._BORDERS.keys() <= known
    tested = {json.dumps(pattern) for pattern in segments_module._BORDERS}
    states = "".join(splitter.__getstate__().decode() for splitter, _, _ in _CUT.values())
    assert all(pattern in states for pattern in tested)


_GROUND = _by_pattern(_LLAMA3)
_TWICE = processors.TemplateProcessing(single="$A $A", special_tokens=[])
_UNKNOWN: dict[str, PreTrainedTokenizerFast] = {
    "another pattern": _tokenizer(_by_pattern(_LLAMA3 + "|x")),
    "a pattern that looks behind": _tokenizer(_by_pattern(r"(?<=\. )\w+|.")),
    "a string": _tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Split(_LLAMA3, "isolated"), _byte_level(use_regex=False)])
    ),
    "matches are removed": _tokenizer(
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_LLAMA3), "removed"), _byte_level(use_regex=False)])
    ),
    "matches are inverted": _tokenizer(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3), "isolated", invert=True), _byte_level(use_regex=False)]
        )
    ),
    "two patterns": _tokenizer(pre_tokenizers.Sequence([_GROUND, _byte_level()])),
    "no pattern": _tokenizer(_byte_level(use_regex=False)),
    "a blank in front of a text": _tokenizer(_byte_level(add_prefix_space=True)),
    "a blank in front of matches": _tokenizer(
        pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(_LLAMA3), "isolated"), _byte_level(add_prefix_space=True, use_regex=False)]
        )
    ),
    "words": _tokenizer(pre_tokenizers.Whitespace()),
    "BERT": _tokenizer(pre_tokenizers.BertPreTokenizer()),
    "NFKC": _tokenizer(_GROUND, normalizers.NFKC()),
    "lower case": _tokenizer(_GROUND, normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])),
    "ends are stripped": _tokenizer(_GROUND, normalizers.Strip()),
    "blanks are replaced": _tokenizer(_GROUND, normalizers.Replace(". ", "_")),
    "a first blank counts": _tokenizer(_GROUND, None, processors.ByteLevel(trim_offsets=True, add_prefix_space=True)),
    "a text that comes twice": _tokenizer(_GROUND, None, _TWICE),
    "an added token with a border": _tokenizer(_GROUND, added=(AddedToken(". A"),)),
    "an added token of lines": _tokenizer(_GROUND, added=(AddedToken("\n\n"),)),
    "an added token takes blanks before": _tokenizer(_GROUND, added=(AddedToken("x", lstrip=True),)),
    "an added token takes blanks after": _tokenizer(_GROUND, added=(AddedToken("x", rstrip=True),)),
    "an added token is a word": _tokenizer(_GROUND, added=(AddedToken("x", single_word=True),)),
    **{kind: tokenizer_of(kind) for kind in ("bytes", "prepend", "metaspace", "merges")},
}


@pytest.mark.parametrize("kind", _UNKNOWN)
def test_what_is_not_known_to_be_local_is_encoded_as_a_whole(kind: str) -> None:
    text = "One. Two.\nThree\n\nfour"
    assert segmenter(_UNKNOWN[kind])(text) == [text]


def test_merges_by_chance_and_other_models_are_encoded_as_a_whole() -> None:
    backend = Tokenizer(models.BPE(dropout=0.5))
    backend.pre_tokenizer = _byte_level()
    words = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    words.pre_tokenizer = _byte_level()
    for tokenizer in (backend, words):
        assert segmenter(PreTrainedTokenizerFast(tokenizer_object=tokenizer))("a. b") == ["a. b"]


def test_parts_in_python_are_encoded_as_a_whole() -> None:
    class InPython:
        def pre_tokenize(self, text: Any) -> None: ...

        def normalize(self, text: Any) -> None: ...

    splits, normalizes = _tokenizer(_GROUND), _tokenizer(_GROUND)
    splits.backend_tokenizer.pre_tokenizer = pre_tokenizers.PreTokenizer.custom(InPython())
    normalizes.backend_tokenizer.normalizer = normalizers.Normalizer.custom(InPython())
    for tokenizer in (splits, normalizes):
        assert segmenter(tokenizer)("a. b") == ["a. b"]


def test_a_class_that_changes_texts_is_encoded_as_a_whole() -> None:
    class Own(PreTrainedTokenizerFast):  # type: ignore[misc]
        def _encode_plus(self, text: Any, *given: Any, **options: Any) -> Any:
            return super()._encode_plus(text, *given, **options)

    own = Own(tokenizer_object=_of_kind("GPT-2").backend_tokenizer)
    assert segmenter(own)("a. b") == ["a. b"]


# --- edits ------------------------------------------------------------------------------------------------------------


def test_of_an_edited_text_only_what_is_new_is_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(_of_kind("SmolLM2"))
    called, given = tokenizer._called, list[str]()

    def noting(texts: str | list[str]) -> Any:
        given.extend([texts] if isinstance(texts, str) else texts)
        return called(texts)

    monkeypatch.setattr(tokenizer, "_called", noting)
    sentences = [f"Sentence number {number} is written here. " * 2 for number in range(100)]
    tokenizer.tokenize("".join(sentences))
    assert sum(map(len, given)) <= len("".join(sentences))
    given.clear()
    sentences[50] = "This one is new. And so is this. "
    edited = "".join(sentences)
    tokens = tokenizer.tokenize(edited)
    assert sum(map(len, given)) < 120  # what is new, what follows it, and the first sentence
    assert tokens == _of_kind("SmolLM2")(edited, add_special_tokens=False)["input_ids"]
