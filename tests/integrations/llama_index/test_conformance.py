"""LlamaIndex's language model and synthesizer keep what every wrapper promises."""

from __future__ import annotations

from tests.integrations.conformance import Conformance
from tests.integrations.llama_index.drivers import ChatDriver, CompleteDriver, QueryEngineDriver


class TestComplete(Conformance):
    driver_class = CompleteDriver


class TestChat(Conformance):
    driver_class = ChatDriver


class TestSynthesizerInAQueryEngine(Conformance):
    per_call = False
    driver_class = QueryEngineDriver
