"""What reaches an engine: its calls, as it answers as usual or with a text written beforehand; and its decode steps."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from focus_core import Answer, Document, Finished, FocusEngine, Piece, Usage
from focus_core.engine.answers import FinishReason
from focus_core.methods.focus import FocusDecoding
from focus_core.methods.focus_method import FocusMethod


@dataclass
class EngineCall:
    """One call of the engine: a question, or a batch of them about the same documents.

    Attributes:
        documents: texts of documents, and prepared documents
        given: what the texts came in
    """

    questions: list[Any]
    documents: list[Any]
    given: list[Any]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def question(self) -> str:
        """The last message of the only question."""
        (question,) = self.questions
        return question if isinstance(question, str) else str(question[-1]["content"])


class Spy:
    """Stands before an engine and writes down its calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[EngineCall] = []
        self._originals = {name: getattr(FocusEngine, name) for name in ("generate", "stream", "stream_batch")}
        for name in self._originals:
            monkeypatch.setattr(FocusEngine, name, self._method(name))

    def _method(self, name: str) -> Any:
        def method(engine: FocusEngine, question: Any, documents: Any = None, **options: Any) -> Any:
            batch = name == "stream_batch" or _is_batch(question)
            given = list(documents or [])
            texts = [one.text if isinstance(one, Document) else one for one in given]
            asked = {option: value for option, value in options.items() if option != "on_reading"}
            self.calls.append(EngineCall(list(question) if batch else [question], texts, given, asked))
            return self.answer(name, engine, question, documents, **options)

        return method

    def answer(self, name: str, engine: FocusEngine, question: Any, documents: Any, **options: Any) -> Any:
        """The engine's own answer."""
        return self._originals[name](engine, question, documents, **options)


class Script(Spy):
    """Answers written beforehand: no random model writes JSON."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, text: str = "") -> None:
        super().__init__(monkeypatch)
        self.text = text
        self.finish_reason: FinishReason = "stop"

    def answer(self, name: str, engine: FocusEngine, question: Any, documents: Any, **options: Any) -> Any:
        if name == "generate":
            answer = Answer(self.text, self.finish_reason, Usage(11, 7), "focus")
            return [answer] * len(question) if _is_batch(question) else answer
        return self._events() if name == "stream" else self._indexed(len(question))

    def _events(self) -> Iterator[Piece | Finished]:
        half = len(self.text) // 2
        yield Piece(self.text[:half])
        yield Finished(self.text[half:], self.finish_reason, Usage(11, 7), "focus")

    def _indexed(self, questions: int) -> Iterator[tuple[int, Piece | Finished]]:
        for index in range(questions):
            for event in self._events():
                yield index, event


def _is_batch(question: Any) -> bool:
    return isinstance(question, list) and not (question and isinstance(question[0], dict))


def count_steps(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[int]:
    """One entry for every decode step over chunks: how many questions took it together.

    Args:
        seconds: that each step takes longer
    """
    steps: list[int] = []
    original = FocusDecoding.step

    def step(self: FocusDecoding, tokens: Any) -> Any:
        steps.append(len(tokens))
        time.sleep(seconds)
        return original(self, tokens)

    monkeypatch.setattr(FocusDecoding, "step", step)
    return steps


def count_reads(monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> list[int]:
    """One entry for every pass that reads chunks: how many have been read.

    Args:
        seconds: that each pass takes longer
    """
    reads: list[int] = []
    original = FocusMethod.prefill

    def prefill(self: FocusMethod, chunks: Any) -> Any:
        done = 0
        for rows in original(self, chunks):
            done += len(rows)
            reads.append(done)
            time.sleep(seconds)
            yield rows

    monkeypatch.setattr(FocusMethod, "prefill", prefill)
    return reads


def break_after(monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    """From now on decoding fails after that number of steps."""
    left, original = [steps], FocusDecoding.step

    def step(self: FocusDecoding, tokens: Any) -> Any:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("broken on purpose")
        return original(self, tokens)

    monkeypatch.setattr(FocusDecoding, "step", step)


def delay_first_token(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """From now on every answer begins late."""
    original = FocusDecoding.start

    def start(self: FocusDecoding) -> Any:
        time.sleep(seconds)
        return original(self)

    monkeypatch.setattr(FocusDecoding, "start", start)


def wait_until_idle(engine: FocusEngine, seconds: float = 10.0) -> None:
    """Fails if the engine still works after that time."""
    end = time.monotonic() + seconds
    while not engine.shared.scheduler.idle:
        assert time.monotonic() < end, engine.shared.scheduler
        time.sleep(0.01)
