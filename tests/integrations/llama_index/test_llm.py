"""FocusLLM as a LlamaIndex model: events, usage, prompts, messages, settings, and what happens to it in pipelines."""

from __future__ import annotations

import copy
import importlib
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import llama_index.core
import pytest
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, LLMMetadata, MessageRole, TextBlock
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms import CustomLLM
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.schema import Document, NodeWithScore, TextNode
from pydantic import BaseModel

from focus_core import FocusEngine
from focus_core.errors import ConfigError, ContextOverflowError, DocumentError
from focus_integrations import engines
from focus_integrations.llama_index import FocusLLM
from tests.integrations.conformance import DOCUMENTS, QUESTION, TOKENS
from tests.integrations.llama_index.drivers import counting, listening
from tests.integrations.spies import EngineCall, Script, Spy
from tests.tiny import save_tiny_model

ENDPOINTS = [
    f"{asynchronous}{stream}{kind}"
    for kind in ("complete", "chat")
    for stream in ("", "stream_")
    for asynchronous in ("", "a")
]


class Person(BaseModel):
    """Somebody."""

    name: str
    born: int


@pytest.fixture
def llm(tiny_settings: dict[str, Any]) -> FocusLLM:
    return FocusLLM(**tiny_settings)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Every call to the engine, which works as usual."""
    return Spy(monkeypatch).calls


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[EngineCall]:
    """Calls to an engine that answers with the same JSON, whatever it is asked."""
    return Script(monkeypatch, 'Here: {"name": "Ada", "born": 1815}').calls


async def use(llm: FocusLLM, endpoint: str, text: str, **options: Any) -> Any:
    """The last response of an endpoint."""
    asked: Any = [ChatMessage(role="user", content=text)] if endpoint.endswith("chat") else text
    answer = getattr(llm, endpoint)(asked, **options)
    if endpoint.startswith("a"):
        answer = await answer
        return [item async for item in answer][-1] if "stream" in endpoint else answer
    return list(answer)[-1] if "stream" in endpoint else answer


# --- events and usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("endpoint", ENDPOINTS)
async def test_an_answer_is_counted_once_and_right(llm: FocusLLM, engine: FocusEngine, endpoint: str) -> None:
    """LlamaIndex's own base class counts one asynchronous chat three times, with tokens of another model."""
    usage = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS).usage
    counter = counting()
    llm.callback_manager = CallbackManager([counter])
    with listening() as events:
        response = await use(llm, endpoint, QUESTION, documents=DOCUMENTS)
    assert [event.prompt_token_count for event in counter.llm_token_counts] == [usage.input_tokens]
    assert counter.completion_llm_token_count == usage.output_tokens == TOKENS
    assert response.raw["usage"]["total_tokens"] == usage.input_tokens + usage.output_tokens
    assert response.raw["usage"]["document_tokens"] == sum(map(engine.count_tokens, DOCUMENTS))
    kind = "LLMChat" if endpoint.endswith("chat") else "LLMCompletion"
    names = [event.class_name() for event in events.seen if "InProgress" not in event.class_name()]
    assert names == [f"{kind}StartEvent", "FocusReadingEvent", f"{kind}EndEvent"]  # the documents had been read


def test_stream_items_hold_the_text_so_far_and_what_is_new(llm: FocusLLM) -> None:
    """Usage stands on the last one only: counters add up what they see."""
    items = list(llm.stream_complete(QUESTION, documents=DOCUMENTS))
    for before, item in zip(["", *(item.text for item in items)], items, strict=False):
        assert item.text == before + (item.delta or "")
    assert [item.raw is not None for item in items] == [False] * (len(items) - 1) + [True]


# --- metadata ---------------------------------------------------------------------------------------------------------


