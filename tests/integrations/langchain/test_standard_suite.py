"""LangChain's own suite for chat models: every test of it that applies passes; none is changed, none may fail.

What does not apply, and why:

| tests of the suite | why not |
|---|---|
| tool calling, tool choice, tool messages, agent loop, few-shot examples with tools (13) | a local model that was not trained for tools; `bind_tools` says so instead of dropping them |
| image, audio, PDF, Anthropic blocks (6) | a text model; other blocks are refused by name |
| `*_with_model_override` (4) | other weights are another wrapper; a call cannot change them |
| `test_stream_time` | replays recorded traffic of a server; there is no server |
| `test_serdes` | the suite only loads classes that LangChain knows by name |
| structured output, JSON mode (9), on real weights | neither a random model nor the embedded one writes JSON; with written answers they run, below |
"""  # noqa: E501

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import pytest
from langchain_core.messages import AIMessage
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests

from focus_integrations.engines import MODEL_VARIABLE
from focus_integrations.langchain import ChatFocusLLM
from tests.embedded import needs_embedded
from tests.integrations.spies import Script
from tests.tiny import save_tiny_model

_FEW = {"max_tokens": 8}
_DOCUMENT = "The library was quiet. Nobody came before noon. " * 60

# The suite asks properties, which see no fixtures: the folder is made by the first test that needs it.
_folder = TemporaryDirectory(prefix="focusllm-tests-")


@cache
def tiny() -> dict[str, Any]:
    folder = save_tiny_model(Path(_folder.name) / "model", readable=True)
    return {"model": str(folder), "adapter": str(folder / "adapter")}


EMBEDDED: dict[str, Any] = {"model": "embedded"}


class _WhatWeAre:
    """What the suite asks about a class before it decides what to run."""

    @property
    def chat_model_class(self) -> type[ChatFocusLLM]:
        return ChatFocusLLM

    @property
    def has_tool_calling(self) -> bool:
        return False

    @property
    def supports_model_override(self) -> bool:
        return False


class _Unit(_WhatWeAre, ChatModelUnitTests):
    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {MODEL_VARIABLE: "models/mine"}, {}, {"model": "models/mine"}

    @property
    def has_structured_output(self) -> bool:
        return True


class _Integration(_WhatWeAre, ChatModelIntegrationTests):
    @property
    def has_structured_output(self) -> bool:
        return False

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Any]]:
        ours = ["cache_read_input", "cache_creation_input"]
        return {"invoke": ours, "stream": ours}

    def invoke_with_cache_read_input(self, *, stream: bool = False) -> AIMessage:
        """The second question about a document finds it read."""
        self._ask(stream=False)
        message = self._ask(stream=stream)
        assert message.usage_metadata is not None
        assert message.usage_metadata["input_token_details"]["cache_read"] > 0
        return message

    def invoke_with_cache_creation_input(self, *, stream: bool = False) -> AIMessage:
        return self._ask(stream=stream)

    def _ask(self, *, stream: bool) -> AIMessage:
        model = self.chat_model_class(**self.chat_model_params)
        if not stream:
            return model.invoke("Who came?", documents=[_DOCUMENT * 8])
        whole, *chunks = model.stream("Who came?", documents=[_DOCUMENT * 8])
        for chunk in chunks:
            whole += chunk
        assert isinstance(whole, AIMessage)
        return whole


class TestUnitOnTheTinyModel(_Unit):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return tiny()


class TestUnitOnTheEmbeddedModel(_Unit):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return EMBEDDED


class TestIntegrationOnTheTinyModel(_Integration):
    @property
    def chat_model_params(self) -> dict[str, Any]:
        return tiny() | _FEW


@needs_embedded
@pytest.mark.long  # the tiny model passes the same suite
class TestIntegrationOnTheEmbeddedModel(_Integration):
    """The suite wants an answer to "Hey"; this model only looks things up, so it is given something to look up."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return EMBEDDED | _FEW | {"system_prompt": "The pass key is 71402. What is the pass key?"}


class TestIntegrationWithWrittenAnswers(_Integration):
    """All of it again with an engine that answers in JSON, so that the tests of structured output run too."""

    @property
    def chat_model_params(self) -> dict[str, Any]:
        return tiny()

    @property
    def has_structured_output(self) -> bool:
        return True

    @property
    def supports_json_mode(self) -> bool:
        return True

    @property
    def supported_usage_metadata_details(self) -> dict[Literal["invoke", "stream"], list[Any]]:
        return {"invoke": [], "stream": []}

    @pytest.fixture(autouse=True)
    def _in_json(self, script: Script) -> None:
        script.text = '{"setup": "Why did the cat cross the road?", "punchline": "To get to the other side."}'
