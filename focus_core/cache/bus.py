"""The way of keys and values from host memory to the device, one copy ahead of use.

Attention reads a layer of a few chunks at a time. While the device computes with one copy, the next one is under way.
Where there is CUDA, that is on a stream of its own, so that copies and computing overlap.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch
from torch import Tensor

from focus_core.errors import warn

COPY_BYTES = 2**26  # of one copy, unless a single chunk takes more; not measured on a GPU
_COPIES = 2  # one that is read, one that is under way
_ALIGNED = 256  # bytes; a part of a buffer may be viewed as any dtype
_SLACK = 4 * _ALIGNED  # keys, values and their scales


class Bus:
    """Copies from host memory to one device. Used by one pass of the model at a time.

    Attributes:
        device: where the copies are read
        copy_bytes: of one copy, unless a single chunk takes more
    """

    def __init__(self, device: torch.device, *, copy_bytes: int = COPY_BYTES) -> None:
        self.device, self.copy_bytes = device, copy_bytes
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._buffers: list[Tensor | None] = [None] * _COPIES
        self._next = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the device that the buffers take now."""
        return sum(buffer.nbytes for buffer in self._buffers if buffer is not None)

    def missing_bytes(self, of_layer: int) -> int:
        """Bytes of the device that the buffers will take besides those that they have.

        Args:
            of_layer: bytes of one layer of the largest chunk
        """
        return max(_COPIES * (max(of_layer, self.copy_bytes) + _SLACK) - self.nbytes, 0)

    def reserve(self, of_layer: int) -> None:
        """Take these bytes now, so that nobody else does."""
        for number in range(_COPIES):
            self._buffer(number, of_layer + _SLACK)

    def fetch(self, states: Sequence[Tensor]) -> Callable[[], list[Tensor]]:
        """Begin to copy tensors to the device; call the result to have them.

        A copy lasts until the second `fetch` after it: its buffer is then written again.
        """
        into = self._parts(states)
        if self._stream is None:
            for copy, state in zip(into, states, strict=True):
                copy.copy_(state)
            return lambda: into
        # What has been started reads the buffer's last copy, or the memory that the buffer was made of.
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            for copy, state in zip(into, states, strict=True):
                copy.copy_(state, non_blocking=True)
            done = self._stream.record_event()

        def copied() -> list[Tensor]:
            torch.cuda.current_stream(self.device).wait_event(done)
            return into

        return copied

    def pin(self, owner: object, states: Sequence[Tensor]) -> None:
        """Let the device read host memory by itself, as long as `owner` lives; without CUDA there is nothing to do.

        torch's own pinned memory takes a power of two for each tensor, up to twice its bytes.
        """
        if self._stream is None:
            return
        register = torch.cuda.cudart().cudaHostRegister
        pinned = [state.data_ptr() for state in states if int(register(state.data_ptr(), state.nbytes, 0)) == 0]
        weakref.finalize(owner, _unpin, pinned, self.device).atexit = False
        if len(pinned) < len(states):
            with suppress(RuntimeError):  # CUDA reports its last error once more, with the next kernel
                torch.zeros(1, device=self.device)
            warn("Host memory could not be pinned, so copies from it are slower and do not overlap with computing.")

    def _parts(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Parts of the next buffer, like `states`."""
        sizes = [-(-state.nbytes // _ALIGNED) * _ALIGNED for state in states]
        buffer, self._next = self._buffer(self._next, sum(sizes)), (self._next + 1) % _COPIES
        parts = buffer[: sum(sizes)].split(sizes)
        return [
            part[: state.nbytes].view(state.dtype).view(state.shape) for part, state in zip(parts, states, strict=True)
        ]

    def _buffer(self, number: int, nbytes: int) -> Tensor:
        buffer = self._buffers[number]
        if buffer is None or buffer.nbytes < nbytes:
            if self._stream is not None:  # the old buffer may be written to still
                torch.cuda.current_stream(self.device).wait_stream(self._stream)
            self._buffers[number] = None  # freed first, so that there are never two
            del buffer
            buffer = torch.empty(max(nbytes, self.copy_bytes + _SLACK), dtype=torch.uint8, device=self.device)
            self._buffers[number] = buffer
        return buffer


def _unpin(addresses: Sequence[int], device: torch.device) -> None:
    torch.cuda.synchronize(device)  # a copy may read them still
    for address in addresses:
        torch.cuda.cudart().cudaHostUnregister(address)
