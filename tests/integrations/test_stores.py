"""A folder in which wrappers keep what they have read, and the names under which they hand documents over."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from langchain_core.documents import Document as LangChains
from langchain_core.messages import HumanMessage
from langchain_core.messages.content import create_plaintext_block, create_text_block
from llama_index.core.schema import Document as LlamaIndexes
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.storage.docstore import SimpleDocumentStore

from focus_core import ConfigError, FocusEngine
from focus_core.cache.listing import list_documents
from focus_integrations.langchain import ChatFocusLLM
from focus_integrations.langchain import FocusLLM as LangChainLLM
from focus_integrations.llama_index import FocusLLM as LlamaIndexLLM
from focus_integrations.llama_index import FocusSynthesizer, WholeDocumentPostprocessor
from tests.integrations.spies import Spy

WRAPPERS = {"LangChain LLM": LangChainLLM, "LangChain chat": ChatFocusLLM, "LlamaIndex LLM": LlamaIndexLLM}
DOCUMENT = "".join(f"At {hour} the keeper of gate {hour * 7} was seen again. " for hour in range(10))
LIMIT = 2**24


@pytest.fixture(params=WRAPPERS.values(), ids=WRAPPERS.keys())
def wrapper_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "store"


def cache_creation(wrapper: Any) -> int:
    """Tokens that a question about the document reads."""
    if isinstance(wrapper, LlamaIndexLLM):
        return int(wrapper.complete("Who?", documents=[DOCUMENT]).raw["usage"]["cache_creation"])  # type: ignore[index]
    if isinstance(wrapper, ChatFocusLLM):
        usage: Any = wrapper.invoke("Who?", documents=[DOCUMENT]).usage_metadata
    else:
        usage = wrapper.generate(["Who?"], documents=[DOCUMENT]).generations[0][0].generation_info["usage_metadata"]  # type: ignore[index]
    return int(usage["input_token_details"]["cache_creation"])


# --- the folder -------------------------------------------------------------------------------------------------------


def test_another_process_reads_nothing_again(
    wrapper_class: Any, tiny_settings: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    """Two copies of a model share no memory, just as two processes."""
    copies = [shutil.copytree(tiny_settings["model"], tmp_path / name) for name in "ab"]
    settings = {"max_tokens": 1, "method": "focus", "store": folder}
    first, again = (wrapper_class(model=copy, adapter=copy / "adapter", **settings) for copy in copies)
    assert cache_creation(first) == len(DOCUMENT)
    assert again.engine.shared is not first.engine.shared
    assert cache_creation(again) == 0


def test_wrappers_with_one_store_share_an_engine_and_others_do_not(
    wrapper_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine, folder: Path
) -> None:
    with_store = wrapper_class(**tiny_settings, store=folder)
    assert with_store.engine is wrapper_class(**tiny_settings, store=str(folder)).engine
    assert with_store.engine is not engine
    assert with_store.engine is not wrapper_class(**tiny_settings, store=folder, store_limit=LIMIT).engine
    assert with_store.engine.shared is engine.shared  # weights are in memory once


def test_a_store_that_is_changed_after_use_takes_effect(
    wrapper_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine, folder: Path
) -> None:
    wrapper = wrapper_class(**tiny_settings)
    assert wrapper.engine is engine
    assert engine.store.disk is None
    wrapper.store = folder
    assert wrapper.engine.store.disk.folder == folder
    wrapper.store_limit = LIMIT
    assert wrapper.engine.store.disk.limit == LIMIT
    with pytest.raises(ConfigError, match="store_limit=16777216 without a store has no effect"):
        wrapper.store = None
    assert wrapper.engine.store.disk.folder == folder
    wrapper.store_limit = wrapper.store = None
    assert wrapper.engine.store.disk is None


def test_the_environment_names_the_folder_of_wrappers_that_name_none(
    wrapper_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine, folder: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("FOCUSLLM_STORE", str(folder))
    assert wrapper_class(**tiny_settings).engine.store.disk.folder == folder
    assert wrapper_class(**tiny_settings, store_limit=LIMIT).engine.store.disk.limit == LIMIT
    other = folder / "other"
    assert wrapper_class(**tiny_settings, store=other).engine.store.disk.folder == other
    assert wrapper_class.from_engine(engine).engine.store.disk is None
    monkeypatch.setenv("FOCUSLLM_STORE", "")
    assert wrapper_class(**tiny_settings).engine.store.disk is None


def test_dumps_copies_and_pickles_hold_it(wrapper_class: Any, folder: Path) -> None:
    wrapper = wrapper_class(store=folder, store_limit=LIMIT)
    assert f"store={str(folder)!r}, store_limit={LIMIT}" in repr(wrapper)
    for copied in (wrapper.model_dump(), vars(pickle.loads(pickle.dumps(wrapper))), vars(wrapper.model_copy())):
        assert (copied["store"], copied["store_limit"]) == (str(folder), LIMIT)


def test_no_answer_depends_on_it(wrapper_class: Any, folder: Path) -> None:
    """A response cache finds answers that were given without a store."""
    assert wrapper_class(store=folder, store_limit=LIMIT).identifying == wrapper_class().identifying


def test_a_folder_that_cannot_be_one_is_refused_with_the_first_question(
    wrapper_class: Any, tiny_settings: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(ConfigError, match="Name another folder"):
        cache_creation(wrapper_class(**tiny_settings, store=tmp_path / "file"))


# --- names ------------------------------------------------------------------------------------------------------------


def names_of(spy: Spy) -> list[str | None]:
    return [document.name for document in spy.calls[-1].given]


def test_documents_of_langchain_have_their_source_or_id_for_name(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, chat = Spy(monkeypatch), ChatFocusLLM(**{**tiny_settings, "max_tokens": 1})
    by_source = LangChains("One.", metadata={"source": "one.txt"}, id="1")
    chat.invoke("Who?", documents=[by_source, LangChains("Two.", id="2"), "Three."])
    assert names_of(spy) == ["one.txt", "2", None]


def test_the_store_lists_documents_under_their_names(
    wrapper_class: Any, tiny_settings: dict[str, Any], folder: Path
) -> None:
    wrapper = wrapper_class(**{**tiny_settings, "max_tokens": 1}, method="focus", store=folder)
    if wrapper_class is LlamaIndexLLM:
        wrapper.complete("Who?", documents=[LlamaIndexes(text=DOCUMENT, metadata={"file_name": "gates.txt"})])
    else:
        wrapper.invoke("Who?", documents=[LangChains(DOCUMENT, metadata={"source": "gates.txt"})])
    assert [listed.document.name for listed in list_documents(folder)] == ["gates.txt"]


def test_a_document_with_a_drawn_id_is_listed_once_however_often_it_is_asked(
    tiny_settings: dict[str, Any], folder: Path
) -> None:
    """LlamaIndex draws an id for every document without one: each question left a list under another name."""
    llm = LlamaIndexLLM(**{**tiny_settings, "max_tokens": 1}, method="focus", store=folder)
    for _ in range(3):
        llm.complete("Who?", documents=[LlamaIndexes(text=DOCUMENT)])
    (listed,) = list_documents(folder)
    assert listed.document.name.startswith("“At 0 the keeper")


def test_a_relative_folder_stays_where_it_was_when_it_was_named(
    wrapper_class: Any, tiny_settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    wrapper = wrapper_class(**tiny_settings, store="kept")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert wrapper.engine.store.disk.folder == tmp_path / "kept"
    assert wrapper_class(**tiny_settings, store="kept").engine.store.disk.folder == tmp_path / "elsewhere" / "kept"


def test_settings_of_the_classes_without_an_engine_of_their_own(folder: Path) -> None:
    """They were accepted in use, and nothing followed."""
    llm = LlamaIndexLLM()
    synthesizer = FocusSynthesizer(llm)
    for name, value in {"streaming": True, "store": folder, "chunk_size": 5, "numbered_sources": True}.items():
        with pytest.raises(ConfigError, match=f"^{name}=.*change its model"):
            setattr(synthesizer, name, value)
    with pytest.raises(ConfigError, match=r"takes no 'store'\..*llm=FocusLLM"):
        FocusSynthesizer(llm, store=folder)
    processor = WholeDocumentPostprocessor(docstore=SimpleDocumentStore(), llm=llm)
    for name, value in {"on_overflow": "bogus", "max_document_tokens": -5, "docstore": 5, "store": folder}.items():
        with pytest.raises(ConfigError, match=name):
            setattr(processor, name, value)
    processor.max_document_tokens = 5
    with pytest.raises(ConfigError, match="max_document_tokens needs the model"):
        processor.llm = None
    assert (processor.max_document_tokens, processor.llm) == (5, llm)


def test_text_blocks_have_their_title_for_name(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    spy, chat = Spy(monkeypatch), ChatFocusLLM(**{**tiny_settings, "max_tokens": 1})
    blocks: list[Any] = [
        create_plaintext_block(text="One.", title="one.txt"),
        create_plaintext_block(text="Two."),
        create_text_block("Who?"),
    ]
    chat.invoke([HumanMessage(blocks)])
    assert names_of(spy) == ["one.txt", None]


def test_nodes_of_llama_index_have_their_file_or_id_for_name(
    tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy, llm = Spy(monkeypatch), LlamaIndexLLM(**{**tiny_settings, "max_tokens": 1})
    documents = [LlamaIndexes(text="One.", metadata={"file_name": "one.txt"}), TextNode(text="Two.", id_="2")]
    llm.complete("Who?", documents=[*documents, "Three."])
    assert names_of(spy) == ["one.txt", "2", None]
    FocusSynthesizer(llm).synthesize("Who?", [NodeWithScore(node=document) for document in documents])
    assert names_of(spy) == ["one.txt", "2"]
