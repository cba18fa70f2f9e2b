"""Which chunk each piece of a stream draws on: in a message's metadata, and in the info of a text model's pieces."""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import GenerationChunk
from langchain_core.prompts import ChatPromptTemplate

from focus_core import ConfigError, FocusEngine
from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from tests.integrations.conformance import QUESTION
from tests.integrations.langchain.conftest import text_of
from tests.integrations.live import DOCUMENTS, WITH_SHARES, WITHOUT, assert_agree, wanted
from tests.integrations.made_sources import METADATA, make_up
from tests.integrations.spies import EngineCall

OTHER = "And who saw it?"


class Pieces(BaseCallbackHandler):
    """What callbacks see of a stream: the only place where LangChain shows the info of a text model's pieces."""

    def __init__(self) -> None:
        self.seen: list[GenerationChunk] = []

    def on_llm_new_token(self, token: str, *, chunk: Any = None, **_: Any) -> None:
        self.seen.append(chunk)


def _of(message: AIMessage) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = message.response_metadata.get("live_evidence", [])
    return found


def _infos(chunks: list[GenerationChunk]) -> list[dict[str, Any]]:
    return [entry for chunk in chunks for entry in (chunk.generation_info or {}).get("live_evidence", [])]


# --- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", WITH_SHARES)
async def test_a_message_chunk_tells_the_chunk_of_its_own_tokens(
    chat: ChatFocusLLM, engine: FocusEngine, method: str
) -> None:
    options: dict[str, Any] = {"documents": DOCUMENTS, "live_evidence": True, "method": method}
    chunks = list(chat.stream(QUESTION, **options))
    achunks = [chunk async for chunk in chat.astream(QUESTION, **options)]
    expected = wanted(engine, method=method)
    for pieces in (chunks, achunks):
        assert_agree([entry for piece in pieces for entry in _of(piece)], expected)
        assert all([entry["text"] for entry in _of(piece)] == [piece.text] for piece in pieces if piece.text)


@pytest.mark.parametrize("method", WITH_SHARES)
async def test_a_text_piece_tells_it_to_callbacks(llm: FocusLLM, engine: FocusEngine, method: str) -> None:
    pieces, later = Pieces(), Pieces()
    options: dict[str, Any] = {"documents": DOCUMENTS, "live_evidence": True, "method": method}
    text = "".join(llm.stream(QUESTION, {"callbacks": [pieces]}, **options))
    assert text == "".join([piece async for piece in llm.astream(QUESTION, {"callbacks": [later]}, **options)])
    expected = wanted(engine, method=method)
    for seen in (pieces.seen, later.seen):
        assert_agree(_infos(seen), expected)
        merged = reduce(add, seen)
        assert merged.text == text
        assert merged.generation_info is not None
        assert_agree(merged.generation_info["live_evidence"], expected)
        assert merged.generation_info["finish_reason"] == "length"


def test_chunks_add_up_to_the_list_of_all_pieces(chat: ChatFocusLLM, engine: FocusEngine) -> None:
    chunks = list(chat.stream(QUESTION, documents=DOCUMENTS, live_evidence=True))
    expected = wanted(engine)
    one_by_one: AIMessageChunk = reduce(add, chunks)
    at_once: Any = chunks[0] + chunks[1:]  # type: ignore[operator]
    for merged in (one_by_one, at_once):
        assert_agree(_of(merged), expected)
        assert "".join(entry["text"] for entry in _of(merged)) == merged.text
        assert merged.response_metadata["method"] == "focus"
    assert [len(_of(chunk)) <= 1 for chunk in chunks] == [True] * len(chunks)  # adding has changed none of them


def test_without_the_option_a_stream_tells_nothing(model: Any) -> None:
    pieces = Pieces()
    list(model.stream(QUESTION, {"callbacks": [pieces]}, documents=DOCUMENTS))
    assert "live_evidence" not in str(pieces.seen)
    list(model.stream(QUESTION, {"callbacks": [pieces]}, documents=DOCUMENTS, live_evidence=True))
    assert "live_evidence" in str(pieces.seen)


@pytest.mark.parametrize("method", WITHOUT)
def test_methods_without_shares_answer_and_tell_nothing(tiny_settings: dict[str, Any], method: str) -> None:
    chat = ChatFocusLLM(**tiny_settings, method=method, live_evidence=True)
    merged = reduce(add, chat.stream(QUESTION, documents=DOCUMENTS))
    assert merged.text == chat.invoke(QUESTION, documents=DOCUMENTS).text
    assert merged.response_metadata["method"] == method
    assert "live_evidence" not in merged.response_metadata


