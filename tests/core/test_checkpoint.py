"""Adapters go round unchanged, and everything that is not one is refused with what differs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from focus_core import (
    AdapterError,
    ConfigError,
    FocusConfig,
    FocusEngine,
    FocusModel,
    UnsupportedModelError,
    split_authors_checkpoint,
)
from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.loading.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, load_adapter, save_adapter
from tests.tiny import byte_tokenizer

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PROMPT = list(range(3, 200)) * 3


@pytest.fixture
def base(model_folder: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)


@pytest.fixture
def adapter(model_folder: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(model_folder / "adapter", tmp_path / "adapter"))


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
    before = FocusModel(base, projections, trained_with=settings).generate(PROMPT, max_new_tokens=3, return_logits=True)
    after = FocusModel(base, loaded, trained_with=trained_with).generate(PROMPT, max_new_tokens=3, return_logits=True)
    assert before.logits is not None
    assert torch.equal(before.logits, after.logits)  # type: ignore[arg-type]


def test_fresh_low_rank_equals_full_copies(base: PreTrainedModel) -> None:
    """Both kinds begin as the model's own maps (biases included)."""
    config = FocusConfig(chunk_size=64, local_window=64, plain_up_to=0)
    logits = [
        FocusModel(base, CandidateProjections(decoder_parts(base), rank=rank), config=config)
        .generate(PROMPT, max_new_tokens=2, return_logits=True)
        .logits
        for rank in (None, 3)
    ]
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
        (_spoil_sample("embedding", "a b c d"), "weights of embedding: adapter a b c d…"),
        (_spoil_sample("layer 0", ""), "weights of layer 0: adapter …"),
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


def test_adapter_of_another_shape_and_of_other_weights_is_refused(adapter: Path, base: PreTrainedModel) -> None:
    with torch.no_grad():
        base.get_decoder().layers[1].self_attn.o_proj.weight.mul_(1.5)
    with pytest.raises(AdapterError, match="weights of layer 1"):
        load_adapter(adapter, base)
    base.config.hidden_size += 1
    with pytest.raises(AdapterError, match="hidden_size: adapter 32, model 33"):
        load_adapter(adapter, base)


@pytest.mark.parametrize("name", ["self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.down_proj"])
def test_one_other_matrix_is_another_base(adapter: Path, base: PreTrainedModel, name: str) -> None:
    """Of the same size, as those of any model that was trained alike."""
    with torch.no_grad():
        base.get_decoder().layers[1].get_submodule(name).weight.neg_()
    with pytest.raises(AdapterError, match="weights of layer 1"):
        load_adapter(adapter, base)


def test_another_embedding_is_another_base(adapter: Path, base: PreTrainedModel) -> None:
    with torch.no_grad():
        base.get_input_embeddings().weight.mul_(1.1)
    with pytest.raises(AdapterError, match="weights of embedding"):
        load_adapter(adapter, base)


def test_the_same_base_in_half_precision_is_the_same_base(adapter: Path, base: PreTrainedModel) -> None:
    load_adapter(adapter, base.to(torch.bfloat16))


def test_a_peft_adapter_is_named_as_such(tmp_path: Path, base: PreTrainedModel) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(AdapterError, match="PEFT"):
        load_adapter(tmp_path, base)


def test_missing_adapter_and_missing_model_are_refused(tmp_path: Path, base: PreTrainedModel) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        load_adapter(tmp_path / "nowhere", base)
    with pytest.raises(UnsupportedModelError, match=r"config\.json"):
        FocusModel.from_pretrained(tmp_path)
    with pytest.raises(UnsupportedModelError, match=r"There is no folder .*nowhere"):
        FocusModel.from_pretrained(tmp_path / "nowhere")
    with pytest.raises(UnsupportedModelError, match="No causal language model"):
        FocusModel.from_pretrained("nobody/has-this-model")


def test_what_transformers_cannot_load_is_named(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="FlashAttention2"):
        FocusModel.from_pretrained(model_folder, device="cpu", attn_implementation="flash_attention_2")
    folder = Path(shutil.copytree(model_folder, tmp_path / "other"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "hidden_size": settings["hidden_size"] * 2}))
    with pytest.raises(UnsupportedModelError, match="No causal language model could be loaded"):
        FocusModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", ["gqa_partial_chunk", "mha_prompt_truncated_to_512"])
def test_authors_checkpoint_splits_into_base_and_adapter(tmp_path: Path, name: str) -> None:
    golden = load_file(GOLDEN / name / "golden.safetensors")
    split_authors_checkpoint(GOLDEN / name, base=tmp_path / "base", adapter=tmp_path / "adapter")
    assert "beacon_param" not in json.loads((tmp_path / "base" / "config.json").read_text())
    model = FocusModel.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    steps = len(golden["logits"]) - 1
    logits = model.generate(golden["input_ids"], max_new_tokens=steps, return_logits=True).logits
    torch.testing.assert_close(logits, golden["logits"], atol=2e-5, rtol=0)


