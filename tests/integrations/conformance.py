"""What every wrapper of this project owes its users, whatever the framework: one set of tests for all of them.

A wrapper's test module subclasses `Conformance` and says how its framework is driven (`Driver`). The model is tiny and
random, with one token per byte: what it writes means nothing, but every answer is long, known and reproducible.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import pytest

from focus_core import ContextOverflowError, FocusEngine, Usage
from focus_core.errors import ConfigError
from focus_core.methods.focus_method import FocusMethod
from focus_core.methods.plain import PlainMethod
from focus_core.methods.table import METHODS
from focus_integrations.engines import EngineSettings, shared_engine
from tests.integrations.spies import Spy, break_after, count_reads, count_steps, delay_first_token, wait_until_idle
from tests.tiny import save_tiny_model

QUESTION = "Who?"
DOCUMENTS = ["The first document, by Ada. " * 8, "The second one, by Edith. " * 8]
LONG = ["A text beyond the window of the tiny model. " * 100]
TOKENS = 12


@dataclass
class Reply:
    """An answer in the words of no framework."""

    text: str
    input_tokens: int
    output_tokens: int
    finish_reason: str | None
    method: str | None


class Driver(Protocol):
    """How a framework is made to do something. `options` are settings of one call; documents are strings."""

    def __init__(self, **settings: Any) -> None: ...

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
    """Subclasses name a `driver_class`; `per_call` is False where a framework has no settings per call."""

    driver_class: ClassVar[type[Driver]]
    per_call = True

    @pytest.fixture
    def driver(self, tiny_settings: dict[str, Any]) -> Driver:
        return self.driver_class(**tiny_settings)

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

    async def test_a_stream_comes_while_the_model_writes(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Pieces of an answer that was waited for are all printed at once (llama_index 18104)."""
        steps = count_steps(monkeypatch, seconds=0.02)
        taken = [len(steps) for piece in driver.stream(QUESTION, DOCUMENTS) if piece]
        assert taken[1] < TOKENS // 2
        steps.clear()
        taken = [len(steps) async for piece in driver.astream(QUESTION, DOCUMENTS) if piece]
        assert taken[1] < TOKENS // 2

    def test_one_event_for_one_answer(self, driver: Driver) -> None:
        counts = driver.count_events(QUESTION, DOCUMENTS)
        assert counts
        assert set(counts.values()) == {1}, counts

    # --- methods ------------------------------------------------------------------------------------------------------

    async def test_the_method_is_set_on_the_wrapper_and_reported(self, tiny_settings: dict[str, Any]) -> None:
        for method in METHODS:
            driver = self.driver_class(**tiny_settings, method=method)
            assert [reply.method for reply in await _replies(driver)] == [method] * 4

    async def test_the_method_is_set_per_call(self, driver: Driver, engine: FocusEngine) -> None:
        if not self.per_call:
            pytest.skip("no settings per call")
        for method in METHODS:
            expected = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS, method=method)
            for reply in await _replies(driver, method=method):
                assert (reply.text, reply.method) == (expected.text, expected.method) == (expected.text, method)

    @pytest.mark.filterwarnings("ignore:.*no adapter is loaded")
    async def test_without_an_adapter_a_long_text_is_answered_by_select(self, tiny_settings: dict[str, Any]) -> None:
        driver = self.driver_class(**{**tiny_settings, "adapter": None})
        for documents, method in ((DOCUMENTS, "plain"), (LONG, "select")):
            assert [reply.method for reply in await _replies(driver, documents)] == [method] * 4

    async def test_a_method_of_ones_own_needs_its_name_only(
        self, tiny_settings: dict[str, Any], engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A line in the table of methods: no list of names in the wrappers or the frameworks."""
        with pytest.raises(ConfigError, match=r"method='whole'.*'focus', 'plain'"):
            self.driver_class(**tiny_settings, method="whole").ask(QUESTION, DOCUMENTS)
        monkeypatch.setitem(METHODS, "whole", WholeMethod)
        monkeypatch.setitem(METHODS, "chunked", ChunkedMethod)
        for method, like in (("whole", "plain"), ("chunked", "focus")):
            expected = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS, method=like).text
            for reply in await _replies(self.driver_class(**tiny_settings, method=method)):
                assert (reply.text, reply.method) == (expected, method)

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

    def test_documents_arrive_whole_in_order_and_once(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        spy = Spy(monkeypatch)
        driver.ask(QUESTION, [DOCUMENTS[1], DOCUMENTS[0], DOCUMENTS[1]])
        assert [call.documents for call in spy.calls] == [[DOCUMENTS[1], DOCUMENTS[0]]]

    def test_other_documents_give_another_answer(self, driver: Driver) -> None:
        first = driver.ask(QUESTION, DOCUMENTS[:1]).text
        second = driver.ask(QUESTION, DOCUMENTS[1:]).text
        assert first != second
        assert driver.ask(QUESTION, DOCUMENTS[:1]).text == first

    # --- errors, ends, threads ----------------------------------------------------------------------------------------

    async def test_overflow_reaches_the_caller_in_all_four(self, driver: Driver) -> None:
        """Never as an empty answer."""
        too_much = [f"{number} " + "word " * 27_000 for number in range(2)]
        with pytest.raises(ContextOverflowError, match=r"memory of \d+ chunks"):
            driver.ask(QUESTION, too_much)
        with pytest.raises(ContextOverflowError):
            "".join(driver.stream(QUESTION, too_much))
        with pytest.raises(ContextOverflowError):
            await driver.aask(QUESTION, too_much)
        with pytest.raises(ContextOverflowError):
            [piece async for piece in driver.astream(QUESTION, too_much)]

    async def test_an_error_in_mid_stream_reaches_the_caller(
        self, driver: Driver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            break_after(patch, steps=4)
            with pytest.raises(RuntimeError, match="broken on purpose"):
                "".join(driver.stream(QUESTION, DOCUMENTS))
        with monkeypatch.context() as patch:
            break_after(patch, steps=4)
            with pytest.raises(RuntimeError, match="broken on purpose"):
                [piece async for piece in driver.astream(QUESTION, DOCUMENTS)]
        assert driver.ask(QUESTION, DOCUMENTS).text

    def test_threads_get_their_own_answers(self, driver: Driver, engine: FocusEngine) -> None:
        """A server asks from many threads. Other local models crash, hang or mix the answers up."""
        questions = [QUESTION, "Where?", "And when?"]
        expected = [engine.generate(question, DOCUMENTS, max_new_tokens=TOKENS).text for question in questions]
        assert len(set(expected)) == len(questions)
        ways: list[Callable[[str], str]] = [
            lambda question: driver.ask(question, DOCUMENTS).text,
            lambda question: "".join(driver.stream(question, DOCUMENTS)),
            lambda question: asyncio.run(_whole(driver.aask(question, DOCUMENTS))).text,  # an event loop of its own
        ]
        with ThreadPoolExecutor(len(ways) * len(questions)) as threads:
            answers = [[threads.submit(way, question) for question in questions] for way in ways]
        assert [[answer.result() for answer in row] for row in answers] == [expected] * len(ways)

    async def test_a_closed_stream_frees_the_engine(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """And stops: a token that nobody waits for is not computed."""
        steps = count_steps(monkeypatch)
        stream = driver.stream(QUESTION, DOCUMENTS)
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert engine.shared.scheduler.idle
        assert len(steps) < TOKENS // 2
        steps.clear()
        agenerator = driver.astream(QUESTION, DOCUMENTS)
        await anext(agenerator)
        await agenerator.aclose()  # type: ignore[attr-defined]
        await asyncio.to_thread(wait_until_idle, engine)
        assert len(steps) < TOKENS // 2
        assert driver.ask(QUESTION, DOCUMENTS).text

    async def test_a_cancelled_answer_stops_at_the_next_token(
        self, driver: Driver, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A server whose client has gone would otherwise compute the whole answer."""
        steps = count_steps(monkeypatch, seconds=0.05)
        task = asyncio.create_task(_whole(driver.aask(QUESTION, DOCUMENTS)))
        while not steps:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        taken = len(steps)
        await asyncio.to_thread(wait_until_idle, engine)
        assert len(steps) <= taken + 2 < TOKENS

    async def test_a_cancelled_answer_stops_while_its_documents_are_read(
        self, tiny_settings: dict[str, Any], engine: FocusEngine, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Reading a book takes minutes, and nobody waits for it any more."""
        reads = count_reads(monkeypatch, seconds=0.05)
        driver = self.driver_class(**tiny_settings, parallel_chunks=1)
        name = f"{self.driver_class.__module__}.{self.driver_class.__name__}"
        book = f"Never read before, by {name}. " + "So it went on. " * 430  # 100 chunks
        for ask in (driver.aask, lambda question, documents: _first(driver.astream(question, documents))):
            reads.clear()
            task = asyncio.create_task(_whole(ask(QUESTION, [book])))
            while not reads and not task.done():  # no endless loop if nothing is read
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            taken = len(reads)
            await asyncio.to_thread(wait_until_idle, engine)
            assert len(reads) <= taken + 2 < 50
        assert driver.ask(QUESTION, DOCUMENTS).text

    @pytest.mark.slow
    async def test_the_first_token_may_take_long(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """Prefilling a long document takes long. (More than a minute of it: `test_patience.py`.)"""
        delay_first_token(monkeypatch, 0.5)
        assert "".join(driver.stream(QUESTION, DOCUMENTS))
        assert "".join([piece async for piece in driver.astream(QUESTION, DOCUMENTS)])

    async def test_the_event_loop_runs_on(self, driver: Driver, monkeypatch: pytest.MonkeyPatch) -> None:
        """A server would serve nobody while one answer is made."""
        delay_first_token(monkeypatch, 0.5)
        assert await _ticks(driver.aask(QUESTION, DOCUMENTS)) > 10

        async def streamed() -> None:
            async for _ in driver.astream(QUESTION, DOCUMENTS):
                pass

        assert await _ticks(streamed()) > 10


class WholeMethod(PlainMethod):
    """The plain model under another name."""

    name = "whole"


class ChunkedMethod(FocusMethod):
    """FocusLLM under another name."""

    name = "chunked"


async def _replies(driver: Driver, documents: list[str] = DOCUMENTS, **options: Any) -> list[Reply]:
    """The same question in four ways."""
    replies = [driver.ask(QUESTION, documents, **options), driver.streamed(QUESTION, documents, **options)]
    replies.append(await driver.aask(QUESTION, documents, **options))
    replies.append(await driver.astreamed(QUESTION, documents, **options))
    return replies


async def _whole(answer: Any) -> Any:
    return await answer


async def _first(stream: Any) -> Any:
    try:
        return await anext(stream)
    finally:
        await stream.aclose()


async def _ticks(work: Any) -> int:
    """How often the event loop came round while `work` was done."""
    task, ticks = asyncio.ensure_future(work), 0
    while not task.done():
        await asyncio.sleep(0.01)
        ticks += 1
    await task
    return ticks
