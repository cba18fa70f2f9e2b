"""What a model's config may ask for: checked before anything is built from it, and code of its own is never run."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from focus_core.errors import ConfigError, UnsupportedModelError, first_line, shown
from focus_core.loading.hub import is_folder

_CONFIG_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only", "subfolder")
_SIZES = (
    *("hidden_size", "intermediate_size", "vocab_size", "max_position_embeddings"),
    *("num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
)
_WHOLE = (*_SIZES, "sliding_window", "original_max_position_embeddings")  # null or 0 may mean "none" there
_LARGEST_SIZE = 10**9
# Modules that transformers makes one by one, or lists that it fills: the largest models known have 126 layers and 512
# experts.
_LARGEST_COUNTS = {re.compile(r"(^|_)layers?$"): 1_000, re.compile(r"experts$|^num_labels$"): 100_000}
_MOST_PER_BYTE = 8  # numbers in a byte of weights, if each has one bit
_SWITCHES = re.compile("implementation$")


def checked_arguments(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments for `from_pretrained`, with which no code of the model runs; its config is checked.

    Args:
        name: a folder or hub id

    Raises:
        ConfigError: `trust_remote_code` is on
        UnsupportedModelError: the config has a size that cannot be, or names code on the hub
    """
    if arguments.get("trust_remote_code"):
        raise ConfigError(
            "trust_remote_code: code that comes with a model is never run. Leave it out, and use a model whose type "
            "transformers has itself."
        )
    config, where = _config_of(name, arguments), f"The config of {name}"
    _check_config(config, where)
    if is_folder(name):
        _check_weights(config, Path(name) / arguments.get("subfolder", ""), where)
    return {**arguments, "trust_remote_code": False}


def why_not_loaded(error: Exception) -> str:
    """What transformers says of a model that it could not load, in one sentence without its full stop."""
    said = str(error)
    if "ignore_mismatched_sizes" in said:
        return "its tensors have other shapes than its config says"
    if isinstance(error, KeyError) and " " not in said:
        return f"its config names {said}, which transformers does not know"
    return first_line(error).rstrip(".")


def _config_of(name: str, arguments: Mapping[str, Any]) -> Any:
    try:
        if Path(name).is_file():
            return {}
        chosen = {key: arguments[key] for key in _CONFIG_ARGUMENTS if key in arguments}
        return PreTrainedConfig.get_config_dict(name, **chosen)[0]
    except Exception:  # loading says why
        return {}


def _check_config(config: Any, where: str) -> None:
    if not isinstance(config, dict):
        raise UnsupportedModelError(f"{where} is a {type(config).__name__}, not a JSON object. Download it again.")
    for key, value in _settings(config):
        for size in value if isinstance(value, list) else [value]:
            _check(key, size, where)


def _settings(config: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings of a config, and of those inside of it."""
    for key, value in config.items():
        if isinstance(value, dict) and (key.endswith("_config") or key.startswith("rope_")):
            yield from _settings(value)
        else:
            yield key, value


def _check(key: str, value: Any, where: str) -> None:
    said = f"{where} says {key}={shown(value)}"
    if key in _WHOLE and value is not None and type(value) is not int:
        raise UnsupportedModelError(f"{said}: it must be a whole number.")
    if key in _SIZES and value is not None and not 1 <= value <= _LARGEST_SIZE:
        raise UnsupportedModelError(f"{said}: it must lie between 1 and {_LARGEST_SIZE:,}.")
    for names, largest in _LARGEST_COUNTS.items():
        if names.search(key) and isinstance(value, int) and value > largest:
            raise UnsupportedModelError(f"{said}: no more than {largest:,} are built.")
    if key in ("dtype", "torch_dtype") and isinstance(value, str):
        named = getattr(torch, value.removeprefix("torch."), None)
        if not isinstance(named, torch.dtype):
            raise UnsupportedModelError(f"{said}: torch has no such dtype.")
    if _SWITCHES.search(key) and isinstance(value, str) and "/" in value:
        raise UnsupportedModelError(f"{said}: code on the hub, which no config may choose. Take it out.")


def _check_weights(config: Mapping[str, Any], folder: Path, where: str) -> None:
    """Refuse sizes that the files cannot fill: transformers would reserve the memory before it compares them."""
    text = config.get("text_config", config)
    sizes = [text.get(key) for key in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")]
    heads = [text.get("num_attention_heads"), text.get("head_dim") or 1]
    if not all(type(size) is int for size in (*sizes, *heads)):
        return
    vocabulary, hidden, layers, inner = sizes
    numbers = hidden * (vocabulary + layers * (inner + heads[0] * heads[1]))
    nbytes = sum(path.stat().st_size for end in ("safetensors", "bin") for path in folder.glob(f"*.{end}"))
    if nbytes and numbers > _MOST_PER_BYTE * nbytes:
        raise UnsupportedModelError(
            f"{where} asks for at least {numbers:,} numbers, and its files hold {nbytes:,} bytes: they do not belong "
            "together, or are cut short. Download it again."
        )
