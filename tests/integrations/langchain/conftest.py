"""What the tests of the LangChain wrappers share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from focus_core import FocusEngine
from focus_core.engine.engine import FinishReason, Piece, Usage
from focus_integrations.langchain import ChatFocusLLM, FocusLLM


@dataclass
class EngineCall:
    """One call of the engine: a batch of questions about the same documents."""

    questions: list[Any]
    documents: list[Any]
    options: dict[str, Any] = field(default_factory=dict)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Everything that reaches an engine, which answers as ever."""
    calls: list[EngineCall] = []
    original = FocusEngine.stream_batch

    def spy(self: FocusEngine, questions: Any, documents: Any = None, **options: Any) -> Any:
        calls.append(EngineCall(list(questions), list(documents or []), options))
        return original(self, questions, documents, **options)

    monkeypatch.setattr(FocusEngine, "stream_batch", spy)
    return calls


class Script:
    """An engine's answers, written beforehand: no random model writes JSON."""

    def __init__(self) -> None:
        self.text = ""
        self.finish_reason: FinishReason = "stop"
        self.calls: list[EngineCall] = []

    def stream_batch(self, questions: Any, documents: Any = None, **options: Any) -> Iterator[tuple[int, Piece]]:
        self.calls.append(EngineCall(list(questions), list(documents or []), options))
        half = len(self.text) // 2
        for index in range(len(questions)):
            yield index, Piece(self.text[:half])
            yield index, Piece(self.text[half:], self.finish_reason, Usage(input_tokens=2, output_tokens=2))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    """Set `text` to what the engine shall say."""
    script = Script()
    monkeypatch.setattr(
        FocusEngine,
        "stream_batch",
        lambda _, questions, documents=None, **options: script.stream_batch(questions, documents, **options),
    )
    return script


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