def test_sources_come_beside_it(chat: ChatFocusLLM, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = wanted(engine)
    make_up(monkeypatch)
    merged = reduce(add, chat.stream(QUESTION, documents=DOCUMENTS, live_evidence=True, sources=True))
    assert_agree(_of(merged), expected)
    assert {name: merged.response_metadata[name] for name in METADATA} == METADATA
    assert len(merged.content_blocks) == 1


# --- chains and events ------------------------------------------------------------------------------------------------


async def test_a_chain_and_its_events_carry_it(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    expected = wanted(engine)
    chat = ChatFocusLLM(**tiny_settings, live_evidence=True).bind(documents=DOCUMENTS)
    chain = ChatPromptTemplate.from_template("{question}") | chat
    assert_agree(_of(reduce(add, chain.stream({"question": QUESTION}))), expected)
    events = [event async for event in chain.astream_events({"question": QUESTION}, version="v2")]
    chunks = [event["data"]["chunk"] for event in events if event["event"] == "on_chat_model_stream"]
    assert_agree([entry for chunk in chunks for entry in _of(chunk)], expected)
    (end,) = [event["data"]["output"] for event in events if event["event"] == "on_chat_model_end"]
    assert_agree(_of(end), expected)


async def test_events_of_a_text_model_carry_it(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    llm = FocusLLM(**tiny_settings).bind(documents=DOCUMENTS, live_evidence=True)
    events = [event async for event in llm.astream_events(QUESTION, version="v2")]
    (end,) = [event["data"]["output"] for event in events if event["event"] == "on_llm_end"]
    ((generation,),) = end["generations"]
    assert_agree(generation["generation_info"]["live_evidence"], wanted(engine))


def test_asked_at_the_same_time_every_answer_has_its_own(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    """With `streaming`, LangChain makes whole answers out of streams."""
    chat = ChatFocusLLM(**tiny_settings, live_evidence=True, streaming=True)
    first, second = chat.batch([QUESTION, OTHER], documents=DOCUMENTS)
    assert_agree(_of(first), wanted(engine))
    assert_agree(_of(second), wanted(engine, OTHER))
    assert "live_evidence" in chat.invoke(QUESTION, documents=DOCUMENTS, live_evidence=True).response_metadata


# --- whole answers ----------------------------------------------------------------------------------------------------


async def test_the_setting_leaves_whole_answers_as_they_are(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    """The same model streams here and is invoked there, in chains that decide by themselves."""
    usual, model = model_class(**tiny_settings), model_class(**tiny_settings, live_evidence=True)
    expected = [text_of(answer) for answer in usual.batch([QUESTION, OTHER], documents=DOCUMENTS)]
    asked.clear()
    assert [text_of(answer) for answer in model.batch([QUESTION, OTHER], documents=DOCUMENTS)] == expected
    assert text_of(model.invoke(QUESTION, documents=DOCUMENTS)) == expected[0]
    assert text_of(await model.ainvoke(QUESTION, documents=DOCUMENTS)) == expected[0]
    assert [call.options["live_evidence"] for call in asked] == [False] * len(asked)  # nothing is computed for nobody


@pytest.mark.parametrize("way", ["invoke", "batch"])
async def test_a_whole_answer_that_is_asked_for_it_names_the_way_out(model: Any, way: str) -> None:
    given = QUESTION if way == "invoke" else [QUESTION]
    message = r"live_evidence=True: .*whole answer.*stream\(\) or astream\(\).*sources=True"
    with pytest.raises(ConfigError, match=message):
        getattr(model, way)(given, documents=DOCUMENTS, live_evidence=True)
    with pytest.raises(ConfigError, match=message):
        await getattr(model, f"a{way}")(given, documents=DOCUMENTS, live_evidence=True)
    with pytest.raises(ConfigError, match=message):
        getattr(model.bind(live_evidence=True), way)(given)


def test_a_call_can_do_without(tiny_settings: dict[str, Any]) -> None:
    chat = ChatFocusLLM(**tiny_settings, live_evidence=True)
    assert not _of(reduce(add, chat.stream(QUESTION, documents=DOCUMENTS, live_evidence=False)))
    assert chat.invoke(QUESTION, documents=DOCUMENTS, live_evidence=False).text


@pytest.mark.parametrize("value", ["yes", 1])
def test_it_is_true_or_false(model: Any, value: Any) -> None:
    for ask in (model.invoke, lambda *given, **options: list(model.stream(*given, **options))):
        with pytest.raises(ConfigError, match=f"live_evidence={value!r}: must be True or False"):
            ask(QUESTION, documents=DOCUMENTS, live_evidence=value)
