"""What every wrapper of this project owes its users, whatever the framework: one set of tests for all of them.

A wrapper's test module subclasses `Conformance` and says how its framework is driven (`Driver`). The model is tiny and
random, with one token per byte: what it writes means nothing, but every answer is long, known and reproducible.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pytest

from focus_core import ContextOverflowError, FocusEngine
from focus_core.engine.engine import Usage
from focus_integrations.engines import EngineSettings, shared_engine
from tests.tiny import save_tiny_model

QUESTION = "Who?"
DOCUMENTS = ["The first document, by Ada. " * 8, "The second one, by Edith. " * 8]
TOKENS = 24


@dataclass
class Reply:
    """An answer in the words of no framework."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str | None


class Driver(Protocol):
    """How a framework is made to do something. `options` are settings of one call; documents are strings."""

    def ask(self, question: str, documents: list[str], **options: Any) -> Reply: ...

    async def aask(self, question: str, documents: list[str], **options: Any) -> Reply: ...

    def stream(self, question: str, documents: list[str], **options: Any) -> Iterator[str]: ...

    def astream(self, question: str, documents: list[str], **options: Any) -> AsyncIterator[str]: ...

    def streamed(self, question: str, documents: list[str], **options: Any) -> Reply:
        """The whole answer, with usage, as a stream's consumer sees it."""

    async def astreamed(self, question: str, documents: list[str], **options: Any) -> Reply: ...

    def count_events(self, question: str, documents: list[str]) -> dict[str, int]:
        """How many answers the framework's callbacks saw, for each way to ask."""


