"""Quantised models: packages that are missing, and maps whose weights are not floating point."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from focus_core import AdapterError, FocusConfig, FocusEngine, OutOfMemoryError, UnsupportedModelError, device
from focus_core.errors import FocusWarning
from focus_core.loading import base as base_module
from focus_core.loading import quantized
from focus_core.loading.adapters import fresh_projections, load_adapter
from focus_core.loading.base import weights_bytes
from focus_core.loading.models import load_model
from focus_core.loading.quantized import quantized_bytes
from tests.tiny import byte_tokenizer

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
COMPRESSED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
TORCHAO = {"quant_method": "torchao", "quant_type": {"default": {"_type": "Int8WeightOnlyConfig", "_data": {}}}}


@pytest.mark.parametrize(
    ("settings", "command"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "pip install bitsandbytes"),
        ({"load_in_8bit": True}, "pip install bitsandbytes"),
        (GPTQ, "pip install gptqmodel optimum"),
        (AWQ, "pip install gptqmodel"),
        (TORCHAO, "pip install torchao"),
        (COMPRESSED, "pip install compressed-tensors"),
    ],
    ids=["4 bit", "8 bit", "gptq", "awq", "torchao", "compressed"],
)
def test_a_missing_package_is_named_with_its_command(
    settings: dict[str, Any], command: str, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantized, "find_spec", lambda module: None)
    folder = Path(shutil.copytree(model_folder, tmp_path / "model"))
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with pytest.raises(UnsupportedModelError, match=rf"are quantised with .*{command}$"):
        load_model(folder, device="cpu")
    with pytest.raises(UnsupportedModelError, match=rf"{command}$"):
        load_model(model_folder, device="cpu", quantization_config=settings)


def test_quantised_weights_are_loaded_onto_their_device(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of bitsandbytes cannot be moved once they are loaded."""
    given: dict[str, Any] = {}
    load = AutoModelForCausalLM.from_pretrained

    def loaded(name: str, *, quantization_config: Any, device_map: Any, **arguments: Any) -> Any:
        given.update(device_map=device_map, quantization_config=quantization_config)
        return load(name, **arguments)

    monkeypatch.setattr(quantized, "find_spec", lambda module: True)
    monkeypatch.setattr(base_module.AutoModelForCausalLM, "from_pretrained", loaded)
    load_model(model_folder, device="cpu", quantization_config=TORCHAO)
    assert given == {"device_map": {"": torch.device("cpu")}, "quantization_config": TORCHAO}


