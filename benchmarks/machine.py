"""The machine under a benchmark: rates, clock, peak memory, and the conditions that belong beside every number."""

from __future__ import annotations

import datetime
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor


@dataclass(frozen=True)
class Rates:
    """The best rates of the machine, measured."""

    flops: float  # per second, large matrix product
    flops_real_shape: float  # the same with the shape of a decode step's widest map
    bytes: float  # per second, read from memory


def conditions(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Conditions that change the numbers and are no arguments."""
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def now(device: torch.device) -> float:
    """Seconds, once the device has done all it was asked for."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


@dataclass
class Peak:
    """Filled when `peak_memory` ends; `None` where the system cannot tell.

    Attributes:
        before: bytes taken already: the model, and the process around it
        highest: the most bytes taken at any time
    """

    before: int | None = None
    highest: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """Memory taken within: of the GPU, or of the process (its resident set) where there is none."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        peak = Peak(torch.cuda.memory_allocated(device))
        yield peak
        peak.highest = torch.cuda.max_memory_allocated(device)
        return
    with suppress(OSError):  # only Linux has it
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    peak = Peak(_process_bytes("VmRSS"))
    yield peak
    peak.highest = _process_bytes("VmHWM")


def _process_bytes(field: str) -> int | None:
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(field):
                return int(line.split()[1]) * 1024
    return None


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure_rates(widest: tuple[int, int], rows: int, *, device: torch.device, dtype: torch.dtype) -> Rates:
    """Matrix rate and bandwidth of `device`, the best of several tries, as a floor wants it.

    Args:
        widest: inputs and outputs of the model's widest map
        rows: tokens that pass it together in a decode step
    """
    size = 8192 if device.type == "cuda" else 2048
    inputs, outputs = widest
    return Rates(
        flops=_matmul_rate(torch.randn(size, size, device=device, dtype=dtype), size, device),
        flops_real_shape=_matmul_rate(torch.randn(outputs, inputs, device=device, dtype=dtype), rows, device),
        bytes=_bandwidth(device),
    )


def _matmul_rate(weight: Tensor, rows: int, device: torch.device) -> float:
    inputs = torch.randn(rows, weight.shape[1], device=device, dtype=weight.dtype)
    seconds = _best(lambda: torch.nn.functional.linear(inputs, weight), device)
    return 2 * weight.numel() * rows / seconds


def _bandwidth(device: torch.device) -> float:
    """Bytes per second, the better of reading and of copying (which reads and writes)."""
    size = (1 << 30) if device.type == "cuda" else (1 << 28)
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    return max(size / _best(source.sum, device), 2 * size / _best(lambda: target.copy_(source), device))


def _best(work: Callable[[], object], device: torch.device, *, tries: int = 7, repeats: int = 3) -> float:
    seconds = []
    for _ in range(tries):
        start = now(device)
        for _ in range(repeats):
            work()
        seconds.append((now(device) - start) / repeats)
    return min(seconds)
