"""LangChain's two classes keep what every wrapper promises."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integrations.conformance import Conformance
from tests.integrations.langchain.drivers import ChatDriver, LLMDriver


class TestChatModel(Conformance):
    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> ChatDriver:
        return ChatDriver(**tiny_settings)


class TestLanguageModel(Conformance):
    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> LLMDriver:
        return LLMDriver(**tiny_settings)