@pytest.fixture(scope="session")
def tiny_settings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Arguments of a wrapper around the tiny model; all share one engine."""
    folder: Path = save_tiny_model(tmp_path_factory.mktemp("wrapped") / "model", readable=True)
    return {"model": str(folder), "adapter": str(folder / "adapter"), "max_tokens": TOKENS}


@pytest.fixture
def engine(tiny_settings: dict[str, Any]) -> FocusEngine:
    return shared_engine(EngineSettings(tiny_settings["model"], tiny_settings["adapter"]))


class Conformance:
    """Subclasses have a fixture `driver`; `per_call` is False where a framework has no settings per call."""

    per_call = True

    # --- the four ways to ask agree -----------------------------------------------------------------------------------

    async def test_four_ways_to_ask_give_the_engines_answer(self, driver: Driver, engine: FocusEngine) -> None:
        """A wrapper that changed the prompt, or echoed it, would differ."""
        expected = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS).text
        assert len(expected) > 8
        assert driver.ask(QUESTION, DOCUMENTS).text == expected
        assert "".join(driver.stream(QUESTION, DOCUMENTS)) == expected
        assert (await driver.aask(QUESTION, DOCUMENTS)).text == expected
        assert "".join([piece async for piece in driver.astream(QUESTION, DOCUMENTS)]) == expected

    async def test_usage_is_the_engines_in_all_four(self, driver: Driver, engine: FocusEngine) -> None:
        usage: Usage = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS).usage
        documents = sum(map(engine.count_tokens, DOCUMENTS))
        assert usage.input_tokens == documents + engine.count_question_tokens(QUESTION)
        replies = [driver.ask(QUESTION, DOCUMENTS), driver.streamed(QUESTION, DOCUMENTS)]
        replies += [await driver.aask(QUESTION, DOCUMENTS), await driver.astreamed(QUESTION, DOCUMENTS)]
        for reply in replies:
            assert (reply.input_tokens, reply.output_tokens) == (usage.input_tokens, usage.output_tokens)
            assert reply.finish_reason == "length"

    def test_a_stream_comes_in_pieces(self, driver: Driver) -> None:
        """One piece at the end would be no stream."""
        assert sum(bool(piece) for piece in driver.stream(QUESTION, DOCUMENTS)) > 3

    def test_one_event_for_one_answer(self, driver: Driver) -> None:
        counts = driver.count_events(QUESTION, DOCUMENTS)
        assert counts
        assert set(counts.values()) == {1}, counts

    # --- stop strings -------------------------------------------------------------------------------------------------

    async def test_stop_is_obeyed_and_left_out(self, driver: Driver, engine: FocusEngine) -> None:
        """The stop string spans tokens: each letter is one."""
        if not self.per_call:
            pytest.skip("no settings per call")
        whole = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS).text
        stop = whole[5:7]
        expected = whole[: whole.index(stop)]
        reply = driver.ask(QUESTION, DOCUMENTS, stop=[stop])
        assert (reply.text, reply.finish_reason) == (expected, "stop")
        assert "".join(driver.stream(QUESTION, DOCUMENTS, stop=[stop])) == expected
        assert (await driver.aask(QUESTION, DOCUMENTS, stop=[stop])).text == expected
        assert "".join([piece async for piece in driver.astream(QUESTION, DOCUMENTS, stop=[stop])]) == expected

    # --- documents ----------------------------------------------------------------------------------------------------

    def test_documents_arrive_whole_in_order_and_once(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen = _seen_documents(engine, monkeypatch)
        driver.ask(QUESTION, [DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[1]])
        assert seen == [[DOCUMENTS[1], DOCUMENTS[0]]]

    def test_other_documents_give_another_answer(self, driver: Driver) -> None:
        first = driver.ask(QUESTION, DOCUMENTS[:1]).text
        second = driver.ask(QUESTION, DOCUMENTS[1:]).text
        assert first != second
        assert driver.ask(QUESTION, DOCUMENTS[:1]).text == first

    # --- errors, ends, threads ----------------------------------------------------------------------------------------

    async def test_overflow_reaches_the_caller_in_all_four(self, driver: Driver) -> None:
        """Never as an empty answer."""
        too_much = [f"{number} " + "word " * 60_000 for number in range(2)]
        with pytest.raises(ContextOverflowError, match=r"memory of \d+ chunks"):
            driver.ask(QUESTION, too_much)
        with pytest.raises(ContextOverflowError):
            "".join(driver.stream(QUESTION, too_much))
        with pytest.raises(ContextOverflowError):
            await driver.aask(QUESTION, too_much)
        with pytest.raises(ContextOverflowError):
            [piece async for piece in driver.astream(QUESTION, too_much)]

    async def test_an_error_in_mid_stream_reaches_the_caller(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        _break_after(engine, monkeypatch, steps=4)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            "".join(driver.stream(QUESTION, DOCUMENTS))
        _break_after(engine, monkeypatch, steps=4)
        with pytest.raises(RuntimeError, match="broken on purpose"):
            [piece async for piece in driver.astream(QUESTION, DOCUMENTS)]

    async def test_a_closed_stream_frees_the_engine(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And stops: no token is computed for nobody."""
        steps = _count_steps(engine, monkeypatch)
        stream = driver.stream(QUESTION, DOCUMENTS)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        taken = len(steps)
        assert taken < TOKENS // 2
        assert not engine.shared.turn.locked()
        agenerator = driver.astream(QUESTION, DOCUMENTS)
        await anext(agenerator)
        await agenerator.aclose()  # type: ignore[attr-defined]
        await asyncio.sleep(0.05)
        assert len(steps) < 2 * TOKENS // 2
        assert not engine.shared.turn.locked()
        assert driver.ask(QUESTION, DOCUMENTS).text

    @pytest.mark.parametrize("seconds", [1.0, pytest.param(65.0, marks=pytest.mark.slow)])
    async def test_the_first_token_may_take_long(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch, seconds: float
    ) -> None:
        """Other wrappers give up after 60 seconds, and reading a long document takes longer."""
        _delay_first_token(engine, monkeypatch, seconds)
        assert "".join(driver.stream(QUESTION, DOCUMENTS))
        assert "".join([piece async for piece in driver.astream(QUESTION, DOCUMENTS)])

    async def test_the_event_loop_runs_on(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server would serve nobody while one answer is made."""
        _delay_first_token(engine, monkeypatch, 0.5)
        assert await _ticks(driver.aask(QUESTION, DOCUMENTS)) > 10

        async def streamed() -> None:
            async for _ in driver.astream(QUESTION, DOCUMENTS):
                pass

        assert await _ticks(streamed()) > 10


# --- looking into the engine ------------------------------------------------------------------------------------------


def _seen_documents(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    seen: list[list[str]] = []
    original = type(engine).stream_batch

    def spy(self: FocusEngine, questions: Any, documents: Any = None, **options: Any) -> Any:
        seen.append(list(documents or []))
        return original(self, questions, documents, **options)

    monkeypatch.setattr(type(engine), "stream_batch", spy)
    return seen


def _count_steps(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every token the engine makes."""
    steps: list[int] = []
    original = type(engine)._show

    def spy(self: FocusEngine, request: Any, token: int) -> Any:
        steps.append(token)
        return original(self, request, token)

    monkeypatch.setattr(type(engine), "_show", spy)
    return steps


def _break_after(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch, steps: int) -> None:
    made = [0]
    original = FocusEngine._show

    def breaking(self: FocusEngine, request: Any, token: int) -> Any:
        made[0] += 1
        if made[0] > steps:
            raise RuntimeError("broken on purpose")
        return original(self, request, token)

    monkeypatch.undo()
    monkeypatch.setattr(type(engine), "_show", breaking)


def _delay_first_token(engine: FocusEngine, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    original = type(engine)._decoding

    def slow(self: FocusEngine, *args: Any) -> Any:
        time.sleep(seconds)
        return original(self, *args)

    monkeypatch.setattr(type(engine), "_decoding", slow)


async def _ticks(work: Any) -> int:
    """How often the event loop came round while `work` was done."""
    task, ticks = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await task
    return ticks
