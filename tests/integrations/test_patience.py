"""Nobody gives up while a long document is prefilled: all wrappers wait for more than a minute, at the same time."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from focus_core.methods.focus import FocusDecoding
from tests.integrations.conformance import DOCUMENTS, QUESTION, Driver
from tests.integrations.langchain import drivers as langchain
from tests.integrations.llama_index import drivers as llama_index

SECONDS = 65.0
DRIVERS = [
    langchain.ChatDriver,
    langchain.LLMDriver,
    llama_index.ChatDriver,
    llama_index.CompleteDriver,
    llama_index.QueryEngineDriver,
]


@pytest.mark.long
async def test_the_first_token_may_take_more_than_a_minute(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other wrappers give up after 60 seconds, with an empty answer."""
    original, begin = FocusDecoding.start, time.monotonic() + SECONDS

    def start(self: FocusDecoding) -> Any:
        time.sleep(max(0.0, begin - time.monotonic()))
        return original(self)

    async def collected(driver: Driver) -> str:
        return "".join([piece async for piece in driver.astream(QUESTION, DOCUMENTS)])

    monkeypatch.setattr(FocusDecoding, "start", start)
    made = [kind(**tiny_settings) for kind in DRIVERS]
    with ThreadPoolExecutor(len(made)) as threads:  # one for each, so that all begin to wait at once
        streamed = [
            threads.submit(lambda driver=driver: "".join(driver.stream(QUESTION, DOCUMENTS))) for driver in made
        ]
        texts = await asyncio.gather(*map(asyncio.wrap_future, streamed), *map(collected, made))
    assert all(texts)
    assert time.monotonic() >= begin
