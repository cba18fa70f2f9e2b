"""LangChain's two classes keep what every wrapper promises."""

from __future__ import annotations

from tests.integrations.conformance import Conformance
from tests.integrations.langchain.drivers import ChatDriver, LLMDriver


class TestChatModel(Conformance):
    driver_class = ChatDriver


class TestLanguageModel(Conformance):
    driver_class = LLMDriver
