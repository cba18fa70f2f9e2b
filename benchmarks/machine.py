"""What a benchmark runs on: rates, clock, peak memory, and the conditions that belong beside every number."""

from __future__ import annotations

import datetime
import os
import platform
import resource
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
    """What the machine does at best, measured."""

    flops: float  # per second, large matrix product
    flops_real_shape: float  # the same with the shape of a decode step's widest map
    bytes: float  # per second, read from memory



def conditions(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on and the arguments do not say."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
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
    """`bytes` is filled when `peak_memory` ends; `None` where the system cannot tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[Peak]:
    """The most memory taken at any time within: of the GPU, or of the process where there is none."""
    peak = Peak()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
    else:
        resets = _reset_peak_resident()
        yield peak
        peak.bytes = _peak_resident() if resets else None


def _reset_peak_resident() -> bool:
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
        return True
    return False


def _peak_resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _cpu_model() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def measure_rates(s: Shape, rows: int, *, device: torch.device, dtype: torch.dtype) -> Rates:
    """Matrix rate and bandwidth of `device`, the best of several tries, as a floor wants it.

    Args:
        rows: tokens that pass the model together in a decode step
    """
    size = 8192 if device.type == "cuda" else 2048
    wide = torch.randn(s.intermediate, s.hidden, device=device, dtype=dtype)
    return Rates(
        flops=_matmul_rate(torch.randn(size, size, device=device, dtype=dtype), size, device),
        flops_real_shape=_matmul_rate(wide, rows, device),
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
