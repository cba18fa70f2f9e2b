"""How far documents have been read, as a custom event of LangChain's callbacks.

LangChain hands a chat model's streams no run manager, and so no way to tell its callbacks anything but tokens. What it
keeps to itself is therefore found here a second time: `present_run`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import aclosing, closing, contextmanager
from contextvars import ContextVar
from dataclasses import asdict
from typing import Any, TypeVar

from langchain_core.callbacks import AsyncCallbackManager, CallbackManager, CallbackManagerForLLMRun
from langchain_core.callbacks.manager import BaseRunManager
from langchain_core.language_models import BaseChatModel
from langchain_core.runnables import RunnableConfig, ensure_config
from langchain_core.utils.uuid import uuid7

from focus_core import Reading
from focus_integrations.streams import OnReading, Relay

Item = TypeVar("Item")

READING_EVENT = "focusllm_reading"

_END: Any = object()
_run: ContextVar[BaseRunManager | None] = ContextVar("_run", default=None)


# --- events -----------------------------------------------------------------------------------------------------------


def telling(run: BaseRunManager | None) -> OnReading | None:
    """For the engine's `on_reading`: an event of this run; `None` if nobody listens."""
    run = run or _run.get()
    if run is None or not run.handlers:
        return None
    manager, run_id = CallbackManager(**_listeners(run)), run.run_id
    return lambda reading: manager.on_custom_event(READING_EVENT, asdict(reading), run_id=run_id)


def relaying(run: BaseRunManager | None) -> Relay[Reading] | None:
    """`telling` for an engine in a thread: handlers are called in the event loop."""
    run = run or _run.get()
    if run is None or not run.handlers:
        return None
    manager, run_id = AsyncCallbackManager(**_listeners(run)), run.run_id

    async def tell(reading: Reading) -> None:
        await manager.on_custom_event(READING_EVENT, asdict(reading), run_id=run_id)

    return Relay(tell)


def _listeners(run: BaseRunManager | CallbackManager) -> dict[str, Any]:
    return {name: getattr(run, name) for name in ("handlers", "parent_run_id", "tags", "metadata")}


# --- runs that LangChain keeps to itself ------------------------------------------------------------------------------


@contextmanager
def present_run(run: BaseRunManager | None) -> Iterator[None]:
    """Inside, `telling` and `relaying` without a run take this one."""
    token = _run.set(run)
    try:
        yield
    finally:
        _run.reset(token)


def run_of_stream(model: BaseChatModel, config: RunnableConfig | None) -> tuple[RunnableConfig, BaseRunManager]:
    """The run that a stream of `model` is about to be, and the config with which it will be."""
    config = ensure_config(config)
    run_id = config.get("run_id") or uuid7()
    manager = CallbackManager.configure(
        config.get("callbacks"),
        model.callbacks,
        model.verbose,
        config.get("tags"),
        model.tags,
        config.get("metadata"),
        model.metadata,
    )
    run = CallbackManagerForLLMRun(run_id=run_id, inheritable_handlers=[], **_listeners(manager))
    return {**config, "run_id": run_id}, run


def begun_in(run: BaseRunManager, stream: Iterator[Item]) -> Iterator[Item]:
    """The stream's items; what it begins with happens in that run."""
    with closing(stream):  # type: ignore[type-var]  # LangChain's streams are generators
        with present_run(run):
            first = next(stream, _END)
        if first is not _END:
            yield first
            yield from stream


async def begun_later_in(run: BaseRunManager, stream: AsyncIterator[Item]) -> AsyncGenerator[Item, None]:
    """`begun_in`, awaited."""
    async with aclosing(stream):  # type: ignore[type-var]
        with present_run(run):
            first = await anext(stream, _END)
        if first is not _END:
            yield first
            async for item in stream:
                yield item
