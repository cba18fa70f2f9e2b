"""Wrappers are cheap: they load nothing until they are asked, share what they load, and refuse unknown settings."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import ConfigurableField

from focus_core import FocusEngine
from focus_core.engine import shared as registry
from focus_core.errors import ConfigError, UnsupportedModelError
from focus_core.loading.named import EMBEDDED
from focus_integrations.engines import MODEL_VARIABLE
from focus_integrations.langchain import ChatFocusLLM
from focus_integrations.settings import PER_CALL, FocusSettings
from tests.integrations.langchain.conftest import text_of
from tests.integrations.spies import EngineCall
from tests.model_zoo import build
from tests.tiny import CHUNK, WINDOW, byte_tokenizer, save_tiny_model

DOCUMENT = "A document that is longer than the local window, so that it is read in chunks. " * 4


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        pytest.fail("a model was loaded")

    monkeypatch.setattr(FocusEngine, "from_pretrained", refuse)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)


# --- imports ----------------------------------------------------------------------------------------------------------


def test_importing_the_package_imports_no_framework_and_no_torch() -> None:
    """Programs that use one framework must not pay for the other."""
    heavy = "{'torch', 'transformers', 'langchain_core', 'llama_index'}"
    done = run_python(f"import sys, focus_integrations; print(sorted({heavy} & set(sys.modules)))")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_missing_extra_is_an_import_error_with_the_line_that_installs_it() -> None:
    done = run_python(
        "import sys; sys.modules['langchain_core'] = None; from focus_integrations.langchain import FocusLLM"
    )
    assert done.returncode == 1
    assert "ImportError: FocusLLM for LangChain needs an extra" in done.stderr
    assert "pip install 'focusllm[langchain]'" in done.stderr


def test_every_public_name_can_be_imported() -> None:
    import focus_integrations.langchain as package

    assert all(getattr(package, name) is not None for name in package.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'ChatFocus'"):
        getattr(package, "ChatFocus")  # noqa: B009


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
def test_construction_loads_nothing(model_class: Any) -> None:
    """Frameworks build wrappers by the thousand; names of models that do not exist show up with the first question."""
    for settings in ({}, {"model": "no/such-model"}, {"model": "embedded", "adapter": "nowhere", "chunk_size": 64}):
        wrapper = model_class(**settings)
        wrapper.asdict()
        wrapper._get_ls_params()
        repr(wrapper)


def test_a_model_that_does_not_exist_is_reported_by_the_first_question(model_class: Any) -> None:
    with pytest.raises(UnsupportedModelError, match="no/such-model"):
        model_class(model="no/such-model").invoke("Who?")


def test_the_model_comes_from_the_argument_else_the_environment_else_the_package(
    model_class: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(MODEL_VARIABLE, raising=False)
    assert model_class().model == EMBEDDED
    monkeypatch.setenv(MODEL_VARIABLE, "my/model")
    assert model_class().model == "my/model"
    assert model_class(model="other/model").model == "other/model"
    assert model_class(model_name="other/model").model == "other/model"


def test_the_variable_names_the_model_that_answers(
    model_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(MODEL_VARIABLE, tiny_settings["model"])
    wrapper = model_class(adapter=tiny_settings["adapter"], max_tokens=4)
    assert text_of(wrapper.invoke("Who?")) == text_of(model_class(**tiny_settings).invoke("Who?", max_tokens=4))


@pytest.mark.parametrize("unknown", ["chunk_sise", "rate_limit", "tools"])
def test_a_misspelt_setting_is_refused(model_class: Any, unknown: str) -> None:
    """LangChain's own classes ignore it, and nobody ever learns that the setting had no effect."""
    with pytest.raises(ConfigError, match=f"takes no setting {unknown!r}"):
        model_class(**{unknown: 4})


