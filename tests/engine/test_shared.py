"""Weights are loaded once per process and shared by the engines that ask for the same."""

from __future__ import annotations

import gc
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from focus_core import (
    ConfigError,
    FocusConfig,
    FocusEngine,
)
from focus_core.engine import shared as registry
from focus_core.loading.adapters import ADAPTER_WEIGHTS
from tests.engines import QUESTION, A, B, make_engine


@pytest.fixture
def engine() -> FocusEngine:
    return make_engine()


@pytest.fixture
def tiny_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(model_folder, tmp_path / "model"))


def test_an_adapter_that_was_trained_again_is_loaded_again(tiny_folder: Path) -> None:
    adapter = tiny_folder / "adapter"
    first = FocusEngine.from_pretrained(tiny_folder, adapter=adapter, device="cpu")
    assert FocusEngine.from_pretrained(tiny_folder, adapter=adapter).shared is first.shared  # "auto" is the CPU here
    weights = load_file(adapter / ADAPTER_WEIGHTS)
    save_file({name: 2 * tensor for name, tensor in weights.items()}, adapter / ADAPTER_WEIGHTS)
    second = FocusEngine.from_pretrained(tiny_folder, adapter=adapter, device="cpu")
    name = next(iter(weights))
    assert torch.equal(second.focus.projections.state_dict()[name], 2 * first.focus.projections.state_dict()[name])


def test_the_store_of_a_named_model_can_be_given_a_budget(model_folder: Path) -> None:
    engine = FocusEngine.from_pretrained(
        model_folder, adapter=model_folder / "adapter", device="cpu", dtype="float64", store_bytes=0
    )
    assert engine.prepare([A]).chunks
    assert engine.store.memory.nbytes == 0


def test_engines_without_an_adapter_share_their_projections(engine: FocusEngine) -> None:
    assert FocusEngine(engine.shared).focus.projections is engine.focus.projections


def test_weights_and_chunks_are_shared_by_engines_of_one_name(model_folder: Path) -> None:
    """Two engines that differ in a setting would load the weights twice, and read equal chunks twice."""
    adapter = model_folder / "adapter"
    first = FocusEngine.from_pretrained(model_folder, adapter=adapter, device="cpu")
    second = FocusEngine.from_pretrained(model_folder, adapter=adapter, device="cpu", chunk_size=32)
    third = FocusEngine.from_pretrained(model_folder, adapter=adapter, device="cpu", dynamic_prompt=8)
    assert first.focus.model is second.focus.model is third.focus.model
    first.prepare([B])
    assert second.generate(QUESTION, [B], max_new_tokens=1).usage.cache_read == 0  # other chunks
    assert third.generate(QUESTION, [B], max_new_tokens=1).usage.cache_creation == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"device": "meta"}, "device='meta': FocusLLM runs on 'cpu', 'cuda' and 'mps'"),
        ({"dtype": "float8_e4m3fn"}, "dtype='float8_e4m3fn': use 'auto', 'float32'"),
        ({"dtype": torch.float32}, "dtype=torch.float32: use .* as text"),
    ],
)
def test_unknown_devices_and_dtypes_are_named(model_folder: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FocusEngine.from_pretrained(model_folder, **arguments)


def test_weights_are_shared_by_all_who_ask_for_the_same(tiny_folder: Path) -> None:
    """By default or by name, one after the other or at the same time; and by nobody else."""

    def load(**settings: Any) -> Any:
        return FocusEngine.from_pretrained(tiny_folder, device="cpu", **settings).shared

    made: list[Any] = []
    threads = [threading.Thread(target=lambda: made.append(load())) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(shared) for shared in made}) == 1
    assert load(dtype="float32") is made[0]
    assert load(dtype="bfloat16") is not made[0]
    assert load(attn_implementation="eager") is not made[0]
    (tiny_folder / "generation_config.json").write_text("{}")  # written again
    assert load() is not made[0]


@pytest.mark.parametrize("nbytes", ["1GB", -5, 1.5])
def test_impossible_store_sizes_are_named(model_folder: Path, nbytes: Any) -> None:
    with pytest.raises(ConfigError, match=f"store_bytes={nbytes!r}"):
        FocusEngine.from_pretrained(model_folder, device="cpu", store_bytes=nbytes)


def test_the_embedded_model_is_never_rounded_unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU "auto" is bfloat16, in which it finds less than its card says."""

    class LoadingError(Exception):
        pass

    def load(*_: Any, dtype: str, **__: Any) -> None:
        raise LoadingError(dtype)

    monkeypatch.setattr(registry, "load_model", load)
    monkeypatch.setattr(registry, "_shared", {})
    monkeypatch.setattr(registry, "named_model", lambda name: (name, None))
    for model, asked, wanted in (
        (None, "auto", "float32"),
        ("embedded", "auto", "float32"),
        (None, "bfloat16", "bfloat16"),
        ("a/b", "auto", "auto"),
    ):
        with pytest.raises(LoadingError, match=wanted):
            FocusEngine.from_pretrained(model, dtype=asked)


@pytest.mark.parametrize("name", ["model", "adapter"])
def test_an_empty_name_is_refused(name: str) -> None:
    """A variable that is not set would be taken for the embedded model, or for no adapter."""
    with pytest.raises(ConfigError, match=f"{name}='': name a folder or a hub id"):
        FocusEngine.from_pretrained(**{name: ""})  # type: ignore[arg-type]


def test_settings_of_the_method_go_into_the_config(model_folder: Path) -> None:
    engine = FocusEngine.from_pretrained(model_folder, device="cpu", chunk_size=512, plain_up_to=None)
    assert engine.config.chunk_size == 512
    with pytest.raises(ConfigError, match="chunk_size is given beside config=FocusConfig"):
        FocusEngine.from_pretrained(model_folder, chunk_size=512, config=FocusConfig())
    with pytest.raises(ConfigError, match=r"takes no .chunksize.\. Did you mean 'chunk_size'"):
        FocusEngine.from_pretrained(model_folder, chunksize=512)
    with pytest.raises(ConfigError, match=r"temperature is an option of a call: engine.generate\(…, temperature=…\)"):
        FocusEngine.from_pretrained(model_folder, temperature=0.5)
    with pytest.raises(ConfigError, match=r"engine.stream\(…, live_evidence=…\)"):  # `generate` refuses it
        FocusEngine.from_pretrained(model_folder, live_evidence=True)


def test_an_engine_that_nobody_holds_is_gone_at_once() -> None:
    """In a cycle it would keep its model, gigabytes of it, until Python looks for cycles."""
    engine = make_engine(method="select")
    engine.generate("Why?", "The gates were closed at noon. " * 30, max_new_tokens=1)
    held = weakref.ref(engine)
    gc.disable()
    try:
        del engine
        assert held() is None
    finally:
        gc.enable()
