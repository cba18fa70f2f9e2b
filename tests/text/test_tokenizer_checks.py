"""Tokenizers of strangers: no text is cut in silence, and no token reaches a model that does not know it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from focus_core import ConfigError, Document, DocumentError, FocusEngine, FocusError, UnsupportedModelError
from tests.tiny import byte_tokenizer

TEXT = "a longer text, of which nothing may be missing. " * 20
NEXT = 259  # the model's vocabulary ends before it


@pytest.fixture
def folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage, without its chat template."""
    left_out = shutil.ignore_patterns("adapter", "chat_template.jinja")
    return Path(shutil.copytree(model_folder, tmp_path / "model", ignore=left_out))


def _engine(folder: Path) -> FocusEngine:
    return FocusEngine.from_pretrained(folder, device="cpu", method="plain")


def _change(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    settings = json.loads(path.read_text())
    change(settings)
    path.write_text(json.dumps(settings))


def _settings(folder: Path, **settings: Any) -> None:
    _change(folder / "tokenizer_config.json", lambda found: found.update(settings))


def _add(folder: Path, content: str, number: int) -> None:
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    added = {"id": number, "content": content, **flags}
    _change(folder / "tokenizer.json", lambda found: found["added_tokens"].append(added))


TRUNCATION = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
PADDING = {"strategy": {"Fixed": 500}, "direction": "Left", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}


@pytest.mark.parametrize("settings", [{"truncation": TRUNCATION}, {"padding": PADDING}], ids=["cut", "padded"])
def test_settings_of_a_tokenizer_change_no_text(folder: Path, settings: dict[str, Any]) -> None:
    """A tokenizer.json may say that it cuts every text after two tokens, as some do that were saved while training."""
    expected = byte_tokenizer()(TEXT, add_special_tokens=False)["input_ids"]
    _change(folder / "tokenizer.json", lambda found: found.update(settings))
    engine = _engine(folder)
    assert engine.tokenize(TEXT) == expected
    assert list(engine.shared.tokenizer.document(Document(TEXT)).token_ids) == expected
    assert engine.count_question_tokens("What?") == 1 + len("What?")


@pytest.mark.parametrize("length", [-1, 0, 1, 2.5, 10**30, None])
def test_a_greatest_length_cuts_nothing(folder: Path, length: float | None) -> None:
    _settings(folder, model_max_length=length)
    assert _engine(folder).count_tokens(TEXT) == len(TEXT)


def test_a_greatest_length_that_is_no_number_is_refused(folder: Path) -> None:
    _settings(folder, model_max_length="a")
    with pytest.raises(UnsupportedModelError, match="model_max_length='a': it must be a number"):
        _engine(folder)


@pytest.mark.parametrize(("content", "number"), [("<x>", NEXT), ("<x>", NEXT + 7), (" ", NEXT), ("<x>", 10**9)])
def test_an_added_token_that_the_model_does_not_know_is_named(folder: Path, content: str, number: int) -> None:
    """An IndexError on a CPU, and on a GPU an error after which it can no longer be used. Other texts are read."""
    _add(folder, content, number)
    engine = _engine(folder)
    assert engine.generate("Well", max_new_tokens=1).usage.output_tokens == 1
    with pytest.raises(UnsupportedModelError, match=r"token '.+' with the number \d+, and the model knows 0 to 258"):
        engine.generate(f"Which {content} then", max_new_tokens=1)
    with pytest.raises(UnsupportedModelError, match="the model knows 0 to 258"):
        engine.generate("Well", [f"Which {content} then"], max_new_tokens=1)


def test_a_vocabulary_that_the_model_does_not_know_is_named(folder: Path) -> None:
    def shift(settings: dict[str, Any]) -> None:
        settings["model"]["vocab"] = {token: number + 1000 for token, number in settings["model"]["vocab"].items()}

    _change(folder / "tokenizer.json", shift)
    with pytest.raises(UnsupportedModelError, match="they do not belong together"):
        _engine(folder).generate("Well", max_new_tokens=1)


@pytest.mark.parametrize("tokens", [[5, 10**9], [-1, 5], [10**5000], [1.5], ["a"], [True]])
def test_a_document_of_tokens_that_the_model_does_not_know_is_refused(folder: Path, tokens: list[Any]) -> None:
    with pytest.raises(DocumentError, match=r"has tokens from|must be whole numbers"):
        _engine(folder).generate("Well", [Document(token_ids=tokens)], max_new_tokens=1)


def test_a_question_of_no_tokens_is_refused(folder: Path) -> None:
    """The model went on from a BOS."""
    nothing = {"type": "Replace", "pattern": {"Regex": "."}, "content": ""}
    _change(folder / "tokenizer.json", lambda found: found.update(normalizer=nothing))
    with pytest.raises(ConfigError, match="the tokenizer makes no tokens of it"):
        _engine(folder).generate("Well", max_new_tokens=1)


def test_what_a_tokenizer_raises_is_named(folder: Path) -> None:
    """One without a token for what it does not know, and one that panics in a language of its own."""
    wordpiece = {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##", "vocab": {"a": 0}}
    wordpiece["max_input_chars_per_word"] = 100
    _change(folder / "tokenizer.json", lambda found: found.update(model=wordpiece, added_tokens=[]))
    _settings(folder, bos_token=None, eos_token=None, pad_token=None)
    with pytest.raises(FocusError, match=r"tokenizer cannot read a text: .*\[UNK\]"):
        _engine(folder).generate("Well", max_new_tokens=1)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"bos_token": 5}, "bos_token has to be"),
        ({"added_tokens_decoder": {"a": {}}}, "invalid literal"),
        ({"tokenizer_class": 5}, "no attribute"),
        ({"padding_side": "middle"}, "Padding side"),
    ],
)
def test_settings_that_cannot_be_are_named(folder: Path, settings: dict[str, Any], reason: str) -> None:
    _settings(folder, **settings)
    with pytest.raises(UnsupportedModelError, match=f"has no tokenizer that transformers can load: .*{reason}"):
        _engine(folder)


@pytest.mark.parametrize("template", [5, ["a"], "{% for %}", [{"name": "tools", "template": "a"}], {"default": 5}])
def test_a_template_that_cannot_be_is_named_when_it_is_used(folder: Path, template: Any) -> None:
    _settings(folder, chat_template=template)
    with pytest.raises(FocusError, match=r"chat template|no tokenizer that transformers can load"):
        _engine(folder).generate("Well", max_new_tokens=1)
