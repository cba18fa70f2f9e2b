"""Adapters: candidate projections saved as safetensors, with a JSON file that says what they belong to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.config import FocusConfig
from focus_core.device import LOAD_LESS, naming_lack_of_memory
from focus_core.disk import replace_file
from focus_core.errors import AdapterError, ConfigError, warn
from focus_core.loading.fingerprint import are_related, is_sample, other_shapes, other_weights, weights_fingerprint
from focus_core.loading.hub import download, is_folder, upload
from focus_core.parsing import parse_json

ADAPTER_CONFIG = "focusllm_adapter.json"
ADAPTER_WEIGHTS = "focusllm_adapter.safetensors"
ADAPTER_CARD = "README.md"
FORMAT_VERSION = 2
_FORMAT = "focusllm-adapter"
_KEYS = frozenset(("format", "format_version", "base_model", "fingerprint", "rank", "projections", "config"))


def save_adapter(
    folder: str | Path,
    projections: CandidateProjections,
    model: PreTrainedModel,
    *,
    trained_with: FocusConfig,
    base_id: str,
    dtype: torch.dtype | None = None,
) -> None:
    """Write candidate projections as safetensors, with a JSON file next to them; replaces an adapter already there.

    Args:
        trained_with: chunk and window settings, the defaults of every engine that loads the adapter
        base_id: hub id or name of the base model, for people; `model`'s fingerprint is what is checked
        dtype: store in this dtype instead of the projections' own

    Raises:
        UnsupportedModelError: `model` cannot have candidate projections
        OSError: the folder cannot be written to
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    parts = decoder_parts(model)
    description = {
        "format": _FORMAT,
        "format_version": FORMAT_VERSION,
        "base_model": base_id,
        "fingerprint": weights_fingerprint(model, parts),
        "rank": projections.rank,
        "projections": list(parts.projections),
        "config": trained_with.as_dict(),
    }
    tensors = {
        name: tensor.detach().cpu().to(dtype or tensor.dtype).contiguous()
        for name, tensor in projections.state_dict().items()
    }
    replace_file(folder / ADAPTER_WEIGHTS, lambda path: save_file(tensors, path))
    replace_file(folder / ADAPTER_CONFIG, lambda path: path.write_text(json.dumps(description, indent=2) + "\n"))


def load_adapter(
    adapter: str | Path, model: PreTrainedModel, **hub_arguments: Any
) -> tuple[CandidateProjections, FocusConfig]:
    """Candidate projections for `model`, and the settings they were trained with.

    Args:
        adapter: a folder or hub id
        hub_arguments: passed on to the download from the hub (`token`, `cache_dir`, …)

    Raises:
        AdapterError: names what is missing, damaged or different. A model that was made from the adapter's own, by
            training or quantising it, is a warning
        OutOfMemoryError: the device does not hold the projections in addition to the model
    """
    folder = _adapter_folder(str(adapter), hub_arguments)
    description = _read_description(folder)
    parts = decoder_parts(model)
    _check_base(description, weights_fingerprint(model, parts), folder)
    if description["projections"] != list(parts.projections):
        raise AdapterError(
            f"The adapter in {folder} projects {description['projections']}, this model has {list(parts.projections)}."
        )
    trained_with = _settings_in(description, folder)
    try:
        projections = fresh_projections(model, rank=description["rank"])
    except ConfigError as error:
        raise AdapterError(f"{folder / ADAPTER_CONFIG}: {error}") from error
    _fill(projections, _read_weights(folder), folder)
    return projections, trained_with


def push_adapter(folder: str | Path, name: str, *, private: bool = False) -> str:
    """Put an adapter on the Hugging Face hub, with its model card; returns the address.

    Args:
        folder: with the adapter; other files in it stay here
        name: hub id, "user/name"; made if there is none
        private: of a repository that is made

    Raises:
        AdapterError: no adapter, a damaged one, a name that is no hub id, or the hub refuses
    """
    folder = Path(folder)
    if not is_folder(folder):
        raise AdapterError(f"No adapter at {str(folder)!r}: there is no such folder.")
    _settings_in(_read_description(folder), folder)
    _require_finite(_read_weights(folder), folder)
    if name.count("/") != 1 or not all(name.split("/")):
        raise AdapterError(f"{name!r} is no hub id: write user/name.")
    return upload(folder, name, [ADAPTER_CONFIG, ADAPTER_WEIGHTS, ADAPTER_CARD], private=private)


def adapter_settings(folder: Path) -> FocusConfig:
    """The settings that the adapter in `folder` was trained with, without its weights.

    Raises:
        AdapterError: no adapter, or a damaged one
    """
    return _settings_in(_read_description(folder), folder)


def fresh_projections(model: PreTrainedModel, *, rank: int | None = None) -> CandidateProjections:
    """Untrained candidate projections for `model`, on its device.

    Raises:
        OutOfMemoryError: the device does not hold them in addition to the model
        UnsupportedModelError: `model` cannot have candidate projections
        ConfigError: an impossible rank
    """
    with naming_lack_of_memory(LOAD_LESS):
        return CandidateProjections(decoder_parts(model), rank=rank, dtype=model.dtype)


