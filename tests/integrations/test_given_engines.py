"""Wrappers around an engine that is there already: copies share it, dumps leave it out. Pickles; core documents."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any
from weakref import ref

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.load import dumpd
from langchain_core.runnables import ConfigurableField

from focus_core import Document, FocusConfig, FocusEngine
from focus_core.errors import ConfigError
from focus_core.methods.focus import FocusModel
from focus_core.methods.plain import PlainMethod
from focus_core.methods.table import METHODS
from focus_integrations import engines
from focus_integrations.langchain import ChatFocusLLM
from focus_integrations.langchain import FocusLLM as LangChainLLM
from focus_integrations.llama_index import FocusLLM as LlamaIndexLLM
from tests.integrations.spies import Spy
from tests.model_zoo import build
from tests.tiny import byte_tokenizer

DOCUMENT = "The gates were closed at noon, and nobody saw the keeper again. " * 6
WRAPPERS = [LangChainLLM, ChatFocusLLM, LlamaIndexLLM]
IDS = ["LangChain LLM", "LangChain chat", "LlamaIndex LLM"]


def ask(wrapper: Any, **options: Any) -> str:
    """The answer of any wrapper, or of something that LangChain made of one."""
    if isinstance(wrapper, LlamaIndexLLM):
        return str(wrapper.complete("Who?", **options).text)
    answer = wrapper.invoke("Who?", **options)
    return answer if isinstance(answer, str) else str(answer.content)


@pytest.fixture
def own(tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> FocusEngine:
    """An engine of the user's; from now on no other is loaded."""
    engine = FocusEngine.from_pretrained(tiny_settings["model"], adapter=tiny_settings["adapter"], progress=False)
    monkeypatch.setattr(FocusEngine, "from_pretrained", lambda *_, **__: pytest.fail("a model was loaded"))
    return engine


@pytest.fixture(params=WRAPPERS, ids=IDS)
def wrapper_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def wrapper(wrapper_class: Any, own: FocusEngine) -> Any:
    return wrapper_class.from_engine(own, max_tokens=6)


# --- copies -----------------------------------------------------------------------------------------------------------


def test_its_name_is_the_models(wrapper: Any, own: FocusEngine) -> None:
    """Traces and usage counters show it."""
    assert wrapper.model == own.shared.loaded.model_id
    assert wrapper.adapter == own.shared.loaded.adapter_id
    assert wrapper.engine is own


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda wrapper: wrapper.model_copy(), lambda wrapper: wrapper.model_copy(deep=True)],
    ids=["copy", "deepcopy", "model_copy", "deep model_copy"],
)
def test_copies_share_it(wrapper: Any, own: FocusEngine, copied: Callable[[Any], Any]) -> None:
    """Its locks cannot be copied, and its weights must not be in memory twice."""
    assert copied(wrapper).engine is own
    assert ask(copied(wrapper)) == ask(wrapper)


def test_copies_of_a_wrapper_that_has_loaded_share_its_engine(
    wrapper_class: Any, tiny_settings: dict[str, Any]
) -> None:
    wrapper = wrapper_class(**tiny_settings)
    assert copy.deepcopy(wrapper).engine is wrapper.engine
    assert copy.deepcopy(wrapper).engine is wrapper.engine  # the first copy was made without one


@pytest.mark.parametrize("wrapper_class", WRAPPERS[:2], ids=IDS[:2])
def test_what_langchain_makes_of_a_wrapper_asks_it(wrapper_class: Any, own: FocusEngine) -> None:
    wrapper = wrapper_class.from_engine(own, max_tokens=6)
    expected = ask(wrapper)
    flexible = wrapper.configurable_fields(max_tokens=ConfigurableField("tokens"))
    assert ask(flexible.with_config(configurable={"tokens": 3})) == expected[:3]
    alternatives = wrapper.configurable_alternatives(ConfigurableField("which"), other=wrapper)
    assert ask(alternatives.with_config(configurable={"which": "other"})) == expected
    assert ask(wrapper.bind(max_tokens=2)) == expected[:2]
    assert ask(wrapper.with_retry()) == expected
    assert ask(wrapper.with_fallbacks([wrapper])) == expected
    assert ask(wrapper.with_config(tags=["a"])) == expected


