"""The five calls of the CUDA driver that share a GPU's memory between processes, through ctypes.

Not torch's own sharing (`Storage._share_cuda_`), which keeps its counters in files under /dev/shm that stay when
a process is killed. https://docs.nvidia.com/cuda/cuda-driver-api/group__CUDA__MEM.html
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from baton.kvtransfer.errors import SchemeUnavailable

HANDLE_BYTES = 64
_LAZY_ENABLE_PEER_ACCESS = 1


class _Handle(ctypes.Structure):
    """CUipcMemHandle, which goes by value."""

    _fields_ = (("reserved", ctypes.c_ubyte * HANDLE_BYTES),)


class OpenedMemory:
    """Another process's memory, mapped; what `torch.as_tensor` takes, with the shape and dtype of raw bytes."""

    def __init__(self, handle: bytes, offset_bytes: int, size_bytes: int, device: torch.device) -> None:
        """Raises SchemeUnavailable where the driver does not map it."""
        self._device = device
        self._base = ctypes.c_uint64()
        raw = _Handle.from_buffer_copy(handle)
        with torch.cuda.device(device):
            _call("cuIpcOpenMemHandle_v2", ctypes.byref(self._base), raw, _LAZY_ENABLE_PEER_ACCESS)
        self.__cuda_array_interface__ = {
            "shape": (size_bytes,),
            "typestr": "|u1",
            "data": (self._base.value + offset_bytes, False),
            "version": 3,
        }

    def close(self) -> None:
        """Once nobody reads it any more."""
        with (
            torch.cuda.device(self._device),
            contextlib.suppress(SchemeUnavailable),
        ):  # nothing more can be done
            _call("cuIpcCloseMemHandle", self._base)


def share(memory: Tensor) -> tuple[bytes, int, int]:
    """(handle of the allocation that `memory` lies in, its offset there, size of the allocation), in bytes.

    Raises SchemeUnavailable where the driver does not share it, as with torch's expandable segments.
    """
    base, size, handle = ctypes.c_uint64(), ctypes.c_size_t(), _Handle()
    pointer = ctypes.c_uint64(memory.data_ptr())
    with torch.cuda.device(memory.device):
        torch.cuda.current_stream().synchronize()  # makes the device's context this thread's
        _call("cuMemGetAddressRange_v2", ctypes.byref(base), ctypes.byref(size), pointer)
        _call("cuIpcGetMemHandle", ctypes.byref(handle), base)
    return bytes(handle.reserved), pointer.value - base.value, size.value


def _call(name: str, *arguments: Any) -> None:
    driver = _driver()
    status = getattr(driver, name)(*arguments)
    if status:
        text = ctypes.c_char_p()
        driver.cuGetErrorName(status, ctypes.byref(text))
        raise SchemeUnavailable(f"{name}: {(text.value or b'unknown error').decode()} ({status})")


@functools.cache
def _driver() -> ctypes.CDLL:
    try:
        return ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise SchemeUnavailable(f"no CUDA driver is installed here: {error}") from error