def test_metadata_load_nothing(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """LlamaIndex reads them at every event, and when indices and engines are built."""
    engines.release_engines()
    monkeypatch.setattr(engines, "_load", lambda settings: pytest.fail("weights were loaded"))
    metadata = FocusLLM(**tiny_settings).metadata
    assert isinstance(metadata, LLMMetadata)
    assert (metadata.num_output, metadata.is_chat_model) == (TOKENS, True)
    assert not metadata.is_function_calling_model
    assert metadata.model_name == tiny_settings["model"]


def test_context_window_is_what_fits(llm: FocusLLM, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's own window would make LlamaIndex cut everything into its size; more would fail."""

    class PlannedError(Exception):
        """The plan was accepted."""

    def stop(*_: Any) -> None:
        raise PlannedError

    monkeypatch.setattr(engine.shared.scheduler, "add", stop)
    window = llm.metadata.context_window
    assert window > 10 * engine.config.window
    with pytest.raises(PlannedError):
        llm.complete(QUESTION, documents="x" * window)
    with pytest.raises(ContextOverflowError):
        llm.complete(QUESTION, documents="x" * round(window * 1.1))


def test_without_chat_template_it_is_no_chat_model(llm: FocusLLM, tiny_settings: dict[str, Any]) -> None:
    assert not FocusLLM(**tiny_settings, chat_template=False).metadata.is_chat_model


def test_it_is_a_custom_llm(llm: FocusLLM) -> None:
    """Some integrations ask for that class."""
    assert isinstance(llm, CustomLLM)
    assert llm.class_name() == "FocusLLM"


# --- prompts ----------------------------------------------------------------------------------------------------------


async def test_a_formatted_prompt_goes_to_the_model_as_it_stands(
    llm: FocusLLM, engine: FocusEngine, calls: list[EngineCall]
) -> None:
    """`predict` has put everything into it already; a template around it would come twice."""
    expected = engine.generate("Once upon", chat_template=False, max_new_tokens=TOKENS).text
    for endpoint in ENDPOINTS[:4]:
        response = await use(llm, endpoint, "Once upon", formatted=True)
        assert response.text == expected
    assert {call.question for call in calls} == {"Once upon"}
    assert not any(call.options["chat_template"] for call in calls[1:])


@pytest.mark.parametrize("chat_template", [True, False])
async def test_the_system_prompt_comes_once(
    tiny_settings: dict[str, Any], calls: list[EngineCall], chat_template: bool
) -> None:
    """Both LlamaIndex and this class put it in front."""
    llm = FocusLLM(**tiny_settings, system_prompt="Be brief.", chat_template=chat_template)
    prompt = PromptTemplate("{who}?")
    llm.predict(prompt, who="Ada")
    await llm.apredict(prompt, who="Ada")
    list(llm.stream(prompt, who="Ada"))
    llm.complete("Ada?")
    llm.chat([ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Ada?")])
    for call in calls:
        text = str(call.questions)
        assert (text.count("Be brief."), text.count("Ada?")) == (1, 1)
    assert llm.chat_template is all(call.options["chat_template"] for call in calls)


def test_a_system_message_of_the_prompt_joins_the_system_prompt(
    tiny_settings: dict[str, Any], calls: list[EngineCall]
) -> None:
    """Templates of models know one system message, in front."""
    llm = FocusLLM(**tiny_settings, system_prompt="Be brief.")
    llm.predict(ChatPromptTemplate.from_messages([("system", "Be kind."), ("user", "{who}?")]), who="Ada")
    assert calls[0].questions == [
        [{"role": "system", "content": "Be brief.\n\nBe kind."}, {"role": "user", "content": "Ada?"}]
    ]


async def test_own_prompt_functions_replace_the_chat_template(
    tiny_settings: dict[str, Any], calls: list[EngineCall]
) -> None:
    """They are given for models whose template is missing or wrong. Streams must not forget them."""
    llm = FocusLLM(
        **tiny_settings,
        completion_to_prompt=lambda prompt: f"<c>{prompt}</c>",
        messages_to_prompt=lambda messages: "".join(f"<{m.role.value}>{m.content}" for m in messages),
    )
    for endpoint in ENDPOINTS:
        await use(llm, endpoint, "Ada?", max_tokens=2)
    assert [call.question for call in calls] == ["<c>Ada?</c>"] * 4 + ["<user>Ada?"] * 4
    assert not any(call.options["chat_template"] for call in calls)


def test_a_prompt_may_be_longer_than_the_window(llm: FocusLLM, engine: FocusEngine) -> None:
    prompt = "A sentence of a long story. " * 400
    response = llm.complete(prompt)
    assert engine.count_tokens(prompt) > 2 * engine.config.window
    assert response.raw["usage"]["chunks"] > 10
    assert response.raw["usage"]["input_tokens"] == engine.count_question_tokens(prompt)


# --- documents, messages ----------------------------------------------------------------------------------------------


def test_documents_come_in_many_forms(llm: FocusLLM, engine: FocusEngine, calls: list[EngineCall]) -> None:
    """Metadata is not part of a document's text."""
    prepared = engine.prepare("prepared")
    mixed = [Document(text="one", metadata={"a": "b"}), TextNode(text="two", metadata={"c": "d"}), "three", prepared]
    llm.complete(QUESTION, documents=mixed)
    llm.complete(QUESTION, documents=Document(text="alone"))
    llm.complete(QUESTION, documents="alone")
    assert [call.documents for call in calls] == [["one", "two", "three", prepared], ["alone"], ["alone"]]


def test_a_hit_is_read_as_its_node(llm: FocusLLM, calls: list[EngineCall]) -> None:
    """Retrievers return nodes with scores."""
    hit = NodeWithScore(node=TextNode(text="hit"), score=0.5)
    llm.complete(QUESTION, documents=hit)
    llm.complete(QUESTION, documents=["text", hit])
    assert [call.documents for call in calls] == [["hit"], ["text", "hit"]]


def test_neighbours_of_one_role_are_joined(llm: FocusLLM, calls: list[EngineCall]) -> None:
    llm.chat(
        [
            ChatMessage(role="user", content="One."),
            ChatMessage(role="user", blocks=[TextBlock(text="Two.")]),
            ChatMessage(role="assistant", content="Three."),
            ChatMessage(role="user", content="Four."),
        ]
    )
    assert [message["content"] for message in calls[0].questions[0]] == ["One.\n\nTwo.", "Three.", "Four."]


@pytest.mark.parametrize("role", [MessageRole.TOOL, MessageRole.FUNCTION])
def test_a_role_that_cannot_be_read_is_named(llm: FocusLLM, role: MessageRole) -> None:
    with pytest.raises(ConfigError, match=f"role '{role.value}'"):
        llm.chat([ChatMessage(role=role, content="42")])


def test_a_block_that_cannot_be_read_is_named(llm: FocusLLM) -> None:
    """Dropped in silence, a picture would make the model invent what is on it."""
    blocks: Any = [TextBlock(text="What is this?"), ImageBlock(url="https://example.org/a.png")]
    with pytest.raises(ConfigError, match="ImageBlock"):
        llm.chat([ChatMessage(role="user", blocks=blocks)])


def test_no_messages_are_no_question(llm: FocusLLM) -> None:
    with pytest.raises(ConfigError, match="no messages"):
        llm.chat([])


# --- settings ---------------------------------------------------------------------------------------------------------


def test_sampling_is_set_on_the_model_and_per_call(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    llm = FocusLLM(**tiny_settings, temperature=1.0, seed=3)
    drawn = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=TOKENS, temperature=1.0, seed=3).text
    greedy = engine.generate(QUESTION, DOCUMENTS, max_new_tokens=5).text
    assert llm.complete(QUESTION, documents=DOCUMENTS).text == drawn
    assert llm.complete(QUESTION, documents=DOCUMENTS, temperature=0.0, max_new_tokens=5).text == greedy


def test_stop_strings_of_model_and_call_both_hold(tiny_settings: dict[str, Any], calls: list[EngineCall]) -> None:
    FocusLLM(**tiny_settings, stop=["one"]).complete(QUESTION, stop=["two"])
    assert calls[0].options["stop"] == ("one", "two")


def test_a_setting_that_does_not_exist_is_refused() -> None:
    """A slip of the pen would otherwise change nothing, in silence."""
    with pytest.raises(ConfigError, match=r"FocusLLM takes no setting 'chunk_sise'\. Did you mean 'chunk_size'\?"):
        FocusLLM(chunk_sise=4)


async def test_an_argument_that_does_not_exist_is_refused(llm: FocusLLM) -> None:
    for endpoint in ENDPOINTS:
        with pytest.raises(ConfigError, match=r"takes no argument 'max_token'\. Did you mean 'max_tokens'\?"):
            await use(llm, endpoint, QUESTION, max_token=3)


def test_the_model_is_named_in_the_environment(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FOCUSLLM_MODEL", raising=False)
    assert FocusLLM().model == "embedded"
    monkeypatch.setenv("FOCUSLLM_MODEL", tiny_settings["model"])
    assert FocusLLM().model == tiny_settings["model"]
    assert FocusLLM(model_name="other").model == "other"


def test_wrappers_share_an_engine(tiny_settings: dict[str, Any], llm: FocusLLM) -> None:
    assert FocusLLM(**tiny_settings, temperature=0.5).engine is llm.engine


def test_an_engine_of_ones_own_is_used(engine: FocusEngine) -> None:
    llm = FocusLLM.from_engine(engine, max_tokens=3)
    assert llm.engine is engine
    assert llm.complete(QUESTION).raw["usage"]["output_tokens"] == 3


# --- copies -----------------------------------------------------------------------------------------------------------


def test_dict_and_back(tiny_settings: dict[str, Any]) -> None:
    llm = FocusLLM(**tiny_settings, temperature=0.5, stop=["\n"], system_prompt="Be brief.")
    again = FocusLLM.from_dict(llm.to_dict())
    assert again.to_dict() == llm.to_dict()
    assert again.engine_settings == llm.engine_settings
    assert FocusLLM.from_json(llm.to_json()).to_dict() == llm.to_dict()


def test_pickled_it_finds_its_engine_again(llm: FocusLLM, caplog: pytest.LogCaptureFixture) -> None:
    """LlamaIndex would pickle the weights, fail at a lock, and warn about it."""
    answer = llm.complete(QUESTION, documents=DOCUMENTS).text
    frozen = pickle.dumps(llm)
    again = pickle.loads(frozen)
    assert not caplog.records
    assert len(frozen) < 10_000
    assert again.engine is llm.engine
    assert again.complete(QUESTION, documents=DOCUMENTS).text == answer


def test_copies_share_the_engine(engine: FocusEngine) -> None:
    """Its locks cannot be copied, and nobody wants the weights twice."""
    llm = FocusLLM.from_engine(engine)
    assert copy.deepcopy(llm).engine is copy.copy(llm).engine is engine


# --- structured answers -----------------------------------------------------------------------------------------------


async def test_structured_answers_by_prompting(llm: FocusLLM, told: list[EngineCall]) -> None:
    """The schema stands in the prompt, and documents stay beside it."""
    prompt, ada = PromptTemplate("Who is {who}?"), Person(name="Ada", born=1815)
    options: Any = {"llm_kwargs": {"documents": DOCUMENTS}}
    assert llm.structured_predict(Person, prompt, **options, who="she") == ada
    assert await llm.astructured_predict(Person, prompt, **options, who="she") == ada
    structured = llm.as_structured_llm(Person)
    message = [ChatMessage(role="user", content="Who is she?")]
    assert structured.chat(message, documents=DOCUMENTS).raw == ada
    assert (await structured.achat(message, documents=DOCUMENTS)).raw == ada
    assert len(told) == 4
    for call in told:
        assert call.documents == DOCUMENTS
        assert '"born"' in call.question


# --- the process ------------------------------------------------------------------------------------------------------


def test_a_missing_extra_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("focus_integrations.llama_index")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "llama_index.core", None)
    with pytest.raises(ImportError, match=r"pip install 'focusllm\[llama-index\]'"):
        importlib.import_module("focus_integrations.llama_index")


def test_importing_the_package_does_not_import_torch() -> None:
    """Programs import all they might use; half of them never ask."""
    code = "import sys, focus_integrations.llama_index; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_tokens_are_the_models_own(llm: FocusLLM, engine: FocusEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llama_index.core, "global_tokenizer", None)
    assert len(llm.tokenize("äx")) == engine.count_tokens("äx") == 3
    llm.predict(PromptTemplate("{who}?"), who="Ada")
    assert llama_index.core.global_tokenizer is None


def test_a_system_prompt_beside_a_formatted_prompt_is_refused(llm: FocusLLM) -> None:
    with pytest.raises(ConfigError, match="system_prompt with formatted=True"):
        llm.complete("Once upon", formatted=True, system_prompt="Be brief.")


@pytest.mark.parametrize(
    ("documents", "message"), [({"a.txt": "text"}, "documents is a dict"), (b"text", "is a bytes")]
)
def test_documents_that_would_be_taken_to_pieces_are_refused(llm: FocusLLM, documents: Any, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        llm.complete("Who?", documents=documents)


def test_a_model_folder_may_have_any_name(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "c#1")
    assert FocusLLM(model=str(folder), device="cpu", max_new_tokens=2).complete("Who?").raw is not None