def test_a_split_checkpoint_keeps_its_dtype_and_tokenizer(tmp_path: Path) -> None:
    source = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, "dtype": "bfloat16"}))
    byte_tokenizer().save_pretrained(source)
    split_authors_checkpoint(source, base=tmp_path / "base", adapter=tmp_path / "adapter")
    tensors = load_file(tmp_path / "base" / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    engine = FocusEngine.from_pretrained(tmp_path / "base", adapter=tmp_path / "adapter", device="cpu")
    assert engine.tokenize("abc") == byte_tokenizer()("abc", add_special_tokens=False)["input_ids"]


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


def test_a_model_over_several_devices_is_refused_by_name(model_folder: Path) -> None:
    with pytest.raises(ConfigError, match="device_map='auto': the model must be on one device"):
        FocusModel.from_pretrained(model_folder, device_map="auto")


@pytest.mark.parametrize("as_zip", [True, False])  # torch wrote no zip files before 1.6
def test_authors_checkpoint_in_bin_shards(tmp_path: Path, as_zip: bool) -> None:
    """As the authors' trainer may have written it; the file names are those of transformers."""
    source = GOLDEN / "gqa_partial_chunk"
    tensors = load_file(source / "model.safetensors")
    names = sorted(tensors)
    halves = {"pytorch_model-00001-of-00002.bin": names[::2], "pytorch_model-00002-of-00002.bin": names[1::2]}
    for file, part in halves.items():
        part_of_model = {key: tensors[key] for key in part}
        torch.save(part_of_model, tmp_path / file, _use_new_zipfile_serialization=as_zip)
    index = {"metadata": {}, "weight_map": {key: file for file, part in halves.items() for key in part}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    shutil.copy(source / "config.json", tmp_path)
    golden = load_file(source / "golden.safetensors")
    logits = (
        FocusModel.from_pretrained(tmp_path, device="cpu")
        .generate(golden["input_ids"], max_new_tokens=1, return_logits=True)
        .logits
    )
    torch.testing.assert_close(logits, golden["logits"][:2], atol=2e-5, rtol=0)


_BEACON_Q = "model.layers.0.self_attn.beacon_q_proj"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({f"{_BEACON_Q}.weight": None}, rf"of {_BEACON_Q} there is \[\], and the model has \['weight'\]"),
        ({f"{_BEACON_Q}.bias": torch.zeros(64)}, r"there is \['bias', 'weight'\], and the model has \['weight'\]"),
        ({f"{_BEACON_Q}.bias": torch.zeros(64), f"{_BEACON_Q}.weight": None}, r"there is \['bias'\]"),
        ({f"{_BEACON_Q}.weight": torch.zeros(1, 64)}, rf"{_BEACON_Q} has the shape \[1, 64\], and the model needs"),
    ],
)
def test_authors_checkpoints_that_do_not_fit_are_refused(
    tmp_path: Path, changes: dict[str, torch.Tensor | None], message: str
) -> None:
    """A tensor that is not there would be the base model's, and one row would stand for all."""
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, folder / "model.safetensors")
    with pytest.raises(AdapterError, match=message):
        FocusModel.from_pretrained(folder, device="cpu")


def test_a_tensor_too_much_of_what_was_not_trained_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "beacon_param": ["k", "v"]}))
    tensors = load_file(folder / "model.safetensors") | {f"{_BEACON_Q}.bias": torch.zeros(64)}
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(AdapterError, match=rf"of {_BEACON_Q} there is \['bias', 'weight'\]"):
        FocusModel.from_pretrained(folder, device="cpu")


def test_a_truncated_checkpoint_of_the_authors_is_named(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(GOLDEN / "gqa_partial_chunk", tmp_path / "source"))
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AdapterError, match=r"model\.safetensors is damaged or cut short"):
        split_authors_checkpoint(folder, base=tmp_path / "b", adapter=tmp_path / "a")


def test_loading_leaves_transformers_as_talkative_as_it_was(model_folder: Path) -> None:
    before, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    try:
        logging.set_verbosity_info()
        logging.enable_progress_bar()
        FocusModel.from_pretrained(model_folder, device="cpu")
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(before)
        (logging.enable_progress_bar if bar else logging.disable_progress_bar)()


def test_a_model_without_all_of_its_tensors_is_refused(model_folder: Path, tmp_path: Path) -> None:
    """transformers would make random numbers of them, with a warning."""
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("model.layers.1.self_attn.q_proj.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UnsupportedModelError, match=r"lacks 1 of .* \(model.layers.1.self_attn.q_proj.weight\)"):
        FocusModel.from_pretrained(folder, device="cpu")


@pytest.mark.parametrize("name", ["x" * 300, "no\0path"])
def test_what_is_no_path_is_no_model_and_no_adapter(name: str, model_folder: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="No causal language model"):
        FocusModel.from_pretrained(name, device="cpu")
    with pytest.raises(AdapterError, match="there is no such folder"):
        FocusModel.from_pretrained(model_folder, adapter=name, device="cpu")


def test_folder_without_beacon_tensors_cannot_be_split(model_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="beacon"):
        split_authors_checkpoint(model_folder, base=tmp_path / "b", adapter=tmp_path / "a")