def test_it_stands_in_no_dump(wrapper: Any) -> None:
    """Dumps go into logs and traces, and an engine holds gigabytes."""
    dumps = [wrapper.model_dump(), repr(wrapper), str(wrapper), wrapper.model_dump_json(exclude={"profile"})]
    if isinstance(wrapper, LlamaIndexLLM):
        dumps += [wrapper.to_dict(), wrapper.to_json(), wrapper.model_json_schema()]
    else:
        dumps += [wrapper.asdict(), dumpd(wrapper), wrapper._identifying_params, wrapper._get_ls_params()]
    for dump in dumps:
        assert "given_engine" not in str(dump)
        assert "<FocusEngine" not in str(dump)


def test_another_object_is_refused(wrapper_class: Any) -> None:
    with pytest.raises(ConfigError, match="given_engine='engine': Input should be an instance of FocusEngine"):
        wrapper_class(given_engine="engine")


def test_it_is_not_kept_alive(wrapper_class: Any, tiny_settings: dict[str, Any]) -> None:
    """Its weights leave memory with the last wrapper."""
    engine = FocusEngine.from_model(build("llama", vocab_size=259), byte_tokenizer(), progress=False)
    gone = ref(engine)
    wrapper = wrapper_class.from_engine(engine, max_tokens=1)
    assert wrapper.identifying["engine"]
    del engine, wrapper
    gc.collect()
    assert gone() is None


# --- response caches --------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::focus_core.FocusWarning")
@pytest.mark.parametrize("wrapper_class", WRAPPERS[:2], ids=IDS[:2])
def test_different_engines_never_share_an_answer(wrapper_class: Any, tiny_settings: dict[str, Any]) -> None:
    """Whatever differs: models of the same name, sizes, or a method that only the engine knows."""
    models = [build("llama", vocab_size=259, seed=seed) for seed in (1, 2)]
    made = [FocusEngine.from_model(model, byte_tokenizer(), progress=False) for model in models]
    made += [FocusEngine.from_model(models[0], byte_tokenizer(), progress=False, method="focus")]
    made += [FocusEngine.from_model(models[0], byte_tokenizer(), progress=False, config=FocusConfig(chunk_size=16))]
    shared = InMemoryCache()
    wrappers = [wrapper_class.from_engine(engine, max_tokens=2, cache=shared) for engine in made]
    assert len({wrapper.model for wrapper in wrappers}) == 1
    for wrapper in wrappers:
        ask(wrapper)
        ask(wrapper, documents=[DOCUMENT])
    assert len(shared._cache) == 2 * len(made)


