"""Models whose weights are saved in fewer bits: the packages that their kind needs."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from transformers import PreTrainedConfig

from focus_core.errors import UnsupportedModelError

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
