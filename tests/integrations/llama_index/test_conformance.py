"""LlamaIndex's language model and synthesizer keep what every wrapper promises."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integrations.conformance import Conformance
from tests.integrations.llama_index.drivers import ChatDriver, CompleteDriver, QueryEngineDriver


class TestComplete(Conformance):
    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> CompleteDriver:
        return CompleteDriver(**tiny_settings)


class TestChat(Conformance):
    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> ChatDriver:
        return ChatDriver(**tiny_settings)


class TestSynthesizerInAQueryEngine(Conformance):
    per_call = False

    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> QueryEngineDriver:
        return QueryEngineDriver(**tiny_settings)
