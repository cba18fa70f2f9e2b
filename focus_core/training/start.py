"""What a run starts from: a device, a folder to write to, a base model and projections, settings that fit them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

import torch
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers  # type: ignore[import-untyped]
from transformers import PreTrainedModel

from focus_core.attention.modules import decoder_parts
from focus_core.config import FocusConfig
from focus_core.device import choose_device
from focus_core.errors import ConfigError
from focus_core.loading.adapters import fresh_projections, load_adapter
from focus_core.loading.models import LoadedModel, load_model
from focus_core.loading.named import named_model
from focus_core.methods.focus import FocusModel
from focus_core.methods.limits import check_sizes
from focus_core.training.config import RANK, TrainingConfig


def chosen_device(config: TrainingConfig) -> torch.device:
    """The device that is asked for.

    Raises:
        ConfigError: it is not there, or is a GPU that accelerate would not take
    """
    device = choose_device(config.device)
    # accelerate takes the first one, or in several processes one for each
    if device.index and config.device not in ("auto", "cuda"):
        raise ConfigError(
            f"device={config.device!r}: training takes the GPUs in their order. Set device='cuda' and the variable "
            f"CUDA_VISIBLE_DEVICES={device.index}."
        )
    return device


def checked_trackers(names: Sequence[str]) -> list[str]:
    """`names`, if accelerate can write to them; it would leave out in silence those whose package is missing.

    Raises:
        ConfigError: an unknown one, or one that is not installed
    """
    there = {str(getattr(name, "value", name)) for name in get_available_trackers()}
    for name in names:
        if name not in LOGGER_TYPE_TO_CLASS:
            raise ConfigError(f"trackers: unknown {name!r}. Known: {', '.join(sorted(LOGGER_TYPE_TO_CLASS))}.")
        if name not in there:
            raise ConfigError(f"trackers: {name!r} is not installed: pip install {name}.")
    return list(names)


def make_folder(output: Path) -> None:
    """Make a folder that can be written to.

    Raises:
        ConfigError: that is not possible
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=output):  # a folder that is there already may not be written to
            pass
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"output={str(output)[:200]!r} cannot be a folder to write to: {reason}.") from error


def boundaries_of(config: TrainingConfig, focus: FocusModel) -> str | None:
    """Where chunks end: as the adapter will be used, or else as the one from which training starts."""
    return config.for_use().boundaries or focus.config.boundaries


def usable(config: TrainingConfig, used_with: FocusConfig, focus: FocusModel) -> TrainingConfig:
    """The config with the settings that are saved with the adapter, checked as an engine will check them."""
    check_sizes(used_with.resolve(focus.config.window, window_is=focus.config.window_is))
    if used_with.window is None and focus.config.window > focus.parts.window.size:  # more than the model says itself
        used_with = replace(used_with, window=focus.config.window)
    return replace(config, used_with=used_with)


def focus_model_for(
    config: TrainingConfig, model: PreTrainedModel | FocusModel | None, device: torch.device
) -> tuple[FocusModel, str]:
    """The model to train, with projections in float32, and its name."""
    if isinstance(model, FocusModel):
        for name in ("adapter", "rank"):
            if getattr(config, name) is not None:
                raise ConfigError(
                    f"{name}={getattr(config, name)!r}: a FocusModel goes on with the projections it has. Leave {name} "
                    "out, or hand over the base model."
                )
        if model.device.type != device.type:
            raise ConfigError(
                f"device={config.device!r} is {device}, but the model handed over is on {model.device}. Move the base "
                f"model before FocusModel is made from it, or set device={model.device.type!r}."
            )
        focus, name = model, model.model.name_or_path
    else:
        loaded = _loaded(config, device, model)
        projections = loaded.projections or fresh_projections(loaded.model, rank=_rank(config, loaded.model))
        settings = FocusConfig(bos_per_chunk=config.bos_per_chunk)
        focus = FocusModel(loaded.model, projections, config=settings, trained_with=loaded.trained_with)
        name = loaded.model_id
    _check_precision(config, focus)
    focus.projections.float()  # the projections learn in float32, in whatever dtype the frozen model is kept
    return focus, config.model or name


def _rank(config: TrainingConfig, model: PreTrainedModel) -> int | None:
    """Of projections that start from the model's own maps; `None` for full copies."""
    if config.rank is not None:
        return config.rank or None
    parts = decoder_parts(model)
    maps = (getattr(parts.attentions[0], name) for name in parts.projections)
    return min(RANK, *(getattr(one, "in_features", RANK) for one in maps))


def _check_precision(config: TrainingConfig, focus: FocusModel) -> None:
    """Projections are float32; the frozen model may be kept in the dtype in which mixed precision computes."""
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)
    if focus.dtype not in (torch.float32, half):
        raise ConfigError(
            f"mixed_precision={config.mixed_precision!r} with a base model in {focus.dtype}: they do not go together. "
            "Set dtype='float32', or mixed_precision='bf16' with dtype='bfloat16'."
        )
    if config.mixed_precision == "fp16" and focus.device.type == "cpu":
        raise ConfigError("mixed_precision='fp16' on a CPU: it has no such arithmetic. Set 'bf16' or 'no'.")


def _loaded(config: TrainingConfig, device: torch.device, model: PreTrainedModel | None) -> LoadedModel:
    """The base model with the projections to start from."""
    if model is not None:
        loaded = LoadedModel(model.to(device), model.name_or_path)
        if config.adapter is not None:
            projections, trained_with = load_adapter(config.adapter, loaded.model)
            loaded = LoadedModel(loaded.model, loaded.model_id, projections, trained_with, config.adapter)
    elif config.model:
        path, _ = named_model(config.model)
        loaded = load_model(path, adapter=config.adapter, device=str(device), dtype=config.dtype)
    else:
        raise ConfigError("model is missing: a folder or hub id of the base model.")
    if loaded.projections is not None and config.rank not in (None, loaded.projections.rank or 0):
        kind = f"rank {loaded.projections.rank}" if loaded.projections.rank else "full copies"
        raise ConfigError(
            f"rank={config.rank}, but training starts from the projections of {loaded.adapter_id}, which are {kind}. "
            "Leave rank out, or start from the model without them."
        )
    rule = None if loaded.trained_with is None else loaded.trained_with.bos_per_chunk
    if rule is not None and rule != config.bos_per_chunk:
        raise ConfigError(
            f"bos_per_chunk={config.bos_per_chunk}, but the projections of {loaded.adapter_id} were trained with "
            f"{rule}. Set bos_per_chunk to that."
        )
    return loaded
