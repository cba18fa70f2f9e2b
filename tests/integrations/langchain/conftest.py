"""What the tests of the LangChain wrappers share."""

from __future__ import annotations

from typing import Any

import pytest

from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.spies import EngineCall, Script, Spy


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Everything that reaches an engine, which answers as usual."""
    return Spy(monkeypatch).calls


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Set `text` to what the engine shall say."""
    return Script(monkeypatch)


@pytest.fixture(params=[FocusLLM, ChatFocusLLM])
def model_class(request: pytest.FixtureRequest) -> type[FocusLLM] | type[ChatFocusLLM]:
    """What holds for both classes is tried on both."""
    given: type[FocusLLM] | type[ChatFocusLLM] = request.param
    return given


@pytest.fixture
def model(model_class: Any, tiny_settings: dict[str, Any]) -> Any:
    return model_class(**tiny_settings)


@pytest.fixture
def chat(tiny_settings: dict[str, Any]) -> ChatFocusLLM:
    return ChatFocusLLM(**tiny_settings)


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


def text_of(answer: Any) -> str:
    """The text of what either class answers."""
    return answer if isinstance(answer, str) else str(answer.content)
