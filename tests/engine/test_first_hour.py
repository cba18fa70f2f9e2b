"""What a newcomer meets in the first hour: warnings, reprs, settings of two engines, names at the root."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

import focus_core
from focus_core import Document, FocusConfig, FocusEngine, FocusWarning
from tests.engines import QUESTION, A, B, C, make_engine

WAYS_IN: dict[str, Callable[[FocusEngine], object]] = {
    "generate": lambda engine: engine.generate(QUESTION, [A], max_new_tokens=1),
    "batch": lambda engine: engine.generate([QUESTION, "Why?"], [A], max_new_tokens=1),
    "stream": lambda engine: list(engine.stream(QUESTION, [A], max_new_tokens=1)),
    "stream_batch": lambda engine: list(engine.stream_batch([QUESTION], [A], max_new_tokens=1)),
    "long_prompt": lambda engine: engine.generate(A + B, chat_template=False, max_new_tokens=1),
    "prepare": lambda engine: engine.prepare([A]),
}


@pytest.mark.parametrize("way_in", WAYS_IN)
def test_a_model_without_an_adapter_warns_once(way_in: str) -> None:
    """It answered from untrained projections, and Python said nothing."""
    engine = make_engine(trained=False)
    with pytest.warns(FocusWarning, match="LlamaForCausalLM: no adapter is loaded.*focusllm train") as found:
        WAYS_IN[way_in](engine)
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for ask in WAYS_IN.values():
            ask(engine)


def test_no_warning_where_it_would_be_wrong(model_folder: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_engine(trained=False, plain_up_to=400).generate(QUESTION, [A], max_new_tokens=1)
        engine = FocusEngine.from_pretrained(model_folder, adapter=model_folder / "adapter", device="cpu")
        engine.generate(QUESTION, [A * 30], max_new_tokens=1)


def test_preparing_what_the_plain_model_will_read_says_so_and_keeps_nothing() -> None:
    """Chunks were prefilled and kept, and no answer ever used them."""
    engine = make_engine(plain_up_to=400)
    with pytest.warns(FocusWarning, match=r"45 tokens of documents fit the window with a question") as found:
        prepared = engine.prepare(C)
    assert found[0].filename == __file__
    assert engine.shared.store.nbytes == 0
    assert prepared.chunks == ()
    assert "nothing kept" in repr(prepared)
    assert engine.generate(QUESTION, prepared, max_new_tokens=2).method == "plain"


def test_documents_prepared_apart_may_be_asked_together() -> None:
    """Each fits the window with a question, all of them do not."""
    engine = make_engine(plain_up_to=400)
    with pytest.warns(FocusWarning):
        prepared = [engine.prepare(text) for text in (A, B, C * 3)]
    answer = engine.generate(QUESTION, prepared, max_new_tokens=4)
    assert answer.method == "focus"
    assert answer.text == make_engine(plain_up_to=400).generate(QUESTION, [A, B, C * 3], max_new_tokens=4).text


def test_settings_of_one_engine_leave_the_store_of_another_alone() -> None:
    """`store_bytes=0` emptied the stores of all engines of the model."""
    first = make_engine()
    first.prepare(A)
    kept = first.shared.store.nbytes
    second = FocusEngine(first.shared, config=FocusConfig(chunk_size=64, plain_up_to=0), store_bytes=0)
    second.focus.trained = True
    second.prepare(B)
    assert first.shared.store.nbytes == kept > 0
    assert first.generate(QUESTION, [A], max_new_tokens=1).usage.cache_creation == 0
    assert second.generate(QUESTION, [B], max_new_tokens=1).usage.cache_read == 0


def test_reprs_fit_a_line_and_say_sizes() -> None:
    """A notebook cell that ended in `engine.prepare(book)` printed megabytes of token ids."""
    engine = make_engine()
    prepared = engine.prepare([Document(A, name="a.txt"), B])
    answer = engine.generate(QUESTION, prepared, max_new_tokens=20)
    shown = {
        engine: "<FocusEngine 'LlamaForCausalLM', no adapter: window 512, chunks of 64, cpu, float32>",
        prepared: "<PreparedDocuments: 2 documents, 369 tokens, 6 chunks>",
        prepared.chunks[1]: "<Chunk of 'a.txt': tokens 64 to 128>",
        prepared.documents[0]: "<Tokenized <Document 'a.txt': 180 characters>: 180 tokens>",
        engine.shared.scheduler: "<Scheduler: 0 running, 0 prefilling, 0 ready>",
    }
    for value, expected in shown.items():
        assert repr(value) == expected
    assert len(repr(answer)) < 160
    assert repr(answer).startswith("<Answer '")
    assert "focus over 6 chunks>" in repr(answer)
    assert len(repr(engine.shared.store)) < 80


def test_a_table_for_notebooks() -> None:
    engine = make_engine()
    table = engine.prepare([Document(A, name="a & b.txt"), B])._repr_html_()
    assert "<td>a &amp; b.txt</td><td>180</td><td>3</td>" in table
    assert "<td>document 2</td><td>189</td><td>3</td>" in table


def test_names_at_the_root_are_there() -> None:
    for name in focus_core.__all__:
        assert getattr(focus_core, name) is not None
    assert not {"ChunkCache", "Memory", "SamplingConfig", "TokenGeneration"} & set(focus_core.__all__)


def test_numbers_about_chunks_lead_to_characters() -> None:
    """From a chunk of an answer back to the text it came from."""
    engine = make_engine()
    document = Document("Zoë and the 🦊. " * 20, name="fox.txt", metadata={"page": 3})
    chunks = engine.prepare(document).chunks
    assert {chunk.document.metadata["page"] for chunk in chunks} == {3}
    assert "".join(chunk.text or "" for chunk in chunks) == document.text
