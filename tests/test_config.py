"""Settings are checked when they are made; a message names the setting, its value and the way out."""

from __future__ import annotations

from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from focus_core.config import FocusConfig, SamplingConfig
from focus_core.errors import ConfigError, FocusError


@pytest.mark.parametrize("name", ["chunk_size", "local_window", "dynamic_prompt", "parallel_chunks", "window"])
@pytest.mark.parametrize("value", [0, -3])
def test_sizes_must_be_positive(name: str, value: int) -> None:
    """A size of 0 would end in a division or an endless loop far from its cause."""
    with pytest.raises(ConfigError, match=rf"{name}={value}: must be at least 1"):
        FocusConfig(**{name: value})
    assert getattr(FocusConfig(**{name: 1}), name) == 1


def test_plain_up_to_may_be_zero_but_not_less() -> None:
    """A negative length would silently mean "always in chunks"."""
    assert FocusConfig(plain_up_to=0).plain_up_to == 0
    with pytest.raises(ConfigError, match=r"plain_up_to=-1: must be 0 .* or more"):
        FocusConfig(plain_up_to=-1)


@pytest.mark.parametrize("value", [-0.1, 1.1, "all", True])
def test_a_share_that_documents_explain(value: Any) -> None:
    with pytest.raises(ConfigError, match=f"supported_share={value!r}: must (be a number|lie between 0 and 1)"):
        FocusConfig(supported_share=value)
    assert [FocusConfig(supported_share=one).supported_share for one in (0, 1)] == [0, 1]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (0.0, "select_top_p=0.0: must be above 0 and at most 1"),
        (1.5, "select_top_p=1.5: must be above 0 and at most 1"),
        ("all", "select_top_p='all': must be a number"),
        (True, "select_top_p=True: must be a number"),
    ],
)
def test_a_share_of_the_evidence(value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FocusConfig(select_top_p=value)
    assert FocusConfig(select_top_p=1).select_top_p == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1: must be 0 \(greedy\) or more"),
        ({"top_p": 0.0}, r"top_p=0.0: must be above 0 and at most 1"),
        ({"top_p": 1.1}, r"top_p=1.1: must be above 0 and at most 1"),
        ({"top_k": True}, r"top_k=True: must be a whole number"),
        ({"top_k": -1}, r"top_k=-1: must be 0 \(off\) or more"),
        ({"min_p": 1.5}, r"min_p=1.5: must lie between 0 and 1"),
        ({"min_p": -0.5}, r"min_p=-0.5: must lie between 0 and 1"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty=0.0: must lie between 0.001 and 1000"),
        ({"repetition_penalty": 1e-300}, r"repetition_penalty=1e-300: must lie between 0.001 and 1000"),
        ({"repetition_penalty": float("nan")}, r"repetition_penalty=nan: must be a finite number"),
        ({"temperature": float("inf")}, r"temperature=inf: must be a finite number"),
        ({"temperature": 10**400}, r"temperature=10{59}…: must be a finite number"),
    ],
)
def test_sampling_settings(settings: dict[str, Any], message: str) -> None:
    """A typo in a probability would give an empty distribution while sampling."""
    with pytest.raises(ConfigError, match=message):
        SamplingConfig(**settings)


@pytest.mark.parametrize(
    "settings",
    [{"temperature": 0.0}, {"top_p": 1.0}, {"top_k": 0}, {"min_p": 0.0}, {"min_p": 1.0}, {"repetition_penalty": 0.5}],
)
def test_borders_of_sampling_settings(settings: dict[str, Any]) -> None:
    """ "Off" would be refused."""
    (name, value) = next(iter(settings.items()))
    assert getattr(SamplingConfig(**settings), name) == value


def test_an_unknown_kind_of_keys_and_values_is_refused() -> None:
    """A misspelt dtype would keep chunks exactly, and take four times the memory that was expected."""
    with pytest.raises(ConfigError, match=r"kv_dtype='int4': choose from 'int8'"):
        FocusConfig(kv_dtype="int4")
    assert FocusConfig(kv_dtype="int8").resolve(1024).kv_dtype == "int8"
    assert FocusConfig(kv_dtype="int8").resolve(1024).as_settings().kv_dtype is None  # no property of an adapter