def _settings_in(description: Mapping[str, Any], folder: Path) -> FocusConfig:
    path, known = folder / ADAPTER_CONFIG, {field.name for field in fields(FocusConfig)}
    unknown = sorted(set(description["config"]) - known)
    if unknown:
        raise AdapterError(f"{path}: unknown settings {unknown}; a newer version wrote it. Upgrade.")
    try:
        return FocusConfig(**description["config"])
    except ConfigError as error:
        raise AdapterError(f"{path}: {error}") from error


def _check_base(description: Mapping[str, Any], ours: Mapping[str, Any], folder: Path) -> None:
    theirs, belongs = description["fingerprint"], f"The adapter in {folder} belongs to {description['base_model']!r}"
    shapes, changed = other_shapes(theirs, ours), other_weights(theirs, ours)
    if shapes:
        raise AdapterError(
            f"{belongs}, a model of another shape ({'; '.join(shapes)}). Load it with its own base model."
        )
    if changed and not are_related(theirs, ours):
        raise AdapterError(
            f"{belongs}, a model of the same shape whose weights have nothing to do with this one's. Load it with its "
            "own base model."
        )
    if changed:
        warn(
            f"{belongs}. This model was made from the same weights, and {len(changed)} of its {len(ours['weights'])} "
            "parts differ: it was trained further, or quantised otherwise. Measure with `focusllm eval` whether the "
            "adapter still fits."
        )


def _adapter_folder(name: str, hub_arguments: Mapping[str, Any]) -> Path:
    if is_folder(name):
        return Path(name)
    if Path(name).is_absolute() or name.startswith(".") or name.count("/") != 1:  # not the form of a hub id
        raise AdapterError(f"No adapter at {name!r}: there is no such folder.")
    trouble = f"No adapter at {name!r}: there is no such folder"
    return download(name, [ADAPTER_CONFIG, ADAPTER_WEIGHTS], trouble, hub_arguments)


def _read_description(folder: Path) -> dict[str, Any]:
    path = folder / ADAPTER_CONFIG
    if not path.is_file():
        hint = (
            " It holds a PEFT adapter, which is something else." if (folder / "adapter_config.json").is_file() else ""
        )
        raise AdapterError(f"{folder} is not an adapter of FocusLLM: it has no {ADAPTER_CONFIG}.{hint}")
    try:
        description = parse_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise AdapterError(f"{path} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise AdapterError(f"{path} is damaged: {error}. Save or download the adapter again.") from error
    if not isinstance(description, dict):
        raise AdapterError(f"{path} is no JSON object: not an adapter of FocusLLM.")
    if _KEYS - set(description):
        raise AdapterError(f"{path} lacks {sorted(_KEYS - set(description))}: not an adapter of FocusLLM.")
    if description["format"] != _FORMAT:
        raise AdapterError(
            f"{path} has the format {description['format']!r}, not {_FORMAT!r}: not an adapter of FocusLLM."
        )
    if description["format_version"] != FORMAT_VERSION:
        raise AdapterError(
            f"{path} has format version {description['format_version']}, this release reads {FORMAT_VERSION}. "
            "Upgrade focusllm, or save the adapter again with it."
        )
    _check_types(description, path)
    return description


def _check_types(description: Mapping[str, Any], path: Path) -> None:
    """Check the JSON's types once; later code relies on them."""
    fingerprint, rank = description["fingerprint"], description["rank"]
    whole = isinstance(fingerprint, dict) and all(isinstance(fingerprint.get(n), dict) for n in ("shape", "weights"))
    checks = {
        "fingerprint": whole and all(map(is_sample, fingerprint["weights"].values())),
        "rank": rank is None or (isinstance(rank, int) and not isinstance(rank, bool)),
        "config": isinstance(description["config"], dict),
        "projections": isinstance(description["projections"], list),
    }
    wrong = [name for name, fine in checks.items() if not fine]
    if wrong:
        raise AdapterError(
            f"{path} is damaged: {wrong[0]}={str(description[wrong[0]])[:60]}. Save or download the adapter again."
        )


def _read_weights(folder: Path) -> dict[str, Tensor]:
    path = folder / ADAPTER_WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise AdapterError(f"{folder} has no {ADAPTER_WEIGHTS}. Save or download the adapter again.") from error
    except (SafetensorError, OSError) as error:
        raise AdapterError(f"{path} is damaged or cut short: {error}. Save or download the adapter again.") from error


def _fill(projections: CandidateProjections, tensors: Mapping[str, Tensor], folder: Path) -> None:
    own = projections.state_dict()
    missing, unknown = sorted(set(own) - set(tensors)), sorted(set(tensors) - set(own))
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(own[name].shape)}"
        for name in own.keys() & tensors.keys()
        if tensors[name].shape != own[name].shape
    ]
    if missing or unknown or wrong:
        raise AdapterError(
            f"The adapter in {folder} does not fit: missing {missing[:3]}, unknown {unknown[:3]}, "
            f"wrong shape {wrong[:3]} (of {len(missing)}, {len(unknown)}, {len(wrong)})."
        )
    _require_finite(tensors, folder)
    projections.load_state_dict(dict(tensors))


def _require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    spoiled = next((n for n, t in tensors.items() if not (t.is_floating_point() and t.isfinite().all())), None)
    if spoiled is not None:
        raise AdapterError(
            f"The adapter in {folder}: {spoiled} holds something else than finite floating point numbers."
        )
