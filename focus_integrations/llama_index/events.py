"""How far documents have been read, as an event of LlamaIndex's instrumentation."""

from __future__ import annotations

from dataclasses import asdict

from llama_index.core.instrumentation import get_dispatcher  # type: ignore[attr-defined]
from llama_index.core.instrumentation.events import BaseEvent

from focus_core import Reading
from focus_integrations.streams import Relay

dispatcher = get_dispatcher(__name__)


class FocusReadingEvent(BaseEvent):
    """How far the documents of a question have been read: `focus_core.Reading`."""

    total: int
    """Chunks of the documents, equal ones once."""
    cached: int
    """Of these, found in memory or in the store's folder."""
    read: int
    """Of the others, read so far; all are there when `cached + read == total`."""
    seconds: float
    """Since they were looked for."""

    @classmethod
    def class_name(cls) -> str:
        return "FocusReadingEvent"


def tell(reading: Reading) -> None:
    """For the engine's `on_reading`."""
    dispatcher.event(FocusReadingEvent(**asdict(reading)))


def relaying() -> Relay[Reading]:
    """`tell` for an engine in a thread: handlers are called in the event loop, as those of all other events."""

    async def tell_here(reading: Reading) -> None:
        tell(reading)

    return Relay(tell_here)
