"""What a GPU would complain of or wait for, without a GPU: the model lies on torch's "meta" device, which has no data.

A tensor of the CPU that meets one of the model, and every question to the device (`item`, `bool`, `nonzero`, a copy to
the CPU), is an error here. What the numbers are is the business of the other tests.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedModel

from focus_core import device
from focus_core.attention.candidates import CandidateProjections
from focus_core.cache.bus import Bus
from focus_core.device import choose_device, free_memory
from focus_core.errors import ConfigError
from focus_core.methods.base import Decoding
from focus_core.methods.focus import FocusDecoding, FocusModel
from focus_core.methods.plain import PlainDecoding
from focus_core.training.loss import FocusLoss
from tests.cases import ANSWERS, CASE, QUESTIONS, computed, focus_model, forced, prefilled, streamed
from tests.model_zoo import FAMILIES_BY_KIND, build, random_projections
from tests.training.cases import CONFIG, example_for

_ASKS = {"item", "tolist", "__bool__", "__int__", "__float__", "__index__", "nonzero", "masked_select", "unique", "cpu"}
_MOVES = {"to", "copy_", "type_as"}


class _Watch(TorchFunctionMode):
    """Notes what is asked of the device, and where devices meet."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.__name__
        tensors = list(_tensors([args, list(kwargs.values())]))
        devices = {tensor.device.type for tensor in tensors if tensor.ndim}
        asks = name in _ASKS or (name == "to" and _names_the_cpu([*args[1:], *kwargs.values()]))
        by_mask = name == "__getitem__" and any(tensor.dtype == torch.bool for tensor in tensors[1:])
        if any(tensor.is_meta for tensor in tensors[:1]) and (asks or by_mask):
            self._note(f"{name} waits for the device")
        if len(devices) > 1 and name not in _MOVES:
            self._note(f"{name} has tensors on {sorted(devices)}")
        return func(*args, **kwargs)

    def _note(self, what: str) -> None:
        ours = [frame for frame in traceback.extract_stack() if "focus_core" in frame.filename]
        self.found.append(f"{what}: {ours[-1].filename}:{ours[-1].lineno}" if ours else what)


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _tensors(value)


def _names_the_cpu(values: list[Any]) -> bool:
    return any(isinstance(value, str | torch.device) and torch.device(value).type == "cpu" for value in values)


@contextmanager
def _watched() -> Iterator[None]:
    with _Watch() as watch:
        yield
    assert watch.found == []


def _on_meta(family: str, *, rank: int | None = None) -> tuple[PreTrainedModel, CandidateProjections]:
    model = build(family)
    projections = random_projections(model, rank=rank)
    return model.to("meta"), projections.to("meta")


@pytest.mark.parametrize("parallel_chunks", [None, pytest.param(2, marks=pytest.mark.slow)], ids=["one_pass", "groups"])
@pytest.mark.parametrize("family", FAMILIES_BY_KIND)
def test_steps(family: str, parallel_chunks: int | None) -> None:
    """A step would wait for the GPU between its layers, or fail on one."""
    model = focus_model(*_on_meta(family), parallel_chunks=parallel_chunks)
    with _watched():
        logits = computed(model, CASE)
    assert logits.device.type == "meta"
    assert len(logits) == len(CASE.generated) + 1


@pytest.mark.parametrize("parallel_chunks", [None, 2], ids=["one_pass", "groups"])
def test_steps_over_chunks_in_host_memory(parallel_chunks: int | None) -> None:
    """Keys of the host would meet queries of the GPU, or a step would wait for it."""
    base = build("llama")
    chunks = streamed(
        prefilled(focus_model(base, random_projections(base)), CASE), Bus(torch.device("meta"), copy_bytes=1)
    )
    model = focus_model(*_on_meta("llama"), parallel_chunks=parallel_chunks)
    with _watched():
        logits = forced(FocusDecoding(model, chunks, [CASE.local], [CASE.prompt]), [[3], [4]])
    assert logits.device.type == "meta"


