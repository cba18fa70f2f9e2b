"""What the machine offers: device, dtype, memory, and how many tokens one pass may hold."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from transformers import PreTrainedModel

from focus_core.errors import ConfigError, OutOfMemoryError, first_line

_CPU_TOKENS_PER_PASS = 4096  # beyond that a CPU pass gets no faster, it only leaves the caches
_GPU_SHARE_FOR_ACTIVATIONS = 0.25
LOAD_LESS = "Use dtype='bfloat16', a smaller model, or device='cpu'."  # the way out if weights do not fit
_READ_LESS = (
    "Set parallel_chunks to a small number, hand over fewer documents or questions at once, or use dtype='bfloat16' or "
    "a smaller model."
)
# Where Linux keeps the limits of control groups, and says to which of them this process belongs.
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_KINDS = ("cpu", "cuda", "mps")
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def choose_device(name: str) -> torch.device:
    """`"auto"` is the GPU where there is one: CUDA's, then Apple's."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(
            f"device={name!r} is not a device that torch knows: use 'auto', 'cpu', 'cuda' or 'mps'."
        ) from error
    if device.type not in _KINDS:
        raise ConfigError(f"device={name!r}: FocusLLM runs on 'cpu', 'cuda' and 'mps'.")
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device={name!r}: this machine has no GPU that torch can use. Use device='cpu' or 'auto'.")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(
            f"device={name!r}: this machine has no Apple GPU that torch can use. Use device='cpu' or 'auto'."
        )
    # Add the index, so that "cuda" and "cuda:0" share one registry entry.
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", torch.cuda.current_device())
    if device.type == "cuda" and device.index >= torch.cuda.device_count():
        raise ConfigError(f"device={name!r}: this machine has {torch.cuda.device_count()} GPUs, counted from 0.")
    return torch.device("mps", 0) if device.type == "mps" else device


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`"auto"` is bfloat16 on a GPU and float32 on a CPU, where half precision is slow.

    Apple's GPU has bfloat16 from macOS 14 on. Before, `"auto"` is float32 there: activations of models that were
    trained in bfloat16 overflow in float16.

    Raises:
        ConfigError: a dtype that we do not know, or that the device does not have
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" or _mps_has_bfloat16(device) else torch.float32
    if name not in _DTYPES:
        raise ConfigError(f"dtype={name!r}: use {', '.join(map(repr, ('auto', *_DTYPES)))}, as text.")
    if device.type == "mps" and name == "float64":
        raise ConfigError("dtype='float64': Apple's GPU does not have it. Use dtype='float32', or device='cpu'.")
    if device.type == "mps" and name == "bfloat16" and not _mps_has_bfloat16(device):
        raise ConfigError(
            "dtype='bfloat16': Apple's GPU has it from macOS 14 on. Use dtype='float32', or 'float16' for models that "
            "were trained in it."
        )
    return _DTYPES[name]


def _mps_has_bfloat16(device: torch.device) -> bool:
    return device.type == "mps" and torch.backends.mps.is_macos_or_newer(14, 0)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be taken on the device."""
    if device.type == "cuda":
        reusable = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + reusable)
    of_the_machine = min([int(psutil.virtual_memory().available), *_left_by_limits()])
    if device.type == "mps":  # it shares the memory of the machine, and Metal recommends a limit to each process
        reusable = torch.mps.driver_allocated_memory() - torch.mps.current_allocated_memory()
        recommended = torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
        return max(0, min(of_the_machine + reusable, recommended))
    return of_the_machine


def peak_bytes(device: torch.device) -> int:
    """The most bytes that were taken so far: of the GPU, or by this process where there is none."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return int(psutil.Process().memory_info().peak_wset)
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest if sys.platform == "darwin" else highest * 1024


