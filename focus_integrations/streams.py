"""Iterators that compute, as asynchronous iterators that leave the event loop free."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from contextvars import ContextVar, copy_context
from functools import partial
from threading import Event as Flag
from typing import Any, TypeVar

from focus_core import Answer
from focus_core.engine.answers import AnswersFromEvents, Event

Item = TypeVar("Item")

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


async def in_thread(iterator: Iterator[Item]) -> AsyncGenerator[Item, None]:
    """The items of `iterator`, each computed in a thread; closing this, or cancelling the task, closes it too."""
    loop, end = asyncio.get_running_loop(), object()
    pending: asyncio.Future[Any] | None = None
    flag = Flag()
    try:
        while True:
            context = copy_context()
            context.run(_abandoned.set, flag)
            pending = loop.run_in_executor(None, partial(context.run, next, iterator, end))
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


async def answers_in_thread(events: Iterator[tuple[int, Event]], questions: int) -> list[Answer]:
    """Whole answers from the events of `FocusEngine.stream_batch`.

    One event at a time, so that cancelling the task stops the work at the next token.
    """
    collected = AnswersFromEvents(questions)
    async with aclosing(in_thread(events)) as stream:
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
