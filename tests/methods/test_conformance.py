"""The methods of this package, and a third one, do what every method must do."""

from __future__ import annotations

import pytest

from focus_core.methods.table import METHODS
from tests.methods.conformance import MethodConformance
from tests.methods.surest import SurestMethod


class TestFocus(MethodConformance):
    method = "focus"


class TestPlain(MethodConformance):
    method = "plain"
    reads_chunks = False


class TestSurest(MethodConformance):
    method = SurestMethod.name

    @pytest.fixture(autouse=True)
    def _in_the_table(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(METHODS, SurestMethod.name, SurestMethod)


def test_every_method_is_tested() -> None:
    """A new line in the table would come without any of this."""
    tested = {case.method for case in MethodConformance.__subclasses__()}
    assert set(METHODS) <= tested