def _left_by_limits() -> Iterator[int]:
    """Bytes that the memory limits on this process leave, as in a container; what is cached of files counts as free."""
    try:
        groups = [line.split(":", 2) for line in _OWN_GROUPS.read_text().splitlines()]
    except OSError:  # no Linux
        return
    for number, controllers, path in groups:
        if number == "0":
            root, files, cached = _GROUPS, ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            files, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes"), "total_inactive_file"
            root = _GROUPS / "memory"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(root))):
            try:
                limit, used = (int((folder / name).read_text()) for name in files)
                stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            except (OSError, ValueError):  # not there, or no limit
                continue
            yield max(0, limit - used + int(stat.get(cached, 0)))


def lacking_memory(nbytes: int, device: torch.device) -> int:
    """How many of `nbytes` are not free."""
    return max(0, nbytes - free_memory(device))


def require_memory(nbytes: int, device: torch.device, *, what: str) -> None:
    """Refuse, before any work, what the device cannot hold.

    Raises:
        OutOfMemoryError: with both numbers
    """
    free = free_memory(device)
    if nbytes > free:
        raise lack_of_memory(nbytes, free, device, what=what)


def lack_of_memory(
    nbytes: int, free: int, device: torch.device, *, what: str, host_free: int | None = None
) -> OutOfMemoryError:
    """The error for keys and values that the device cannot hold.

    Args:
        host_free: bytes of host memory for those that the device has no room for, where it has another memory
    """
    host = "" if host_free is None else f", and of host memory {host_free / 2**30:.2f} GiB (host_bytes)"
    return OutOfMemoryError(
        f"The keys and values of {what} take {nbytes / 2**30:.2f} GiB, but only {free / 2**30:.2f} GiB are free on "
        f"{device}{host}. Hand over fewer or shorter documents, ask for shorter answers (max_new_tokens), or use "
        "dtype='bfloat16' or a smaller model."
    )


def lack_of_host_memory(nbytes: int, free: int, *, what: str) -> OutOfMemoryError:
    """The error for keys and values that host memory cannot hold."""
    return OutOfMemoryError(
        f"The keys and values of {what} take {nbytes / 2**30:.2f} GiB, but only {free / 2**30:.2f} GiB of host memory "
        "are free. Raise host_bytes, or hand over fewer documents at once."
    )


def has_own_memory(device: torch.device) -> bool:
    """Whether the device has a memory of its own, so that the host's is another one; Apple's GPU shares the host's."""
    return device.type == "cuda"


def require_memory_for_weights(nbytes: int, device: torch.device, *, name: str) -> None:
    """Refuse, before they are read, weights that the device cannot hold.

    Raises:
        OutOfMemoryError: with both numbers
    """
    free = free_memory(device)
    if nbytes > free:
        raise OutOfMemoryError(
            f"The weights of {name} take {nbytes / 2**30:.2f} GiB, but only {free / 2**30:.2f} GiB are free on "
            f"{device}. {LOAD_LESS}"
        )


@contextmanager
def naming_lack_of_memory(way_out: str = _READ_LESS) -> Iterator[None]:
    """What torch says when an allocation fails on a GPU, as an error of ours with the way out."""
    try:
        yield
    except RuntimeError as error:  # torch has a class of its own for CUDA only
        if not isinstance(error, torch.OutOfMemoryError) and not str(error).startswith("MPS backend out of memory"):
            raise
        reason = first_line(error)
        raise OutOfMemoryError(f"The device ran out of memory ({reason}). {way_out}") from error


def tokens_per_pass(model: PreTrainedModel, *, held_layers: int = 1) -> int:
    """How many tokens may pass the model together when the user has not said (`parallel_chunks`).

    Args:
        held_layers: of how many layers activations exist at a time; with gradients, of all
    """
    if model.device.type == "cpu":
        return _CPU_TOKENS_PER_PASS
    per_token = activation_bytes(model) * held_layers
    return max(_CPU_TOKENS_PER_PASS, int(free_memory(model.device) * _GPU_SHARE_FOR_ACTIVATIONS) // per_token)


def activation_bytes(model: PreTrainedModel) -> int:
    """About what a layer holds at a time for each token of a pass: gate, up, their product, eight hidden states."""
    config = model.config.get_text_config()
    between: int = getattr(config, "intermediate_size", None) or 4 * config.hidden_size
    return (3 * between + 8 * config.hidden_size) * model.dtype.itemsize
