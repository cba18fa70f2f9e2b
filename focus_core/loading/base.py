"""The base model from a folder, the hub or a GGUF file, by way of transformers, with our errors and our bar."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from focus_core.device import require_memory_for_weights
from focus_core.errors import FocusError, UnsupportedModelError
from focus_core.loading.config_checks import checked_arguments, why_not_loaded
from focus_core.loading.gguf import gguf_config, gguf_path, load_gguf
from focus_core.loading.hub import is_folder
from focus_core.loading.named import meant
from focus_core.loading.quantized import quantization_of, quantized_bytes, require_packages
from focus_core.progress import Report, progress_bar

_log = getLogger(__name__)
_verbosity_lock = threading.RLock()  # transformers' verbosity and its bars are one setting for the whole process
_CONFIG_ARGUMENTS = (
    *("revision", "token", "cache_dir", "local_files_only", "subfolder", "trust_remote_code", "code_revision"),
)


def load_base(
    name: str,
    dtype: torch.dtype,
    arguments: Mapping[str, Any],
    *,
    device: torch.device | None = None,
    progress: bool = True,
) -> PreTrainedModel:
    """A causal language model in evaluation mode: quantised weights on `device`, others on the CPU.

    What its weights take is told to the log (INFO), and to the bar, before they are read.

    Args:
        name: a folder, a hub id or a GGUF file
        dtype: of weights that are not quantised; a GGUF file's are dequantised
        arguments: passed on to `AutoModelForCausalLM.from_pretrained`
        device: where the model will be used, the CPU by default: memory is asked for there
        progress: show a bar on a terminal, if it takes more than two seconds

    Raises:
        UnsupportedModelError: no causal language model under this name, one that needs code of its own or a package
            which is missing, or one without all of its tensors
        ConfigError: `trust_remote_code` is on
        OutOfMemoryError: `device` does not hold the weights, as far as their size is known before
    """
    device = device or torch.device("cpu")
    gguf = gguf_path(name, arguments)
    if gguf is None:
        _check_name(name, arguments)
    arguments = checked_arguments(name, arguments)
    config = gguf_config(gguf) if gguf else _config_of(name, arguments)
    quantization = None if gguf else quantization_of(config, arguments)
    if quantization is not None:
        require_packages(name, quantization)
        arguments = {**arguments, "device_map": {"": device}}  # many kinds cannot be moved once they are loaded
    nbytes = quantized_bytes(name, config, arguments) if quantization else weights_bytes(config, dtype)
    if nbytes is not None:
        require_memory_for_weights(nbytes, device, name=name)
    kind = f"quantised with {quantization}" if quantization else f"in {str(dtype).removeprefix('torch.')}"
    size = f": {nbytes / 2**30:.2f} GiB {kind}" if nbytes is not None else f", {kind}"
    what = f"loading {Path(name).name}{size}"
    _log.info(what)
    with quiet(), progress_bar(what, visible=progress) as report, _reported(report):
        try:
            if gguf is not None and config is not None:
                model, missing = load_gguf(gguf, config, dtype, arguments)
            else:
                model, found = AutoModelForCausalLM.from_pretrained(
                    name, dtype=dtype, output_loading_info=True, **arguments
                )
                missing = sorted(found["missing_keys"])
        except FocusError:
            raise
        except Exception as error:  # transformers raises many exception types on damaged files
            raise UnsupportedModelError(_what_failed(name, error)) from error
    if missing:  # transformers would fill them with random numbers
        raise UnsupportedModelError(
            f"{name} lacks {len(missing)} of the model's tensors ({', '.join(missing[:3])}). Save or download it again."
        )
    return cast(PreTrainedModel, model.eval())


def weights_bytes(config: PreTrainedConfig | None, dtype: torch.dtype) -> int | None:
    """Bytes of a model's weights in `dtype`, before they are loaded; `None` if its config does not tell."""
    if config is None:
        return None
    try:
        with torch.device("meta"), quiet():
            model = AutoModelForCausalLM.from_config(config)
    except Exception:  # loading says why
        return None
    return sum(parameter.numel() for parameter in model.parameters()) * dtype.itemsize


@contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers: no report on tensors that we load ourselves, no bars of its own."""
    with _verbosity_lock:
        verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(verbosity)
            if bar:
                logging.enable_progress_bar()


def _check_name(name: str, arguments: Mapping[str, Any]) -> None:
    if is_folder(name) and not (Path(name) / arguments.get("subfolder", "") / "config.json").is_file():
        raise UnsupportedModelError(
            f"{name} is a folder without a config.json and without a GGUF file: not a model saved by transformers."
        )
    if Path(name).is_absolute() and not is_folder(name):  # an absolute path cannot be a hub id
        raise UnsupportedModelError(f"There is no folder {name}. Give a model's folder, a GGUF file, or a hub id.")


def _config_of(name: str, arguments: Mapping[str, Any]) -> PreTrainedConfig | None:
    """The config, to look at before the weights are read; `None` if there is none, and loading will say why."""
    if isinstance(arguments.get("config"), PreTrainedConfig):
        return cast(PreTrainedConfig, arguments["config"])
    try:
        access = {key: arguments[key] for key in _CONFIG_ARGUMENTS if key in arguments}
        return cast(PreTrainedConfig, AutoConfig.from_pretrained(name, **access))
    except Exception:  # a damaged file fails in many ways
        return None


def _what_failed(name: str, error: Exception) -> str:
    reason = why_not_loaded(error)
    if isinstance(error, ImportError):
        return f"{name} cannot be loaded without another package or version: {reason}"
    hint = meant(name)
    if "gguf" in name.lower():
        hint = " For a GGUF file of a hub id, name it: gguf_file='….gguf', or --gguf-file ….gguf."
    return (
        f"No causal language model could be loaded from {name!r}: {reason}. "
        f"Give a folder that `save_pretrained` wrote, a GGUF file, or a hub id where there is a network.{hint}"
    )


@contextmanager
def _reported(report: Report) -> Iterator[None]:
    """Hand what transformers shows in its bars over to `report`."""

    def counted(_: Callable[..., Any], given: tuple[Any, ...], options: dict[str, Any]) -> _Counted:
        return _Counted(given[0] if given else options.get("iterable", ()), report)

    previous = logging.set_tqdm_hook(counted)
    try:
        yield
    finally:
        logging.set_tqdm_hook(previous)


class _Counted:
    """What transformers iterates over in place of a `tqdm`."""

    def __init__(self, items: Iterable[Any], report: Report) -> None:
        self._items, self._report = items, report

    def __iter__(self) -> Iterator[Any]:
        total = len(cast(Any, self._items)) if hasattr(self._items, "__len__") else 0
        for done, item in enumerate(self._items):
            self._report(done, total)
            yield item
        self._report(total, total)

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, count: int = 1) -> None:
        """Bars that are moved by hand belong to downloads, which have their own."""

    def close(self) -> None:
        """Nothing is open."""