@pytest.mark.parametrize("wrapper_class", WRAPPERS[:2], ids=IDS[:2])
def test_wrappers_around_one_engine_share_answers(
    wrapper_class: Any, own: FocusEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, spy = InMemoryCache(), Spy(monkeypatch)
    answers = [ask(wrapper_class.from_engine(own, max_tokens=6, cache=shared)) for _ in range(2)]
    assert answers[0] == answers[1]
    assert len(spy.calls) == 1


# --- methods ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["focus", "plain", "auto"])
def test_the_engines_method_is_the_wrappers(
    wrapper_class: Any, tiny_settings: dict[str, Any], method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = FocusEngine.from_pretrained(tiny_settings["model"], adapter=tiny_settings["adapter"], method=method)
    spy = Spy(monkeypatch)
    ask(wrapper_class.from_engine(engine, max_tokens=1, method=None), documents=[DOCUMENT])
    ask(wrapper_class.from_engine(engine, max_tokens=1, method="plain"), documents=[DOCUMENT])
    ask(wrapper_class.from_engine(engine, max_tokens=1), documents=[DOCUMENT], method="focus")
    assert [call.options["method"] for call in spy.calls] == [method, "plain", "focus"]


def test_a_method_of_the_engine_may_be_ones_own(
    wrapper_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Whole(PlainMethod):
        name = "whole"

        def __init__(self, model: FocusModel) -> None:
            super().__init__(model)

    monkeypatch.setitem(METHODS, "whole", Whole)
    engine = FocusEngine.from_pretrained(tiny_settings["model"], adapter=tiny_settings["adapter"], method="whole")
    assert wrapper_class.from_engine(engine).method == "whole"
    expected = engine.generate("Who?", [DOCUMENT], method="plain", max_new_tokens=3).text
    assert ask(wrapper_class.from_engine(engine, max_tokens=3), documents=[DOCUMENT]) == expected


# --- pickles ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("used", [False, True], ids=["new", "used"])
def test_a_pickled_wrapper_shares_its_engine_again(
    wrapper_class: Any, tiny_settings: dict[str, Any], used: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """LlamaIndex would try to pickle the weights, fail at a lock, and warn about it."""
    wrapper = wrapper_class(**tiny_settings, temperature=0.5, seed=3, stop=["\n"])
    if used:
        ask(wrapper)
    frozen = pickle.dumps(wrapper)
    assert len(frozen) < 10_000
    again = pickle.loads(frozen)
    assert again._engine is None
    assert again.identifying == wrapper.identifying
    assert again.engine is wrapper.engine
    assert ask(again) == ask(wrapper)
    assert not caplog.records


@pytest.mark.slow
def test_pickled_wrappers_answer_in_another_process(tiny_settings: dict[str, Any]) -> None:
    """Servers hand wrappers to their workers."""
    wrappers = [wrapper_class(**tiny_settings) for wrapper_class in WRAPPERS]
    expected = [ask(wrapper, documents=[DOCUMENT]) for wrapper in wrappers]
    code = "import pickle, sys; from tests.integrations.test_given_engines import DOCUMENT, ask; "
    code += "print([ask(wrapper, documents=[DOCUMENT]) for wrapper in pickle.load(sys.stdin.buffer)])"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(wrappers), capture_output=True, timeout=240)
    assert done.stdout.decode().strip() == str(expected), done.stderr.decode()


def test_pickling_leaves_the_wrapper_as_it_was(
    wrapper_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = wrapper_class(**tiny_settings)
    engine = wrapper.engine
    pickle.dumps(wrapper)
    engines.release_engines()
    monkeypatch.setattr(engines, "_load", lambda _: pytest.fail("a model was loaded"))
    assert wrapper.engine is engine


def test_an_engine_of_ones_own_cannot_be_pickled(wrapper: Any) -> None:
    """A copy without it would load another model under its name."""
    name = type(wrapper).__name__
    with pytest.raises(ConfigError, match=rf"{name} made from_engine cannot be pickled.*{name}\(model="):
        pickle.dumps(wrapper)
    assert ask(wrapper)


# --- documents --------------------------------------------------------------------------------------------------------


def test_core_documents_go_wherever_documents_go(
    wrapper_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    document = Document(DOCUMENT, name="gates.txt", metadata={"page": 3})
    ask(wrapper_class(**tiny_settings), documents=[document, DOCUMENT], max_tokens=1)
    assert [call.given for call in spy.calls] == [[document]]
    assert spy.calls[0].given[0] is document


def test_name_and_metadata_of_a_frameworks_document_stay_with_it(
    wrapper_class: Any, tiny_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that what the engine says of a document can be traced to its file."""
    if wrapper_class is LlamaIndexLLM:
        from llama_index.core.schema import Document as TheirDocument

        metadata: dict[str, Any] = {"file_name": "gates.txt", "page": 3}
        named: Any = TheirDocument(text=DOCUMENT, metadata=metadata, id_="7")
        by_id: Any = TheirDocument(text="Another.", id_="8")
    else:
        from langchain_core.documents import Document as LangChains

        metadata = {"source": "gates.txt", "page": 3}
        named, by_id = LangChains(DOCUMENT, metadata=metadata, id="7"), LangChains("Another.", id="8")
    spy = Spy(monkeypatch)
    ask(wrapper_class(**tiny_settings), documents=[named, by_id, "A text."], max_tokens=1)
    (first, second, text) = spy.calls[0].given
    assert (first.name, dict(first.metadata)) == ("gates.txt", metadata)
    assert (second.name, dict(second.metadata)) == ("8", {})
    assert (text.name, dict(text.metadata)) == (None, {})
