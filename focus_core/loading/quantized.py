"""Models whose weights are saved in fewer bits: the packages that their kind needs, and the memory they take."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from focus_core.errors import UnsupportedModelError
from focus_core.loading.hub import local_folder
from focus_core.parsing import parse_json

# By `quant_method`: modules that must be importable, and the packages that bring them. For other kinds transformers
# says what is missing.
_PACKAGES: Mapping[str, Mapping[str, str]] = {
    "bitsandbytes": {"bitsandbytes": "bitsandbytes"},
    "gptq": {"gptqmodel": "gptqmodel", "optimum": "optimum"},
    "awq": {"gptqmodel": "gptqmodel"},
    "torchao": {"torchao": "torchao"},
    "compressed-tensors": {"compressed_tensors": "compressed-tensors"},
}


def quantization_of(config: PreTrainedConfig | None, arguments: Mapping[str, Any]) -> str | None:
    """The `quant_method` of a model: its argument's, or its config's; `None` for ordinary weights.

    Args:
        arguments: those of `load_model`
    """
    found = arguments.get("quantization_config") or getattr(config, "quantization_config", None)
    if found is None:
        return None
    method = found.get("quant_method") if isinstance(found, dict) else getattr(found, "quant_method", None)
    if method is None and isinstance(found, dict):  # as bitsandbytes saved it before it had a name for itself
        method = "bitsandbytes" if found.get("load_in_4bit") or found.get("load_in_8bit") else "unknown"
    name = str(getattr(method, "value", method))
    return "bitsandbytes" if name.startswith("bitsandbytes") else name


def quantized_bytes(name: str, config: PreTrainedConfig | None, arguments: Mapping[str, Any]) -> int | None:
    """Bytes of a quantised model's weight files, about what its weights take; `None` if that is not known before.

    That is so for ordinary weights that are quantised while they are loaded, and for files that have not been
    downloaded.

    Args:
        name: a folder or hub id
        arguments: those of `load_model`
    """
    if getattr(config, "quantization_config", None) is None or arguments.get("variant") is not None:
        return None
    place = (Path(arguments.get("subfolder", "")) / "config.json").as_posix()
    folder = local_folder(name, place, revision=arguments.get("revision"), cache_dir=arguments.get("cache_dir"))
    if folder is None:
        return None
    try:
        return sum(path.stat().st_size for path in _weight_files(folder))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # a file is missing or damaged: loading says why
        return None


def require_packages(name: str, method: str) -> None:
    """Refuse a quantised model whose packages are missing.

    Raises:
        UnsupportedModelError: with the packages and the command that installs them
    """
    missing = [package for module, package in _PACKAGES.get(method, {}).items() if find_spec(module) is None]
    if missing:
        raise UnsupportedModelError(
            f"The weights of {name} are quantised with {method}, which needs {' and '.join(missing)}: "
            f"pip install {' '.join(missing)}"
        )


def _weight_files(folder: Path) -> set[Path]:
    """Those that transformers reads, in its order: one file or several, safetensors or pickled."""
    pairs = ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME))
    for whole, index in pairs:
        if (folder / whole).is_file():
            return {folder / whole}
        if (folder / index).is_file():
            return {folder / part for part in parse_json((folder / index).read_text())["weight_map"].values()}
    raise FileNotFoundError(folder)
