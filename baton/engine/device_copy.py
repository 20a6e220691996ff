"""Small tensors to the model's device and back, without a wait for what the device is computing.

A copy between a GPU and pinned memory is queued behind the kernels like one of them; any other waits for them all.
Torch keeps pinned memory for reuse, and hands out a piece again only once the copies of it are done.
"""

from __future__ import annotations

import torch
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor`, which is the host's, on `device`."""
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class Readback:
    """Tensors of a device on their way to the host."""

    def __init__(self, *tensors: Tensor) -> None:
        """tensors: all on one device, at least one."""
        self._copies = tuple(tensor.to("cpu", non_blocking=True) for tensor in tensors)
        self._done: torch.cuda.Event | None = None
        if tensors[0].is_cuda:
            self._done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._done.record()

    def wait(self) -> tuple[Tensor, ...]:
        """The copies, once the device has got so far."""
        if self._done is not None:
            self._done.synchronize()
        return self._copies