def test_projections_go_where_the_model_is() -> None:
    model = build("llama")
    projections = random_projections(model)
    assert FocusModel(model.to("meta"), projections).projections is projections
    assert all(parameter.is_meta for parameter in projections.parameters())


def test_no_chunks() -> None:
    """Where there is nothing, nothing says on which device it lies."""
    model = focus_model(*_on_meta("llama"))
    with _watched():
        logits = computed(model, replace(CASE, chunks=[]))
    assert logits.device.type == "meta"


@pytest.mark.parametrize("plain", [False, True], ids=["chunks", "plain"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "phi3"])
def test_questions_that_leave(family: str, plain: bool) -> None:
    """Padding and the choice of questions would go through the host."""
    model = focus_model(*_on_meta(family))
    locals_, prompts = [q.local for q in QUESTIONS], [q.prompt for q in QUESTIONS]
    if plain:  # with padding, transformers itself asks whether there is any
        locals_ = [answer * 3 for answer in ANSWERS]
    with _watched():
        decoding: Decoding = (
            PlainDecoding(model, locals_) if plain else FocusDecoding(model, prefilled(model, CASE), locals_, prompts)
        )
        forced(decoding, [[answer[0] for answer in ANSWERS]])
        decoding.keep([0, 3])
        logits = decoding.step(torch.tensor([5, 7]))
    assert logits.shape[0] == 2


@pytest.mark.parametrize("rank", [None, 2], ids=["full", "low_rank"])
def test_loss(rank: int | None) -> None:
    """Training would stop at every pass to ask the GPU something."""
    focus = FocusModel(*_on_meta("llama", rank=rank), config=CONFIG)
    with _watched():
        loss = FocusLoss(focus)(example_for(focus))
        loss.mean().backward()
    assert loss.device.type == "meta"


def test_a_gpu_has_one_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines for "auto", "cuda" and "cuda:1" would load the weights once each."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert {choose_device(name) for name in ("auto", "cuda", "cuda:1")} == {torch.device("cuda:1")}
    assert choose_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(ConfigError, match="device='cuda:2': this machine has 2 GPUs, counted from 0"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    "mistake",
    [
        lambda x: x + torch.ones(3),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[x > 0],
        lambda x: bool((x > 0).any()),
        lambda x: x.sum().item(),
        lambda x: x.cpu(),
        lambda x: x.to("cpu"),
    ],
    ids=["meets", "index", "mask", "bool", "item", "cpu", "to"],
)
def test_the_watch_sees_mistakes(mistake: Callable[[Tensor], object]) -> None:
    x = torch.empty(3, device="meta")
    with _Watch() as watch, suppress(RuntimeError, NotImplementedError):
        mistake(x)
    assert len(watch.found) == 1


# --- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "folder", "names", "cached"),
    [
        ("0::/job/step", "job", ("memory.max", "memory.current"), "inactive_file"),
        (
            "4:cpu,memory:/job/step",
            "memory/job",
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
            "total_inactive_file",
        ),
    ],
)
def test_the_limit_of_a_container_counts(
    line: str, folder: str, names: tuple[str, str], cached: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 8 GiB of a host's 256, half of 256 would be kept for later, and the process killed instead of refused."""
    cpu = torch.device("cpu")
    limit, used, reclaimable = free_memory(cpu) // 2, 1000, 200
    (tmp_path / "own").write_text(f"1:cpuset:/elsewhere\n{line}\n")
    group = tmp_path / folder
    (group / "step").mkdir(parents=True)
    (group / "step" / names[0]).write_text("max\n")
    for name, number in zip(names, (limit, used), strict=True):
        (group / name).write_text(f"{number}\n")
    (group / "memory.stat").write_text(f"anon 5\n{cached} {reclaimable}\n")
    monkeypatch.setattr(device, "_GROUPS", tmp_path)
    monkeypatch.setattr(device, "_OWN_GROUPS", tmp_path / "own")
    assert free_memory(cpu) == limit - used + reclaimable
    (group / names[1]).write_text(str(2 * limit))
    assert free_memory(cpu) == 0
    monkeypatch.setattr(device, "_OWN_GROUPS", tmp_path / "no Linux")
    assert free_memory(cpu) > limit
