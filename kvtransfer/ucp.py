"""One-sided reads over UCX: what ucxx's Python bindings leave out is called in libucp itself.

ucxx (its context, workers and endpoints) does the rest. Its messages are not used, for two reasons seen in 0.52:
a worker that is freed waits without end for the messages of a stopped peer, and a send that is cancelled keeps
its endpoint and its worker for ever. A read leaves neither behind: the side that is read from does nothing.
Structures and calls follow `ucp/api/ucp.h` of UCX 1.21; they are stable within UCX 1.
"""

from __future__ import annotations

import ctypes
import functools
import os
from typing import Any, ClassVar

import numpy as np

from baton.kvtransfer.errors import PeerLost, SchemeUnavailable

_OPTIONS = {
    # Shared memory tells of a peer that is gone; without it UCX takes no shared memory for such endpoints.
    "MM_ERROR_HANDLING": "y",
    # A frame in one segment: with UCX's 8 KiB, its messages moved a fifth as many bytes.
    "TCP_TX_SEG_SIZE": "512k",
    "TCP_RX_SEG_SIZE": "512k",
}

_FIELD_ADDRESS, _FIELD_LENGTH = 1, 2
_OK, _IN_PROGRESS, _LAST_ERROR = 0, 1, -100


class _MemMapParams(ctypes.Structure):
    _fields_: ClassVar = [
        ("field_mask", ctypes.c_uint64),
        ("address", ctypes.c_void_p),
        ("length", ctypes.c_size_t),
        ("flags", ctypes.c_uint),
        ("prot", ctypes.c_uint),
        ("memory_type", ctypes.c_int),
        ("exported_memh_buffer", ctypes.c_void_p),
    ]


_NO_OPTIONS = (ctypes.c_char * 256)()
"""A zeroed `ucp_request_param_t`, with room to spare: no optional field is set."""


@functools.cache
def _library() -> ctypes.CDLL:
    """libucp, which ucxx has loaded."""
    library = ctypes.CDLL("libucp.so.0")
    pointer, size, status = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    signatures: dict[str, tuple[Any, list[Any]]] = {
        "ucp_mem_map": (status, [pointer, pointer, pointer]),
        "ucp_mem_unmap": (status, [pointer, pointer]),
        "ucp_rkey_pack": (status, [pointer, pointer, pointer, pointer]),
        "ucp_rkey_buffer_release": (None, [pointer]),
        "ucp_ep_rkey_unpack": (status, [pointer, ctypes.c_char_p, pointer]),
        "ucp_rkey_destroy": (None, [pointer]),
        "ucp_get_nbx": (pointer, [pointer, pointer, size, ctypes.c_uint64, pointer, pointer]),
        "ucp_request_check_status": (status, [pointer]),
        "ucp_request_free": (None, [pointer]),
    }
    for name, (result, arguments) in signatures.items():
        call = getattr(library, name)
        call.restype, call.argtypes = result, arguments
    return library


def _reason(status: int) -> str:
    describe = ctypes.CDLL("libucs.so.0").ucs_status_string
    describe.restype, describe.argtypes = ctypes.c_char_p, [ctypes.c_int]
    text: bytes = describe(status)
    return text.decode()


@functools.cache
def ucxx_module() -> Any:
    """Raises SchemeUnavailable where ucxx is not installed or cannot be loaded."""
    os.environ.setdefault("UCX_WARN_UNUSED_ENV_VARS", "n")  # ucxx sets some that its build of UCX lacks
    try:
        import ucxx._lib.libucxx as ucxx
    except ImportError as error:
        raise SchemeUnavailable(f"ucx needs ucxx ({error}): pip install 'baton[ucx]'") from error
    return ucxx


def make_context() -> Any:
    """A `UCXContext` for reads; the environment (`UCX_TLS`, ...) goes before our own options.

    Raises SchemeUnavailable where no transport of UCX can be used.
    """
    ucxx = ucxx_module()
    options = {name: value for name, value in _OPTIONS.items() if f"UCX_{name}" not in os.environ}
    try:
        return ucxx.UCXContext(options, (ucxx.Feature.RMA, ucxx.Feature.WAKEUP))
    except ucxx.UCXError as error:
        raise SchemeUnavailable(f"UCX has no transport to offer: {error}") from error


class ReadableMemory:
    """Memory of this process that holders of `key` may read from other processes and hosts."""

    def __init__(self, context: Any, size_bytes: int) -> None:
        """Raises SchemeUnavailable where UCX cannot register the memory."""
        self.bytes = np.zeros(size_bytes, np.uint8)
        self.address: int = self.bytes.ctypes.data
        self._context = context
        self._handle = ctypes.c_void_p()
        params = _MemMapParams(_FIELD_ADDRESS | _FIELD_LENGTH, self.address, size_bytes)
        status = _library().ucp_mem_map(context.handle, ctypes.byref(params), ctypes.byref(self._handle))
        if status != _OK:
            raise SchemeUnavailable(f"UCX cannot register {size_bytes} bytes: {_reason(status)}")
        self.key = self._pack_key()

    def _pack_key(self) -> bytes:
        packed, size = ctypes.c_void_p(), ctypes.c_size_t()
        status = _library().ucp_rkey_pack(
            self._context.handle, self._handle, ctypes.byref(packed), ctypes.byref(size)
        )
        if status != _OK:
            raise SchemeUnavailable(f"UCX cannot share registered memory: {_reason(status)}")
        assert packed.value is not None
        key = ctypes.string_at(packed.value, size.value)
        _library().ucp_rkey_buffer_release(packed)
        return key

    def close(self) -> None:
        """From now on network cards refuse to read it; the memory itself lives as long as its array."""
        _library().ucp_mem_unmap(self._context.handle, self._handle)
        self._context = None


class RemoteMemory:
    """A peer's `ReadableMemory`."""

    def __init__(self, endpoint: Any, address: int, key: bytes) -> None:
        """endpoint: a `UCXEndpoint` to the peer. Raises PeerLost for a key that does not fit it."""
        self._endpoint = endpoint
        self._address = address
        self._key = ctypes.c_void_p()
        status = _library().ucp_ep_rkey_unpack(endpoint.handle, key, ctypes.byref(self._key))
        if status != _OK:
            raise PeerLost(f"UCX cannot reach the peer's memory: {_reason(status)}")

    def read(self, offset: int, target: memoryview) -> Read:
        """Starts to fill `target`, which has to stay until the end of the read, or of the endpoint."""
        request = _library().ucp_get_nbx(
            self._endpoint.handle,
            ctypes.addressof(ctypes.c_char.from_buffer(target)),
            len(target),
            self._address + offset,
            self._key,
            _NO_OPTIONS,
        )
        return Read(request)

    def close(self) -> None:
        """After the endpoint was closed, before its worker is: no read may be under way."""
        _library().ucp_rkey_destroy(self._key)
        self._endpoint = None


class Read:
    """A read that may be under way. Progress is its worker's."""

    def __init__(self, request: int | None) -> None:
        signed = ctypes.c_ssize_t(request or 0).value
        self._request = request if signed > 0 or signed < _LAST_ERROR else None
        self._status = _IN_PROGRESS if self._request else signed

    def is_done(self) -> bool:
        """Raises PeerLost for a read that failed."""
        if self._request is not None:
            self._status = _library().ucp_request_check_status(self._request)
            if self._status == _IN_PROGRESS:
                return False
            _library().ucp_request_free(self._request)
            self._request = None
        if self._status != _OK:
            raise PeerLost(f"reading the peer's memory over UCX: {_reason(self._status)}")
        return True
