"""A model with what was trained for it: the base model, and candidate projections from an adapter or the authors."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from focus_core.attention.candidates import CandidateProjections
from focus_core.attention.modules import decoder_parts
from focus_core.config import FocusConfig
from focus_core.device import LOAD_LESS, choose_device, choose_dtype, naming_lack_of_memory
from focus_core.errors import ConfigError
from focus_core.loading.adapters import load_adapter
from focus_core.loading.authors import authors_folder, authors_projections
from focus_core.loading.base import load_base

_HUB_ACCESS = ("cache_dir", "token", "local_files_only")  # given for the model, and valid for its adapter too


@dataclass(frozen=True)
class LoadedModel:
    """A model that was loaded from a folder or hub id.

    Attributes:
        model_id: the name it was loaded by, with the `gguf_file` behind it
        projections: `None` if there are no trained ones
        trained_with: chunk and window settings that came with the projections
        adapter_id: the name of the adapter, or of the authors' checkpoint
    """

    model: PreTrainedModel
    model_id: str
    projections: CandidateProjections | None = None
    trained_with: FocusConfig | None = None
    adapter_id: str | None = None


def load_model(
    model: str | Path,
    *,
    adapter: str | Path | None = None,
    device: str = "auto",
    dtype: str = "auto",
    progress: bool = True,
    **arguments: Any,
) -> LoadedModel:
    """A model folder, hub id or GGUF file, with an adapter or as an authors' checkpoint (known by `beacon_*` tensors).

    Args:
        progress: show a bar on a terminal, if loading takes more than two seconds
        arguments: passed on to `AutoModelForCausalLM.from_pretrained` (`revision`, `attn_implementation`, `gguf_file`,
            `quantization_config`, …)

    Raises:
        UnsupportedModelError: there is no causal language model under this name, or one that cannot have candidates
        AdapterError: the adapter is missing, damaged, or belongs to another model
        ConfigError: an unknown device or dtype, or a `device_map`
        OutOfMemoryError: the device does not hold the weights
    """
    if arguments.get("device_map") is not None:
        raise ConfigError(
            f"device_map={arguments['device_map']!r}: the model must be on one device. The keys and values of chunks "
            "lie beside its weights, and a pass over them that changes devices in every layer has not been written. "
            "Leave it out, and choose with device='cuda:0' or the like; if it is too large, take a quantised one."
        )
    target = choose_device(device)
    with naming_lack_of_memory(LOAD_LESS):
        base = load_base(str(model), choose_dtype(dtype, target), arguments, device=target, progress=progress)
        decoder_parts(base)  # refuses an unsupported model before the device is touched
        if base.device != target:  # quantised weights are there already
            base = base.to(target)
    access = {key: arguments[key] for key in _HUB_ACCESS if key in arguments}
    file = arguments.get("gguf_file")
    model_id = f"{model}/{file}" if file else str(model)  # of several files in one place each is another model
    if adapter is not None:
        projections, trained_with = load_adapter(adapter, base, **access)
        return LoadedModel(base, model_id, projections, trained_with, str(adapter))
    authors = authors_folder(str(model), base, revision=arguments.get("revision"), **access)
    if authors is not None:
        projections, trained_with = authors_projections(authors, base)
        return LoadedModel(base, str(model), projections, trained_with, str(model))
    return LoadedModel(base, model_id)
