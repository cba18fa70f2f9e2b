"""Which chunk each piece of a stream draws on: in `raw`, and in the metadata of a synthesizer's response."""

from __future__ import annotations

from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.schema import NodeWithScore, TextNode

from focus_core import ConfigError, FocusEngine
from focus_integrations.llama_index import FocusLLM, FocusSynthesizer
from tests.integrations.conformance import QUESTION
from tests.integrations.live import DOCUMENTS, WITH_SHARES, WITHOUT, assert_agree, wanted
from tests.integrations.llama_index.drivers import listening
from tests.integrations.made_sources import METADATA, make_up
from tests.integrations.spies import Spy

STREAMS = ("stream_complete", "stream_chat", "astream_complete", "astream_chat")
WHOLE = ("complete", "chat", "acomplete", "achat")


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


def _asked(endpoint: str) -> Any:
    return [ChatMessage(role="user", content=QUESTION)] if endpoint.endswith("chat") else QUESTION


async def _pieces(llm: FocusLLM, endpoint: str, **options: Any) -> list[Any]:
    stream = getattr(llm, endpoint)(_asked(endpoint), documents=DOCUMENTS, **options)
    return [piece async for piece in await stream] if endpoint.startswith("a") else list(stream)


def _entries(pieces: list[Any]) -> list[dict[str, Any]]:
    return [entry for piece in pieces for entry in (piece.raw or {}).get("live_evidence", [])]


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_SHARES)
@pytest.mark.parametrize("endpoint", STREAMS)
async def test_raw_tells_the_chunk_of_the_newest_tokens(
    llm: FocusLLM, engine: FocusEngine, endpoint: str, method: str
) -> None:
    """Text is that of the answer so far, `delta` and `raw` are of the piece."""
    pieces = await _pieces(llm, endpoint, live_evidence=True, method=method)
    assert_agree(_entries(pieces), wanted(engine, method=method))
    for piece in pieces:
        assert [entry["text"] for entry in _entries([piece])] == ([piece.delta] if piece.delta else [])
    assert pieces[-1].raw["usage"]["completion_tokens"] == 12


@pytest.mark.parametrize("endpoint", STREAMS)
async def test_it_is_a_setting_too_which_a_call_can_do_without(
    tiny_settings: dict[str, Any], engine: FocusEngine, endpoint: str
) -> None:
    llm = FocusLLM(**tiny_settings, live_evidence=True)
    assert_agree(_entries(await _pieces(llm, endpoint)), wanted(engine))
    assert not _entries(await _pieces(llm, endpoint, live_evidence=False))
    assert not _entries(await _pieces(FocusLLM(**tiny_settings), endpoint))


@pytest.mark.parametrize("method", WITHOUT)
async def test_methods_without_shares_answer_and_tell_nothing(llm: FocusLLM, method: str) -> None:
    pieces = await _pieces(llm, "stream_complete", live_evidence=True, method=method)
    assert pieces[-1].text == llm.complete(QUESTION, documents=DOCUMENTS, method=method).text
    assert pieces[-1].raw["method"] == method
    assert not _entries(pieces)


async def test_sources_come_beside_it(llm: FocusLLM, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wanted(engine)
    make_up(monkeypatch)
    pieces = await _pieces(llm, "stream_chat", live_evidence=True, sources=True)
    assert_agree(_entries(pieces), expected)
    assert {name: pieces[-1].raw[name] for name in METADATA} == METADATA


@pytest.mark.parametrize("endpoint", WHOLE)
async def test_a_whole_answer_takes_the_setting_and_refuses_the_option(
    tiny_settings: dict[str, Any], endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model that streams here is asked for a whole answer there, by engines that decide by themselves."""
    calls = Spy(monkeypatch).calls

    async def ask(llm: FocusLLM, **options: Any) -> Any:
        answer = getattr(llm, endpoint)(_asked(endpoint), documents=DOCUMENTS, **options)
        return await answer if endpoint.startswith("a") else answer

    answer = await ask(FocusLLM(**tiny_settings, live_evidence=True))
    assert str(answer) == str(await ask(FocusLLM(**tiny_settings)))
    assert "live_evidence" not in answer.raw
    assert [call.options["live_evidence"] for call in calls] == [False, False]
    ways_out = r"live_evidence=True: .*whole answer.*stream_complete\(\) or stream_chat\(\).*sources=True"
    with pytest.raises(ConfigError, match=ways_out):
        await ask(FocusLLM(**tiny_settings), live_evidence=True)


# --- where LlamaIndex streams -----------------------------------------------------------------------------------------


def test_instrumentation_sees_it_while_a_chat_engine_answers(
    tiny_settings: dict[str, Any], engine: FocusEngine
) -> None:
    chat = SimpleChatEngine.from_defaults(llm=FocusLLM(**tiny_settings, documents=DOCUMENTS, live_evidence=True))
    with listening() as events:
        text = "".join(chat.stream_chat(QUESTION).response_gen)
    told = [event.response for event in events.named("LLMChatInProgressEvent")]
    assert_agree(_entries(told), wanted(engine))
    assert "".join(entry["text"] for entry in _entries(told)) == text


NODES = [NodeWithScore(node=TextNode(id_=document.name or "", text=document.text or "")) for document in DOCUMENTS]


async def test_a_streamed_response_has_an_entry_for_each_piece_so_far(
    tiny_settings: dict[str, Any], engine: FocusEngine
) -> None:
    expected = wanted(engine)
    synthesizer = FocusSynthesizer(FocusLLM(**tiny_settings, live_evidence=True), streaming=True)
    response: Any = synthesizer.synthesize(QUESTION, NODES)
    assert response.metadata["focus"] == {}
    text = ""
    for piece in response.response_gen:
        text += piece
        told = response.metadata["focus"]["live_evidence"]
        assert "".join(entry["text"] for entry in told) == text
    assert_agree(told, expected)
    assert response.metadata["focus"]["method"] == "focus"
    later: Any = await synthesizer.asynthesize(QUESTION, NODES)
    assert "".join([piece async for piece in later.response_gen]) == text
    assert_agree(later.metadata["focus"]["live_evidence"], expected)


def test_a_whole_response_is_as_without(tiny_settings: dict[str, Any]) -> None:
    usual, response = (
        FocusSynthesizer(FocusLLM(**tiny_settings, live_evidence=asked)).synthesize(QUESTION, NODES)
        for asked in (False, True)
    )
    assert str(response) == str(usual)
    assert response.metadata is not None
    assert "live_evidence" not in response.metadata["focus"]
