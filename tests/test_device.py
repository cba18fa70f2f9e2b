"""Devices that this machine does not have: what would be chosen, and what is refused, on Apple's GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from focus_core import device
from focus_core.device import (
    choose_device,
    choose_dtype,
    free_memory,
    naming_lack_of_memory,
    require_memory_for_weights,
    tokens_per_pass,
)
from focus_core.errors import ConfigError, OutOfMemoryError

MPS = torch.device("mps", 0)


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A Mac with 10 bytes for this process, of which it holds 5 and uses 3."""
    state = SimpleNamespace(version=14)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor: state.version >= major)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 5)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3)
    return state


def test_apples_gpu_is_taken_where_there_is_one(macos: SimpleNamespace) -> None:
    assert choose_device("auto") == choose_device("mps") == choose_device("mps:0") == MPS


def test_cuda_is_preferred(macos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert choose_device("auto") == torch.device("cuda", 0)


def test_a_machine_without_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="device='mps': this machine has no Apple GPU"):
        choose_device("mps")


def test_dtypes_of_apples_gpu(macos: SimpleNamespace) -> None:
    """It has no float64, and bfloat16 from macOS 14 on: torch would fail in the middle of an answer."""
    assert choose_dtype("auto", MPS) == choose_dtype("bfloat16", MPS) == torch.bfloat16
    assert choose_dtype("float16", MPS) == torch.float16
    with pytest.raises(ConfigError, match="dtype='float64': Apple's GPU does not have it"):
        choose_dtype("float64", MPS)
    macos.version = 13
    assert choose_dtype("auto", MPS) == torch.float32
    with pytest.raises(ConfigError, match="dtype='bfloat16': Apple's GPU has it from macOS 14 on"):
        choose_dtype("bfloat16", MPS)


def test_memory_of_apples_gpu(macos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that of the machine: the smaller of what is free there and of what Metal recommends."""
    available = 100
    monkeypatch.setattr(device.psutil, "virtual_memory", lambda: SimpleNamespace(available=available))
    monkeypatch.setattr(device, "_left_by_limits", lambda: iter(()))
    assert free_memory(MPS) == 10 - 3
    available = 1
    assert free_memory(MPS) == 1 + (5 - 3)


def test_a_full_apple_gpu_is_an_error_of_ours() -> None:
    """torch has no class of its own for it."""
    with pytest.raises(OutOfMemoryError, match=r"MPS backend out of memory.*smaller model"), naming_lack_of_memory():
        raise RuntimeError("MPS backend out of memory (MPS allocated: 1.00 GB)")
    with pytest.raises(RuntimeError, match="shapes"), naming_lack_of_memory():
        raise RuntimeError("shapes differ")


def test_a_pass_on_apples_gpu_is_as_long_as_its_memory_allows(
    macos: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: 1 << 30)
    sizes = SimpleNamespace(intermediate_size=2, hidden_size=1)
    config = SimpleNamespace(get_text_config=lambda: sizes)
    per_token = (3 * 2 + 8 * 1) * 2
    model = SimpleNamespace(device=MPS, dtype=torch.float16, config=config)
    assert tokens_per_pass(model) == (1 << 28) // per_token  # type: ignore[arg-type]


def test_weights_that_do_not_fit_are_refused_with_both_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "free_memory", lambda _: 1 << 30)
    require_memory_for_weights(1 << 30, torch.device("cpu"), name="small")
    with pytest.raises(OutOfMemoryError, match=r"weights of large take 3\.00 GiB, but only 1\.00 GiB are free on cpu"):
        require_memory_for_weights(3 << 30, torch.device("cpu"), name="large")
