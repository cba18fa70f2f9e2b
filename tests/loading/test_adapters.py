"""Adapters go round unchanged, and everything that is not one is refused with what differs."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from focus_core import AdapterError, ConfigError, FocusConfig, FocusModel, UnsupportedModelError
from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.loading.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from focus_core.methods.continuation import continue_tokens

PROMPT = list(range(3, 200)) * 3


@pytest.mark.parametrize("rank", [None, 4])
def test_saved_and_loaded_projections_compute_the_same(base: PreTrainedModel, tmp_path: Path, rank: int | None) -> None:
    projections = CandidateProjections(decoder_parts(base), rank=rank)
    for parameter in projections.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    settings = FocusConfig(chunk_size=96, local_window=64, dynamic_prompt=40, plain_up_to=0)
    save_adapter(tmp_path, projections, base, trained_with=settings, base_id="tiny")
    loaded, trained_with = load_adapter(tmp_path, base)
    assert trained_with == settings
    assert loaded.rank == rank
    before = continue_tokens(
        FocusModel(base, projections, trained_with=settings), PROMPT, max_new_tokens=3, return_logits=True
    )
    after = continue_tokens(
        FocusModel(base, loaded, trained_with=trained_with), PROMPT, max_new_tokens=3, return_logits=True
    )
    assert before.logits is not None
    assert torch.equal(before.logits, after.logits)  # type: ignore[arg-type]


def test_fresh_low_rank_equals_full_copies(base: PreTrainedModel) -> None:
    """Both kinds begin as the model's own maps (biases included)."""
    config = FocusConfig(chunk_size=64, local_window=64, plain_up_to=0)
    models = [
        FocusModel(base, CandidateProjections(decoder_parts(base), rank=rank), config=config) for rank in (None, 3)
    ]
    logits = [continue_tokens(model, PROMPT, max_new_tokens=2, return_logits=True).logits for model in models]
    torch.testing.assert_close(logits[0], logits[1], atol=1e-5, rtol=0)


def test_low_rank_is_a_fraction_of_the_full_size(base: PreTrainedModel) -> None:
    parts = decoder_parts(base)
    full, low = (
        sum(parameter.numel() for parameter in CandidateProjections(parts, rank=rank).parameters())
        for rank in (None, 1)
    )
    assert low < full / 5


def _cut_short(folder: Path) -> None:
    path = folder / ADAPTER_WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def _drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    tensors.pop(sorted(tensors)[0])
    save_file(tensors, folder / ADAPTER_WEIGHTS)


def _reshape_tensor(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    name = sorted(tensors)[0]
    save_file({**tensors, name: torch.zeros(3, 5)}, folder / ADAPTER_WEIGHTS)


def _spoil_tensor(folder: Path) -> None:
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    tensors[sorted(tensors)[0]].view(-1)[3] = float("nan")
    save_file(tensors, folder / ADAPTER_WEIGHTS)


def _spoil_sample(name: str, sample: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        description = json.loads(path.read_text())
        description["fingerprint"]["weights"][name] = sample
        path.write_text(json.dumps(description))

    return spoil


def _edit(**changes: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / ADAPTER_CONFIG
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return edit


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut_short, "damaged or cut short"),
        (lambda folder: (folder / ADAPTER_WEIGHTS).unlink(), f"has no {ADAPTER_WEIGHTS}"),
        (lambda folder: (folder / ADAPTER_CONFIG).unlink(), "not an adapter of FocusLLM"),
        (lambda folder: (folder / ADAPTER_CONFIG).write_text("{"), "damaged"),
        (lambda folder: (folder / ADAPTER_CONFIG).write_text("{}"), "lacks"),
        (_drop_tensor, "missing"),
        (_reshape_tensor, r"\[3, 5\] instead of"),
        (_spoil_tensor, "something else than finite"),
        (_spoil_sample("embedding", "a b c d"), "damaged: fingerprint="),
        (_edit(format_version=99), "format version 99"),
        (_edit(format="else"), "format 'else'"),
        (_edit(fingerprint={}), "damaged: fingerprint="),
        (_edit(fingerprint={"shape": {}, "weights": {"embedding": [1.0]}}), "damaged: fingerprint="),
        (_edit(rank="4"), "damaged: rank=4"),
        (_edit(config=None), "damaged: config=None"),
        (_edit(projections=["qkv_proj"]), r"projects \['qkv_proj'\]"),
        (_edit(config={"chunk_sise": 3}), "chunk_sise"),
        (_edit(config={"chunk_size": "896"}), rf"{ADAPTER_CONFIG}: chunk_size='896'"),
        (_edit(rank=0), f"{ADAPTER_CONFIG}: rank=0"),
    ],
)
def test_damaged_adapters_are_refused(
    adapter: Path, base: PreTrainedModel, damage: Callable[[Path], None], message: str
) -> None:
    damage(adapter)
    with pytest.raises(AdapterError, match=message):
        load_adapter(adapter, base)


def test_a_peft_adapter_is_named_as_such(tmp_path: Path, base: PreTrainedModel) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="PEFT"):
        load_adapter(tmp_path, base)


def test_a_rank_above_the_maps_is_refused(base: PreTrainedModel) -> None:
    """It would be larger than full copies."""
    with pytest.raises(ConfigError, match=r"rank=5000: a map has \d+ inputs"):
        CandidateProjections(decoder_parts(base), rank=5000)


def test_quantised_weights_are_refused_by_name(base: PreTrainedModel) -> None:
    map_ = base.get_decoder().layers[0].self_attn.q_proj
    map_.weight = torch.nn.Parameter(map_.weight.to(torch.int8), requires_grad=False)
    for rank in (None, 4):
        with pytest.raises(UnsupportedModelError, match=r"quantised \(torch.int8\)"):
            CandidateProjections(decoder_parts(base), rank=rank)