@pytest.mark.parametrize("config", [FocusConfig, SamplingConfig])
def test_unknown_settings_are_refused(config: type) -> None:
    """A misspelt setting would be ignored."""
    with pytest.raises(TypeError, match="chunk_sise"):
        config(chunk_sise=4)


def test_settings_are_frozen() -> None:
    """A setting changed later would not have been checked, and two engines would share it."""
    with pytest.raises(FrozenInstanceError):
        FocusConfig().chunk_size = 4  # type: ignore[misc]


def test_errors_are_no_value_errors() -> None:
    """LlamaIndex swallows a ValueError and answers "Empty Response"."""
    assert issubclass(ConfigError, FocusError)
    assert not issubclass(FocusError, ValueError)


# --- resolving --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "chunk_size", "local_window", "dynamic_prompt"),
    [(131072, 2048, 2048, 512), (4096, 2048, 2048, 512), (1024, 512, 512, 256), (64, 32, 32, 16)],
)
def test_defaults_suit_the_window(window: int, chunk_size: int, local_window: int, dynamic_prompt: int) -> None:
    """A small model would need settings before it could answer anything."""
    resolved = FocusConfig().resolve(window)
    sizes = (resolved.chunk_size, resolved.local_window, resolved.dynamic_prompt)
    assert sizes == (chunk_size, local_window, dynamic_prompt)
    assert resolved.window == window


def test_dynamic_prompt_is_never_longer_than_chunk_or_local_window() -> None:
    """The authors' rule: min(512, stride, local)."""
    assert FocusConfig(chunk_size=100, local_window=300).resolve(4096).dynamic_prompt == 100
    assert FocusConfig(chunk_size=300, local_window=100).resolve(4096).dynamic_prompt == 100
    assert FocusConfig(dynamic_prompt=700).resolve(8192).dynamic_prompt == 700


def test_a_window_that_came_with_the_adapter_was_not_set_by_hand() -> None:
    """Users of the authors' checkpoints would look for a setting that they never made."""
    trained_with = FocusConfig(window=4096)
    assert FocusConfig().resolve(2048, trained_with).window_is == "set with the adapter"
    assert FocusConfig(window=1024).resolve(2048, trained_with).window_is == "set by hand"


def test_window_set_by_hand_goes_before_the_models() -> None:
    """The setting would do nothing."""
    resolved = FocusConfig(window=1000).resolve(64)
    assert (resolved.window, resolved.chunk_size) == (1000, 500)


def test_own_settings_go_before_those_of_the_adapter() -> None:
    """What the user asks for would be overruled, or what the adapter was trained with forgotten."""
    trained_with = FocusConfig(chunk_size=100, local_window=200, dynamic_prompt=50, plain_up_to=300)
    resolved = FocusConfig(chunk_size=128).resolve(4096, trained_with)
    sizes = (resolved.chunk_size, resolved.local_window, resolved.dynamic_prompt, resolved.plain_up_to)
    assert sizes == (128, 200, 50, 300)


@pytest.mark.parametrize(("own", "adapter", "result"), [(True, True, True), (True, False, False), (False, True, False)])
def test_bos_rule_of_the_adapter(own: bool, adapter: bool, result: bool) -> None:
    """A checkpoint trained under the authors' rule would read chunks with a BOS that it never saw."""
    trained_with = FocusConfig(bos_per_chunk=adapter)
    assert FocusConfig(bos_per_chunk=own).resolve(4096, trained_with).bos_per_chunk is result


def test_settings_as_json() -> None:
    """An adapter would come back with other settings than it was saved with."""
    config = FocusConfig(chunk_size=128, bos_per_chunk=False)
    assert config.as_dict() == {"chunk_size": 128, "bos_per_chunk": False}
    assert FocusConfig(**config.as_dict()) == config
