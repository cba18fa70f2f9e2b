"""Any adapter, saved and loaded again, is the adapter that it was."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from focus_core import FocusConfig, FocusModel, save_adapter
from tests.model_zoo import random_projections

INPUTS = 32  # of the tiny model's smallest map: no rank is higher


@pytest.fixture(scope="module")
def base(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: each adapter replaces the one before, of which nothing may be left."""
    return tmp_path_factory.mktemp("adapter")


@st.composite
def settings_of_training(draw: st.DrawFn) -> FocusConfig:
    chunk_size = draw(st.integers(2, 500))
    return FocusConfig(
        chunk_size=chunk_size,
        local_window=draw(st.integers(1, 500)),
        dynamic_prompt=draw(st.integers(1, chunk_size)),
        bos_per_chunk=draw(st.booleans()),
    )


@settings(max_examples=20)
@given(
    rank=st.none() | st.integers(1, INPUTS),
    seed=st.integers(0, 100),
    dtype=st.sampled_from([None, torch.float32, torch.bfloat16]),
    trained_with=settings_of_training(),
)
def test_what_was_saved_is_loaded(
    model_folder: Path,
    base: PreTrainedModel,
    adapter: Path,
    rank: int | None,
    seed: int,
    dtype: torch.dtype | None,
    trained_with: FocusConfig,
) -> None:
    """An adapter of another rank, rounded twice, or used with other sizes than in training would find less."""
    saved = random_projections(base, rank=rank, seed=seed)
    save_adapter(adapter, saved, base, trained_with=trained_with, base_id="tiny", dtype=dtype)
    loaded = FocusModel.from_pretrained(model_folder, adapter=adapter, device="cpu", dtype="float32")
    assert loaded.projections.rank == rank
    assert loaded.config == trained_with.resolve(loaded.config.window)
    tensors = loaded.projections.state_dict()
    assert tensors.keys() == saved.state_dict().keys()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(tensors[name], tensor.to(dtype or tensor.dtype).float()), name
