"""The methods of this package, and a third one, do what every method must do."""

from __future__ import annotations

from typing import ClassVar

import pytest

from focus_core.methods.table import METHODS
from tests.methods.conformance import MethodConformance
from tests.methods.surest import SurestMethod


class TestFocus(MethodConformance):
    method = "focus"


class TestPlain(MethodConformance):
    method = "plain"
    reads_chunks = False


class TestSelect(MethodConformance):
    method = "select"


class TestExperts(MethodConformance):
    method = "experts"


class TestSelectOfAShortlist(MethodConformance):
    method = "select"
    config: ClassVar = {"shortlist": 2}


class TestExpertsOfAShortlist(MethodConformance):
    """Of six or seven chunks four are scored, and two of them speak."""

    method = "experts"
    config: ClassVar = {"shortlist": 4, "experts": 2}


class TestSelectInChat(MethodConformance):
    method = "select"
    config: ClassVar = {"layout": "chat", "select_tokens": 130, "seed": 1}


class TestExpertsInChat(MethodConformance):
    method = "experts"
    config: ClassVar = {"layout": "chat", "experts": 3, "mixing": "nbce"}


class TestFocusInChat(MethodConformance):
    method = "focus"
    config: ClassVar = {"layout": "chat"}


class TestFocusInEightBits(MethodConformance):
    method = "focus"
    config: ClassVar = {"kv_dtype": "int8"}


class TestSelectInEightBits(MethodConformance):
    method = "select"
    config: ClassVar = {"kv_dtype": "int8"}


class TestExpertsInEightBits(MethodConformance):
    method = "experts"
    config: ClassVar = {"kv_dtype": "int8", "layout": "chat", "experts": 3}


class TestSelectOfPackedDocuments(MethodConformance):
    method = "select"
    config: ClassVar = {"chunk_size": 96}
    texts: ClassVar = {
        letter: [f"Ticket {letter}{number}: {word}." for number, word in enumerate(words)]
        for letter, words in {"a": ("open", "shut", "lost") * 3, "b": ("new", "old") * 2, "c": ("none",) * 7}.items()
    }
    packs = True


class TestSurest(MethodConformance):
    method = SurestMethod.name

    @pytest.fixture(autouse=True)
    def _in_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(METHODS, SurestMethod.name, SurestMethod)


def test_every_method_is_tested() -> None:
    """A new line in the table would come without any of this."""
    tested = {case.method for case in MethodConformance.__subclasses__()}
    assert set(METHODS) <= tested