@pytest.fixture
def saved_quantised(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose config says that its weights are quantised. Every model is loaded as an ordinary one."""
    load = AutoModelForCausalLM.from_pretrained

    def loaded(name: str, *, device_map: Any = None, quantization_config: Any = None, **arguments: Any) -> Any:
        return load(name, config=AutoConfig.from_pretrained(model_folder), **arguments)

    monkeypatch.setattr(quantized, "find_spec", lambda module: True)
    monkeypatch.setattr(base_module.AutoModelForCausalLM, "from_pretrained", loaded)
    folder = Path(shutil.copytree(model_folder, tmp_path / "saved"))
    settings = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**settings, "quantization_config": GPTQ}))
    return folder


def test_quantised_weights_that_do_not_fit_are_refused_by_the_size_of_their_files(
    saved_quantised: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = (saved_quantised / "model.safetensors").stat().st_size
    monkeypatch.setattr(device, "free_memory", lambda place: held - 1)
    with pytest.raises(OutOfMemoryError, match=r"The weights of .*saved take"):
        load_model(saved_quantised, device="cpu")
    monkeypatch.setattr(device, "free_memory", lambda place: held)
    load_model(saved_quantised, device="cpu")


def test_what_ordinary_weights_take_once_they_are_quantised_is_not_known(model_folder: Path) -> None:
    """Their files are several times larger than what they will take."""
    config = AutoConfig.from_pretrained(model_folder)
    assert quantized_bytes(str(model_folder), config, {"quantization_config": GPTQ}) is None


def test_the_files_of_a_model_in_parts_are_added_up(model_folder: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.quantization_config = GPTQ
    AutoModelForCausalLM.from_pretrained(model_folder).save_pretrained(tmp_path, max_shard_size="50KB")
    parts = list(tmp_path.glob("model-*.safetensors"))
    assert len(parts) > 1
    assert quantized_bytes(str(tmp_path), model.config, {}) == sum(path.stat().st_size for path in parts)
    parts[0].unlink()
    assert quantized_bytes(str(tmp_path), model.config, {}) is None


@pytest.mark.parametrize("index", ["no JSON", "[]", "{}", '{"weight_map": {"a": 1}}'])
def test_a_damaged_index_leaves_the_size_open(model_folder: Path, tmp_path: Path, index: str) -> None:
    config = AutoConfig.from_pretrained(model_folder)
    config.quantization_config = GPTQ
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    assert quantized_bytes(str(tmp_path), config, {}) is None


def test_the_log_says_what_loading_takes(
    model_folder: Path, saved_quantised: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where there is no terminal, and whatever the time; unasked it says nothing."""
    load_model(model_folder, device="cpu", progress=False)
    assert caplog.messages == []
    with caplog.at_level("INFO", logger="focus_core"):
        load_model(model_folder, device="cpu", progress=False)
        load_model(saved_quantised, device="cpu", progress=False)
        load_model(model_folder, device="cpu", progress=False, quantization_config=GPTQ)
    assert caplog.messages == [
        "loading model: 0.00 GiB in float32",
        "loading saved: 0.00 GiB quantised with gptq",
        "loading model, quantised with gptq",
    ]


class Int8Linear(nn.Module):
    """Rows of int8 with a scale each, as many kinds of quantisation have them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = nn.Parameter(linear.weight.detach().abs().amax(1, keepdim=True) / 127, requires_grad=False)
        self.qweight = nn.Parameter((linear.weight.detach() / self.scale).round().to(torch.int8), requires_grad=False)
        self.bias = None if linear.bias is None else nn.Parameter(linear.bias.detach())

    @property
    def dequantised(self) -> Tensor:
        return self.qweight.float() * self.scale

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.linear(hidden, self.dequantised, self.bias)


def quantise(model: PreTrainedModel) -> PreTrainedModel:
    """The maps of every layer as `Int8Linear`."""
    for layer in model.get_decoder().layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    setattr(part, name, Int8Linear(child))
    return model


def test_projections_of_quantised_maps_start_as_their_dequantised_weights(base: PreTrainedModel) -> None:
    first = quantise(base).get_decoder().layers[0].self_attn.k_proj
    made = fresh_projections(base).layer(0)["k_proj"]
    assert isinstance(made, nn.Linear)
    assert torch.allclose(made.weight, first.dequantised, atol=1e-6)
    assert made.weight.requires_grad
    assert fresh_projections(base, rank=2).rank == 2


def test_the_bias_of_a_quantised_map_is_not_part_of_its_weights(base: PreTrainedModel) -> None:
    map_ = base.get_decoder().layers[0].self_attn.q_proj
    map_.bias = nn.Parameter(torch.arange(map_.out_features).float())
    quantise(base)
    made = fresh_projections(base).layer(0)["q_proj"]
    assert torch.allclose(made.weight, base.get_decoder().layers[0].self_attn.q_proj.dequantised, atol=1e-5)
    assert torch.equal(made.bias, torch.arange(map_.out_features).float())


def test_a_quantised_model_gets_its_base_models_adapter(adapter: Path, base: PreTrainedModel) -> None:
    """Its embedding is compared. Its maps are not, and their scales are no weights."""
    with pytest.warns(FocusWarning, match="3 of its 4 parts differ: it was trained further, or quantised otherwise"):
        load_adapter(adapter, quantise(base))


def test_a_quantised_model_with_another_embedding_does_not(adapter: Path, base: PreTrainedModel) -> None:
    torch.manual_seed(7)
    with torch.no_grad():
        base.get_input_embeddings().weight.normal_()
    with pytest.raises(AdapterError, match="have nothing to do with this one's"):
        load_adapter(adapter, quantise(base))


@pytest.mark.parametrize("method", ["plain", "focus"])
def test_a_quantised_model_answers_as_the_same_model_dequantised(model_folder: Path, method: str) -> None:
    """Chunks are read and candidates decoded by a second shell around the same maps."""

    def answer(dequantised: bool) -> str:
        model = quantise(AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32))
        for module in list(model.modules()) if dequantised else ():
            for name, child in list(module.named_children()):
                if isinstance(child, Int8Linear):
                    made = nn.Linear(child.in_features, child.out_features, bias=False)
                    made.weight.data.copy_(child.dequantised)
                    setattr(module, name, made)
        engine = FocusEngine.from_model(
            model, byte_tokenizer(), config=FocusConfig(chunk_size=64, plain_up_to=0), method=method, progress=False
        )
        return engine.generate("Which?", ["alpha beta " * 20], max_new_tokens=8).text

    assert answer(dequantised=False) == answer(dequantised=True)


@pytest.mark.parametrize("method", ["plain", "focus"])
def test_a_model_of_torchao_answers_as_the_same_model_dequantised(model_folder: Path, method: str) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed; it slows every start of transformers down")
    from torchao.quantization import Int8WeightOnlyConfig
    from transformers import TorchAoConfig

    settings: dict[str, Any] = {"method": method, "progress": False}
    chosen = TorchAoConfig(Int8WeightOnlyConfig())
    engine = FocusEngine.from_pretrained(
        model_folder, device="cpu", quantization_config=chosen, chunk_size=64, plain_up_to=0, **settings
    )
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    for name, parameter in engine.focus.model.named_parameters():
        if type(parameter.data) is not Tensor:
            model.get_parameter(name).data.copy_(parameter.dequantize())
    config = FocusConfig(chunk_size=64, plain_up_to=0)
    wanted = FocusEngine.from_model(model, byte_tokenizer(), config=config, **settings)
    question, documents = "Which one is it?", ["alpha beta " * 20]
    answer = engine.generate(question, documents, max_new_tokens=8)
    assert answer.method == method
    assert answer.text == wanted.generate(question, documents, max_new_tokens=8).text


def test_what_weights_take_is_known_from_the_config(model_folder: Path) -> None:
    model = load_model(model_folder, device="cpu").model
    held = sum(parameter.nbytes for parameter in model.parameters())
    assert weights_bytes(model.config, torch.float32) == held
    assert weights_bytes(model.config, torch.bfloat16) == held // 2
    assert weights_bytes(None, torch.float32) is None
