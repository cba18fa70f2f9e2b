"""Iterators that compute, as asynchronous iterators that leave the event loop free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from functools import partial
from threading import Event as Flag
from typing import Any, Generic, TypeVar

from focus_core import Answer, Reading
from focus_core.engine.answers import AnswersFromEvents, Event

Item = TypeVar("Item")
Told = TypeVar("Told")
OnReading = Callable[[Reading], None]

_abandoned: ContextVar[Flag | None] = ContextVar("_abandoned", default=None)  # set once nobody waits for the item


class AbandonedError(Exception):
    """Ends an item that nobody waits for; no caller sees it."""


def stop_if_abandoned(done: int, total: int) -> None:
    """A `report` for the engine: ends the prefill for a cancelled task.

    Raises:
        AbandonedError: the task that awaits the present item of `in_thread` was cancelled
    """
    flag = _abandoned.get()
    if flag is not None and flag.is_set():
        raise AbandonedError


class Relay(Generic[Told]):
    """Carries what is told in a thread to the event loop, in order. Made in the loop; called in any thread.

    Args:
        handle: awaited in the loop with everything that is told
    """

    def __init__(self, handle: Callable[[Told], Awaitable[None]]) -> None:
        self._loop, self._handle = asyncio.get_running_loop(), handle
        self._told: asyncio.Queue[Told | None] = asyncio.Queue()

    def __call__(self, told: Told) -> None:
        self._loop.call_soon_threadsafe(self._told.put_nowait, told)

    async def until(self, done: asyncio.Future[Any]) -> None:
        """Handle what is told before `done`."""
        done.add_done_callback(lambda _: self._told.put_nowait(None))
        while (told := await self._told.get()) is not None:
            await self._handle(told)


async def in_thread(iterator: Iterator[Item], relay: Relay[Any] | None = None) -> AsyncGenerator[Item, None]:
    """The items of `iterator`, each computed in a thread; closing this, or cancelling the task, closes it too.

    Args:
        relay: what the iterator tells meanwhile is handled before the next item
    """
    loop, end = asyncio.get_running_loop(), object()
    pending: asyncio.Future[Any] | None = None
    flag = Flag()
    try:
        while True:
            context = copy_context()
            context.run(_abandoned.set, flag)
            pending = loop.run_in_executor(None, partial(context.run, next, iterator, end))
            if relay is not None:
                await relay.until(pending)
            item = await asyncio.shield(pending)  # a cancelled task does not stop the thread
            if item is end:
                return
            yield item
    finally:
        if pending is None or pending.done():
            _close(iterator)
        else:  # the thread still computes an item: close after it
            flag.set()
            pending.add_done_callback(partial(_close_after, iterator))


async def answers_in_thread(
    events: Iterator[tuple[int, Event]], questions: int, relay: Relay[Any] | None = None
) -> list[Answer]:
    """Whole answers from the events of `FocusEngine.stream_batch`.

    One event at a time, so that cancelling the task stops the work at the next token.
    """
    collected = AnswersFromEvents(questions)
    async with aclosing(in_thread(events, relay)) as stream:
        async for index, event in stream:
            collected.add(index, event)
    return collected.answers()


def _close_after(iterator: Iterator[Any], done: asyncio.Future[Any]) -> None:
    if not done.cancelled():
        done.exception()  # retrieved: asyncio would log it as an error that was never handled
    _close(iterator)


def _close(iterator: Iterator[Any]) -> None:
    close = getattr(iterator, "close", None)
    if close is not None:
        close()
