"""Checkpoints of the paper's authors: base model and candidate projections (`beacon_*`) in the same files."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections, names_per_layer
from focus_core.attention.modules import decoder_parts
from focus_core.config import FocusConfig
from focus_core.device import choose_dtype
from focus_core.errors import AdapterError, ConfigError, UnsupportedModelError, first_line, shown
from focus_core.loading.adapters import fresh_projections, save_adapter
from focus_core.loading.base import load_base, quiet
from focus_core.loading.hub import download, is_folder
from focus_core.parsing import parse_json

# The authors' code gives shorter texts to the plain model, regardless of the checkpoint's config.
_AUTHORS_WINDOW = 4096
_AUTHORS_DYNAMIC_PROMPT = 512
_BEACON = "self_attn.beacon_"
_AUTHORS_SETTINGS = ("local_window", "memory_stride", "retrieval_method", "retrieval_topk", "query_related_condensing")
_AUTHORS_FILES = ["config.json", "model*.safetensors", "pytorch_model*.bin"]
_TOKENIZER_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt", "chat_template.jinja", "chat_template.json"),
)

_LoadBin = Callable[[Path], dict[str, Tensor]]


def is_authors_checkpoint(folder: str | Path) -> bool:
    """Whether a folder holds tensors named as in the authors' implementation.

    Raises:
        AdapterError: a file of weights that cannot be read
    """
    return is_folder(folder) and any(_BEACON in name for name in _tensor_files(Path(folder)))


def split_authors_checkpoint(folder: str | Path, *, base: str | Path, adapter: str | Path) -> None:
    """Save the authors' checkpoint as an ordinary model in `base` and an adapter in `adapter`.

    Raises:
        AdapterError: the folder holds no tensors of the authors' naming, or damaged ones
        UnsupportedModelError: the model in it cannot be loaded
    """
    if not is_authors_checkpoint(folder):
        raise AdapterError(f"{folder} is not a checkpoint of the authors: it has no tensors named beacon_*.")
    settings = _read_settings(Path(folder))
    dtype = settings.get("dtype") or settings.get("torch_dtype") or "float32"
    model = load_base(str(folder), choose_dtype(dtype, torch.device("cpu")), {})
    projections, trained_with = authors_projections(Path(folder), model)
    for name in [n for n in vars(model.config) if n.startswith("beacon_") or n in _AUTHORS_SETTINGS]:
        delattr(model.config, name)
    with quiet():
        model.save_pretrained(base)
    for path in Path(folder).iterdir():
        if path.name in _TOKENIZER_FILES:
            shutil.copy(path, Path(base) / path.name)
    save_adapter(adapter, projections, model, trained_with=trained_with, base_id=Path(base).name)


def authors_folder(name: str, base: PreTrainedModel, **hub_arguments: Any) -> Path | None:
    """The folder with the files of an authors' checkpoint; `None` if `name` is an ordinary model.

    A folder is known by its tensors, a hub id by the config of `base`, because nothing but the base model has been
    downloaded yet.

    Raises:
        AdapterError: a damaged file, or one that the hub does not give
    """
    if is_folder(name):
        return Path(name) if is_authors_checkpoint(name) else None
    if not hasattr(base.config, "beacon_param"):
        return None
    trouble = f"The config of {name} names candidate projections, but their files are not here"
    return download(name, _AUTHORS_FILES, trouble, hub_arguments)


def authors_projections(folder: Path, model: PreTrainedModel) -> tuple[CandidateProjections, FocusConfig]:
    """The candidate projections of an authors' checkpoint, and the settings of the authors' code.

    Raises:
        UnsupportedModelError: other modules than the attention's maps were trained
        AdapterError: a damaged config, or a tensor that is missing, unknown, or of another shape than the model's
        ConfigError: a size that cannot be
    """
    settings = _read_settings(folder)
    beacons = _beacons(settings)
    if "mlp" in beacons:
        raise UnsupportedModelError(f"{folder}: beacon_param has 'mlp'; only q, k, v and o are candidate projections.")
    parts = decoder_parts(model)
    projections = fresh_projections(model)
    trained = {f"{letter}_proj" for letter in beacons}
    files = _tensor_files(folder)
    load_bin = lru_cache(maxsize=1)(_load_bin)  # tensors of neighbouring layers are in the same file
    for index, names in enumerate(names_per_layer(parts)):
        for name in names:
            prefix = f"model.layers.{index}.{_BEACON}{name}"
            own = dict(projections.layer(index)[name].named_parameters())
            saved = {kind for kind in ("weight", "bias") if f"{prefix}.{kind}" in files}
            if (name in trained and saved != set(own)) or saved - set(own):
                raise AdapterError(f"{folder}: of {prefix} there is {sorted(saved)}, and the model has {sorted(own)}.")
            for kind in saved:  # an untrained map stays the copy of the base map, as in the authors' code
                _assign(own[kind], _read_tensor(files[f"{prefix}.{kind}"], f"{prefix}.{kind}", load_bin), prefix)
    return projections, authors_settings(settings, parts.window.size)


def authors_settings(settings: Mapping[str, Any], window: int) -> FocusConfig:
    """How the authors' code would read with a checkpoint.

    Args:
        settings: the checkpoint's `config.json`
        window: positions that the base model was trained for

    Raises:
        ConfigError: a size that cannot be
    """
    strides = settings.get("memory_stride", [1024])
    if strides in ([], None):
        raise ConfigError(f"memory_stride={strides}: the config of the authors' checkpoint names no chunk size.")
    return FocusConfig(
        chunk_size=strides[0] if isinstance(strides, list) else strides,
        local_window=settings.get("local_window", 1024),
        dynamic_prompt=_AUTHORS_DYNAMIC_PROMPT,
        bos_per_chunk=False,
        plain_up_to=_AUTHORS_WINDOW - 1,
        window=max(_AUTHORS_WINDOW, window),
    )


def _read_settings(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        settings = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} is damaged: {first_line(error)}. Save or download it again.") from error
    if not isinstance(settings, dict):
        raise AdapterError(f"{path} is no JSON object. Save or download it again.")
    return settings


def _beacons(settings: Mapping[str, Any]) -> list[str]:
    """Letters of the maps that were trained."""
    beacons = settings.get("beacon_param", [])
    if not isinstance(beacons, list) or not all(isinstance(letter, str) for letter in beacons):
        raise AdapterError(f"beacon_param={shown(beacons)}: the authors' config lists the maps that were trained.")
    return beacons


def _assign(own: nn.Parameter, tensor: Tensor, name: str) -> None:
    if own.shape != tensor.shape:
        raise AdapterError(f"{name} has the shape {list(tensor.shape)}, and the model needs {list(own.shape)}.")
    with torch.no_grad():
        own.copy_(tensor)


def _tensor_files(folder: Path) -> dict[str, Path]:
    """Which file holds which tensor, for safetensors and `.bin` shards."""
    found: dict[str, Path] = {}
    for path in sorted(folder.glob("model*.safetensors")):
        try:
            with safe_open(path, framework="pt") as tensors:
                found |= dict.fromkeys(tensors.keys(), path)
        except (SafetensorError, OSError) as error:
            raise AdapterError(f"{path} is damaged or cut short: {error}. Save or download it again.") from error
    if not found:
        for path in sorted(folder.glob("pytorch_model*.bin")):
            found |= dict.fromkeys(_load_bin(path), path)
    return found


def _read_tensor(path: Path, name: str, load_bin: _LoadBin) -> Tensor:
    if path.suffix == ".bin":
        return load_bin(path)[name]
    with safe_open(path, framework="pt") as tensors:
        return cast(Tensor, tensors.get_tensor(name))


def _load_bin(path: Path) -> dict[str, Tensor]:
    try:
        mapped = zipfile.is_zipfile(path)  # torch wrote another format before 1.6, which cannot be mapped
        return cast(dict[str, Tensor], torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except Exception as error:  # `torch.load` raises many exception types on corrupt files
        raise AdapterError(
            f"{path} is damaged or cut short: {first_line(error)}. Save or download it again."
        ) from error
