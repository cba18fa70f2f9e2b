"""Settings of a wrapper: refused where they cannot work, at construction and later, in all frameworks."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from focus_core import FocusConfig, FocusEngine
from focus_core.errors import ConfigError
from focus_integrations.langchain import ChatFocusLLM
from focus_integrations.langchain import FocusLLM as LangChainLLM
from focus_integrations.llama_index import FocusLLM as LlamaIndexLLM

WRAPPERS = {"LangChain LLM": LangChainLLM, "LangChain chat": ChatFocusLLM, "LlamaIndex LLM": LlamaIndexLLM}
IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": -1}, "max_tokens=-1: must be at least 1"),
    ({"max_tokens": 0}, "max_tokens=0: must be at least 1"),
    ({"max_tokens": "many"}, "max_tokens='many': Input should be a valid integer"),
    ({"temperature": -1}, r"temperature=-1\.0: must be 0 \(greedy\) or more"),
    ({"top_p": 2.0}, r"top_p=2\.0: must be above 0 and at most 1"),
    ({"seed": -1}, "seed=-1: must lie between"),
    ({"stop": [""]}, "stop holds an empty string"),
    ({"method": "beam"}, "method='beam': choose from 'auto', 'focus', 'plain'"),
    ({"chunk_size": 0}, "chunk_size=0: must be at least 1"),
    ({"store_limit": -1}, "store_limit=-1: Input should be greater than or equal to 0"),
    ({"store_limit": 9}, "store_limit=9 without a store has no effect"),
    ({"store": ""}, "store='': name a folder"),
    ({"store": 3}, "store=3: Input should be a valid string"),
    ({"model": 3}, "model=3: Input should be a valid string"),
    ({"system_prompt": 3}, "system_prompt=3: Input should be a valid string"),
]


@pytest.fixture(params=WRAPPERS.values(), ids=WRAPPERS.keys())
def wrapper_class(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.mark.parametrize(("given", "message"), IMPOSSIBLE, ids=str)
def test_an_impossible_setting_is_refused_at_construction_and_later(
    wrapper_class: Any, given: dict[str, Any], message: str
) -> None:
    """The first question may come hours later, in another place."""
    with pytest.raises(ConfigError, match=message):
        wrapper_class(**given)
    wrapper = wrapper_class()
    ((name, value),) = given.items()
    before = getattr(wrapper, name)
    with pytest.raises(ConfigError, match=message):
        setattr(wrapper, name, value)
    assert getattr(wrapper, name) == before


def test_an_attribute_that_is_no_setting_is_refused_with_the_right_name(wrapper_class: Any) -> None:
    with pytest.raises(ConfigError, match=r"takes no setting 'chunk_sise'\. Did you mean 'chunk_size'\?"):
        wrapper_class().chunk_sise = 4


def test_a_path_and_a_single_stop_string_are_taken(wrapper_class: Any) -> None:
    wrapper = wrapper_class(model=Path("a") / "model", adapter=Path("b"), stop="END")
    assert (wrapper.model, wrapper.adapter, wrapper.stop) == (str(Path("a") / "model"), "b", ["END"])


@pytest.mark.parametrize("change", ["assigned", "copied"])
def test_a_size_that_is_changed_after_use_takes_effect(
    wrapper_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine, change: str
) -> None:
    """The engine of the first question has another size."""
    wrapper = wrapper_class(**tiny_settings)
    assert wrapper.engine is engine
    if change == "assigned":
        wrapper.chunk_size = 24
    else:
        wrapper = wrapper.model_copy(update={"chunk_size": 24})
    assert (engine.config.chunk_size, wrapper.engine.config.chunk_size) == (64, 24)
    wrapper.chunk_size = None
    assert wrapper.engine is engine


def test_every_setting_of_the_method_is_one_of_the_wrapper(wrapper_class: Any) -> None:
    """But two of the authors' rules and of the model's, which an engine of one's own may have."""
    names = {field.name for field in fields(FocusConfig)}
    assert names - set(wrapper_class.model_fields) == {"bos_per_chunk", "window"}


@pytest.mark.parametrize("name", ["plain_up_to", "focus_up_to"])
def test_up_to_where_a_method_reads_reaches_the_engine(
    wrapper_class: Any, tiny_settings: dict[str, Any], name: str
) -> None:
    assert getattr(wrapper_class(**tiny_settings, **{name: 70}).engine.config, name) == 70


def test_how_chunks_are_kept_takes_effect_when_it_is_changed_after_use(
    wrapper_class: Any, tiny_settings: dict[str, Any], engine: FocusEngine
) -> None:
    wrapper = wrapper_class(**tiny_settings)
    assert wrapper.engine is engine
    wrapper.kv_dtype = "int8"
    assert (engine.config.kv_dtype, wrapper.engine.config.kv_dtype) == (None, "int8")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("chunk_size", 24), ("model", "other"), ("dtype", "float64"), ("kv_dtype", "int8")),
        *(("store", "/folder"), ("store_limit", 9), ("gguf_file", "x.gguf")),
    ],
)
def test_settings_of_an_engine_that_is_given_are_refused(
    wrapper_class: Any, engine: FocusEngine, name: str, value: Any
) -> None:
    message = rf"{name}={value!r} has no effect on an engine that is given.*from_pretrained\(…, {name}=…\)"
    if name != "model":  # `from_engine` names the model itself
        with pytest.raises(ConfigError, match=message):
            wrapper_class.from_engine(engine, **{name: value})
    wrapper = wrapper_class.from_engine(engine)
    with pytest.raises(ConfigError, match=message):
        setattr(wrapper, name, value)


def test_stop_of_a_call_is_a_string_or_strings(wrapper_class: Any, tiny_settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="stop=5: give a string, or a list of strings"):
        wrapper_class(**tiny_settings).call({}, stop=5)
