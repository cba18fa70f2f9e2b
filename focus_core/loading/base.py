"""The base model from a folder or the hub, by way of transformers, with our errors and without its reports."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from focus_core.errors import UnsupportedModelError, first_line
from focus_core.loading.hub import is_folder

_QUICK_TO_LOAD = 500 * 2**20  # bytes of weights, up to which a progress bar would only flash
_verbosity_lock = threading.RLock()  # transformers' verbosity is one setting for the whole process


def load_base(name: str, dtype: torch.dtype, arguments: Mapping[str, Any]) -> PreTrainedModel:
    """A causal language model in evaluation mode, on the CPU.

    Args:
        name: a folder or hub id
        arguments: passed on to `AutoModelForCausalLM.from_pretrained`

    Raises:
        UnsupportedModelError: no causal language model under this name, or one without all of its tensors
    """
    if is_folder(name) and not (Path(name) / arguments.get("subfolder", "") / "config.json").is_file():
        raise UnsupportedModelError(f"{name} is a folder without a config.json: not a model saved by transformers.")
    if Path(name).is_absolute() and not is_folder(name):  # an absolute path cannot be a hub id
        raise UnsupportedModelError(f"There is no folder {name}. Give a model's folder, or a hub id.")
    try:
        with quiet(name):
            model, report = AutoModelForCausalLM.from_pretrained(
                name, dtype=dtype, output_loading_info=True, **arguments
            )
    except (OSError, ValueError, ImportError, RuntimeError, HfHubHTTPError, SafetensorError) as error:
        reason = first_line(error)
        raise UnsupportedModelError(
            f"No causal language model could be loaded from {name!r}: {reason} "
            "Give a folder that `save_pretrained` wrote, or a hub id where there is a network."
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:  # transformers would fill them with random numbers
        raise UnsupportedModelError(
            f"{name} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}). Save or download it again."
        )
    return cast(PreTrainedModel, model.eval())


@contextmanager
def quiet(name: str | Path) -> Iterator[None]:
    """Silence transformers: no report on tensors that we load ourselves, no progress bar over a small model."""
    weights = [path.stat().st_size for path in Path(name).glob("*.safetensors")] if is_folder(name) else []
    with _verbosity_lock:
        verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        if weights and sum(weights) < _QUICK_TO_LOAD:
            logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()
