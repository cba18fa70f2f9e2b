"""Options and questions with impossible values are refused by name, before any work."""

from __future__ import annotations

from typing import Any

import pytest

from focus_core import (
    ConfigError,
    DocumentError,
    FocusEngine,
)
from tests.engines import QUESTION, A, cold, make_engine


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"max_new_tokens": -3}, "max_new_tokens=-3"),
        ({"stop": ["a", ""]}, "empty string"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"temperature": 1e-45}, "temperature=1e-45"),
        ({"top_k": 3.5}, "top_k=3.5"),
        ({"top_p": 0.0}, "top_p=0.0"),
        ({"seed": 2**70}, "seed=1180591620717411303424"),
    ],
)
def test_impossible_options_are_refused(engine: FocusEngine, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate(QUESTION, [A], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": [1]}, "stop holds 1"),
        ({"temperature": None}, "temperature=None: must be a number"),
        ({"temperature": "hot"}, "temperature='hot': must be a number"),
        ({"seed": 1.5}, "seed=1.5: must be a whole number"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5: must be a whole number"),
        ({"max_new_tokens": "3"}, "max_new_tokens='3': must be a whole number"),
    ],
)
def test_options_of_another_type_are_named(engine: FocusEngine, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        engine.generate(QUESTION, [A], **options)


def test_no_stop_strings_may_be_none(engine: FocusEngine) -> None:
    assert engine.generate(QUESTION, [A], max_new_tokens=8, stop=None).text == cold(QUESTION, [A])


def test_questions_of_another_type_are_named(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match="The question is a NoneType"):
        engine.generate(None)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="A list of questions where one is asked"):
        next(engine.stream(["a", "b"]))  # type: ignore[list-item]
    with pytest.raises(DocumentError, match="half of a character at place"):
        engine.generate("What \udcff?")


def test_unknown_options_and_empty_questions_are_refused(engine: FocusEngine) -> None:
    with pytest.raises(ConfigError, match=r"generate\(\) takes no option 'temprature'. Did you mean 'temperature'"):
        engine.generate(QUESTION, [A], temprature=1.0)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"stream\(\) takes no option 'max_tokens'. Did you mean 'max_new_tokens'"):
        engine.stream(QUESTION, [A], max_tokens=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match=r"takes no 'chunk_size': it is a setting of the engine.*from_pretrained"):
        engine.generate(QUESTION, [A], chunk_size=64)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="empty"):
        engine.generate("", [A], chat_template=False)
    engine.tokenizer.chat_template = "{% for m in messages %}User: {{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="empty"):
        engine.generate(" ", [A])
    with pytest.raises(ConfigError, match="Message 1 of 1 needs 'role' and 'content', both text"):
        engine.generate([{"role": "user"}], [A])
    engine.tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ConfigError, match="chat template refuses these messages: no system role"):
        engine.generate(QUESTION, [A], system="Be brief.")
