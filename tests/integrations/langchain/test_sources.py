"""Sources of an answer: LangChain's standard citations, and documents with scores in the metadata."""

from __future__ import annotations

from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import pytest
from langchain_core.messages import AIMessage
from langchain_core.messages.content import Citation, TextContentBlock

from focus_integrations.langchain import ChatFocusLLM, FocusLLM
from focus_integrations.sources import source_fields
from tests.integrations.made_sources import EXCERPT, METADATA, SOURCE, make_up

DOCUMENTS = ["The gates were closed at noon. " * 5, f"At noon {EXCERPT} " * 3]


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    make_up(monkeypatch)


def _block(text: str, **more: Any) -> TextContentBlock:
    citation = Citation(
        type="citation",
        url="https://example.org/a.txt",
        title="a.txt",
        start_index=0,
        end_index=len(text),
        cited_text=EXCERPT,
        extras={"document": 1, "start": 8, "end": 36, "page": None, "score": 7.5, "role": "sole"},
    )
    return TextContentBlock(type="text", text=text, annotations=[citation], **more)


def _metadata(message: AIMessage) -> dict[str, Any]:
    return {name: message.response_metadata[name] for name in METADATA}


def test_the_page_is_that_of_the_text_or_of_the_loader() -> None:
    """Loaders of PDFs make a document of all pages, with form feeds between them, or one of each, with a label."""
    a_page = replace(SOURCE, metadata={"page_label": "iv"})
    assert [source_fields(one)["page"] for one in (SOURCE, a_page, replace(a_page, page=3))] == [None, "iv", 3]


def test_a_message_cites_its_sources(tiny_settings: dict[str, Any]) -> None:
    plain = ChatFocusLLM(**tiny_settings).invoke("Who?", documents=DOCUMENTS)
    message = ChatFocusLLM(**tiny_settings, sources=True).invoke("Who?", documents=DOCUMENTS)
    assert message.content_blocks == [_block(str(plain.content))]
    assert message.text == plain.text
    assert _metadata(message) == METADATA
    assert not METADATA.keys() & plain.response_metadata.keys()


def test_sources_are_an_option_of_a_call_too(tiny_settings: dict[str, Any]) -> None:
    model = ChatFocusLLM(**tiny_settings)
    assert _metadata(model.invoke("Who?", documents=DOCUMENTS, sources=True)) == METADATA
    asking = ChatFocusLLM(**tiny_settings, sources=True)
    assert "sources" not in asking.invoke("Who?", documents=DOCUMENTS, sources=False).response_metadata


def test_a_stream_is_one_block_with_its_citations_at_the_end(tiny_settings: dict[str, Any]) -> None:
    model = ChatFocusLLM(**tiny_settings, sources=True)
    whole = model.invoke("Who?", documents=DOCUMENTS)
    chunks = list(model.stream("Who?", documents=DOCUMENTS))
    joined = reduce(add, chunks)
    assert joined.content_blocks == [_block(whole.text, index=0)]
    assert _metadata(joined) == METADATA
    assert "".join(chunk.text for chunk in chunks) == whole.text


async def test_without_waiting(tiny_settings: dict[str, Any]) -> None:
    model = ChatFocusLLM(**tiny_settings, sources=True)
    message = await model.ainvoke("Who?", documents=DOCUMENTS)
    assert message.content_blocks == [_block(message.text)]


def test_the_text_model_tells_sources_in_its_info(tiny_settings: dict[str, Any]) -> None:
    result = FocusLLM(**tiny_settings, sources=True).generate(["Who?"], documents=DOCUMENTS)
    info = result.generations[0][0].generation_info
    assert info is not None
    assert {name: info[name] for name in METADATA} == METADATA