def test_none_is_the_default_of_every_setting(model_class: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs that know nothing about a setting pass `temperature=None`, `stop=None` to any model."""
    monkeypatch.setenv(MODEL_VARIABLE, "my/model")
    silent = model_class(**dict.fromkeys(FocusSettings.model_fields), max_new_tokens=None)
    assert silent.identifying == model_class().identifying
    assert (silent.model, silent.temperature, silent.stop, silent.chat_template) == ("my/model", 0.0, [], True)


def test_none_in_a_call_leaves_the_models_own_settings(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    model = model_class(**tiny_settings, temperature=0.7, seed=3, system_prompt="Be brief.")
    expected = text_of(model.invoke("Who?"))
    assert text_of(model.invoke("Who?", **dict.fromkeys(PER_CALL), max_new_tokens=None, stop=None)) == expected
    assert asked[1].options == asked[0].options
    assert text_of(model.invoke("Who?", max_tokens=3, max_new_tokens=None)) == expected[:3]


def test_a_misspelt_argument_of_a_call_is_refused_by_name(model: Any) -> None:
    with pytest.raises(ConfigError, match=r"takes no argument 'max_token'\. Did you mean 'max_tokens'\?"):
        model.invoke("Who?", max_token=4)
    with pytest.raises(ConfigError, match=r"'max_new_token'\. Did you mean 'max_tokens'"):
        model.invoke("Who?", max_new_token=4)
    with pytest.raises(ConfigError, match=r"'tools'\. A call can set: documents, stop"):
        list(model.stream("Who?", tools=[]))


def test_the_chat_class_accepts_what_programs_pass_to_any_chat_model() -> None:
    """Names that mean something for servers have no effect here, and stop nobody from trying another model."""
    wrapper = ChatFocusLLM(api_key="x", base_url="http://localhost", timeout=60, max_retries=2, streaming=True)  # type: ignore[call-arg]
    assert wrapper.streaming


def test_sizes_that_cannot_work_are_refused(model_class: Any, tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="chunk_size"):
        model_class(**tiny_settings, chunk_size=-1).invoke("Who?")


# --- engines are shared -----------------------------------------------------------------------------------------------


def test_wrappers_with_the_same_settings_share_one_engine(
    model: Any, chat: Any, llm: Any, tiny_settings: dict[str, Any]
) -> None:
    """Of either class, and however they sample: weights are in memory once, and so are documents that were read."""
    assert chat.engine is llm.engine is model.engine
    assert type(model)(**tiny_settings, temperature=1.0).engine is model.engine
    assert type(model)(**tiny_settings, chunk_size=32).engine is not model.engine


def test_configurable_fields_do_not_load_again(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """LangChain makes a new wrapper for every call with a configured field."""
    model.invoke("Who?")
    loads: list[Any] = []
    monkeypatch.setattr(FocusEngine, "from_pretrained", lambda *given, **_: loads.append(given))
    flexible = model.configurable_fields(max_tokens=ConfigurableField("tokens"), stop=ConfigurableField("ends"))
    assert len(text_of(flexible.with_config(configurable={"tokens": 3}).invoke("Who?"))) == 3
    assert len(text_of(flexible.with_config(configurable={"tokens": 5}).invoke("Who?"))) == 5
    whole = text_of(model.invoke("Who?"))
    assert text_of(flexible.with_config(configurable={"ends": [whole[4]]}).invoke("Who?")) in whole[:4]
    assert not loads


async def test_many_models_in_turn_are_loaded_once_each(
    model_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrapper holds on to its engine, however many others are used in between; with documents, too."""
    wrappers = [model_class(**tiny_settings, chunk_size=size) for size in (16, 24, 32, 40, 48)]
    for number, wrapper in enumerate(wrappers):
        if number % 2:
            wrapper.invoke("Who?", documents=[DOCUMENT], max_tokens=1)
        else:
            await wrapper.ainvoke("Who?", documents=[DOCUMENT], max_tokens=1)
    monkeypatch.setattr(FocusEngine, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    for wrapper in wrappers:
        assert text_of(wrapper.invoke("Who?", documents=[DOCUMENT], max_tokens=1))


def test_an_engine_of_ones_own_is_used_and_found_again(
    model_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also by the copies that LangChain makes of a wrapper."""
    engine = FocusEngine.from_pretrained(tiny_settings["model"], adapter=tiny_settings["adapter"], progress=False)
    wrapper = model_class.from_engine(engine, max_tokens=6)
    assert wrapper.engine is engine
    monkeypatch.setattr(FocusEngine, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    flexible = wrapper.configurable_fields(max_tokens=ConfigurableField("tokens"))
    assert len(text_of(flexible.with_config(configurable={"tokens": 3}).invoke("Who?"))) == 3
    assert wrapper.bind(max_tokens=2).invoke("Who?")


def test_the_second_question_finds_the_document_read_by_another_wrapper(
    model_class: Any, tiny_settings: dict[str, Any], asked: list[EngineCall]
) -> None:
    document = f"Read by one wrapper, {model_class.__name__}. " * 20
    model_class(**tiny_settings).invoke("Who?", documents=[document])
    answer = ChatFocusLLM(**tiny_settings).invoke("Who else?", documents=[document])
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["input_token_details"] == {"cache_read": len(document), "cache_creation": 0}
    assert len(asked) == 2


def test_who_has_an_engine_waits_for_no_other_to_be_loaded(
    tiny_settings: dict[str, Any], engine: FocusEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer would wait until another model has been downloaded."""
    folder = save_tiny_model(tmp_path / "other", readable=True)
    loading, go_on = threading.Event(), threading.Event()
    load, in_time = registry.load_model, list[bool]()

    def slow(*arguments: Any, **more: Any) -> Any:
        loading.set()
        in_time.append(go_on.wait(30))
        return load(*arguments, **more)

    monkeypatch.setattr(registry, "load_model", slow)
    first = threading.Thread(target=ChatFocusLLM(model=str(folder), max_tokens=1).invoke, args=("Who?",))
    second = threading.Thread(target=ChatFocusLLM(**tiny_settings).invoke, args=("Who?",))
    first.start()
    try:
        assert loading.wait(60)
        FocusEngine.from_pretrained(tiny_settings["model"], adapter=tiny_settings["adapter"])
        second.start()
        second.join(60)
    finally:
        go_on.set()
        first.join()
    assert in_time == [True]  # nobody waited until the loading had given up


# --- what a chat model says about itself ------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_loading")
def test_the_profile_is_known_without_loading(tiny_settings: dict[str, Any], tmp_path: Any) -> None:
    profile = ChatFocusLLM(**tiny_settings).profile
    assert profile is not None
    tokens = tiny_settings["max_tokens"]
    assert profile["max_input_tokens"] == (WINDOW - CHUNK - tokens) * CHUNK
    assert profile["max_output_tokens"] == tokens
    assert (profile["tool_calling"], profile["structured_output"], profile["text_inputs"]) == (False, False, True)
    unknown = ChatFocusLLM(model=str(tmp_path / "nowhere")).profile
    assert unknown is not None
    assert "max_input_tokens" not in unknown


def test_a_sliding_window_counts_before_loading_as_after(tmp_path: Path) -> None:
    """A model of 32,768 positions that sees 512 promised 62 million tokens until it was loaded."""
    build("mistral", sliding_window=128, vocab_size=259).save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    chat = ChatFocusLLM(model=str(tmp_path), max_tokens=4)
    assert chat.profile is not None
    assert chat.profile["max_input_tokens"] == (128 - 4 - 64) * 64  # half of the window is local context, or a chunk
    chat.invoke("Who?", documents=[DOCUMENT])
    loaded = ChatFocusLLM(model=str(tmp_path), max_tokens=4).profile
    assert loaded is not None
    assert loaded["max_input_tokens"] == chat.profile["max_input_tokens"]


def test_a_document_of_the_length_in_the_profile_fits(tiny_settings: dict[str, Any], engine: FocusEngine) -> None:
    """The number is for programs that decide what to send; it must not promise too much."""
    profile = ChatFocusLLM(**tiny_settings, chunk_size=8).profile
    assert profile is not None
    small = ChatFocusLLM(**tiny_settings, chunk_size=8)
    assert small.invoke("Who?", documents=["x" * profile["max_input_tokens"]], max_tokens=1).content
