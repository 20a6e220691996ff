"""A process group of torch.distributed between exactly two agents, which carries bytes and nothing else.

The groups here stand apart from torch's default group, which belongs to the engine, and there may be any number
of them. The two sides meet through the pair's authenticated link, not through a TCPStore, whose port would take
anybody's word: what one side tells its `LinkStore` becomes a `Rendezvous` message.

gloo and NCCL know no peer's proof of a secret on the connections that they then open, which is the risk that
remains: see `nccl`.
"""

from __future__ import annotations

import contextlib
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import Store

from baton.kvtransfer.errors import MalformedFrame, PeerLost
from baton.kvtransfer.messages import Rendezvous

PIECE_BYTES = 256 << 10
"""A payload leaves, and arrives, as one batch of sends (receives) of so much each."""

CONNECT_S = 3.0
"""Longest that two sides take to connect once they know each other's addresses; nothing can end it sooner."""

POLL_S = 20e-6
"""Between two looks at a batch that is under way on a GPU."""

MAX_KEYS = 64
_PAYLOAD, _GREETING, _BREAK = range(3)
"""Tags, so that no kind of message is ever taken for another."""

SENDER, RECEIVER = 0, 1
"""Ranks."""

Operation = Callable[[], dist.Work]


class LinkStore(Store):
    """The meeting point of one group; called by torch from the thread that forms it."""

    def __init__(self, send: Callable[[Rendezvous], None], timeout_s: float) -> None:
        super().__init__()
        self._send = send
        self._timeout_s = timeout_s
        self._values: dict[str, bytes] = {}
        self._changed = threading.Condition()
        self._is_closed = False

    def hear(self, message: Rendezvous) -> None:
        """The peer's word. Raises MalformedFrame where it says too much."""
        with self._changed:
            if len(self._values) >= MAX_KEYS:
                raise MalformedFrame(f"more than {MAX_KEYS} keys for one process group")
            self._values[message.key] = message.value
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all waiting."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def set(self, key: str, value: bytes | str) -> None:
        held = value.encode() if isinstance(value, str) else value
        with self._changed:
            self._values[key] = held
        self._send(Rendezvous(key=key, value=held))

    def get(self, key: str) -> bytes:
        self.wait([key])
        return self._values[key]

    def check(self, keys: list[str]) -> bool:
        return all(key in self._values for key in keys)

    def wait(self, keys: list[str], timeout: timedelta | None = None) -> None:
        """Raises PeerLost where the peer does not say them in time."""
        wait_s = self._timeout_s if timeout is None else min(self._timeout_s, timeout.total_seconds())
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or self.check(keys), wait_s)
            if self.check(keys):
                return  # though closed: a side that goes on to connect spares the other a wait in vain
            if self._is_closed:
                raise PeerLost("given up while the process group was formed")
            raise PeerLost(f"the peer did not join the process group within {wait_s} s")


class Backend(Protocol):
    """What torch's backends have and its stubs leave out."""

    def send(self, tensors: list[Tensor], dst: int, tag: int) -> dist.Work: ...

    def recv(self, tensors: list[Tensor], src: int, tag: int) -> dist.Work: ...


class PairGroup(ABC):
    """One side of a group. All but `break_off` blocks, for `timeout_s` at most, and belongs to one thread.

    Raises PeerLost for what gloo and NCCL report and for what takes too long; the group is of no use after.
    """

    def __init__(self, store: LinkStore, rank: int, timeout_s: float) -> None:
        self._store = store
        self._rank = rank
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        self._backend: Backend | None = None
        self._is_broken = False

    @abstractmethod
    def _make(self, store: LinkStore, rank: int) -> Backend: ...

    @abstractmethod
    def _batch(self, backend: Backend, operations: Sequence[Operation]) -> None:
        """Begins all and waits for all."""

    @abstractmethod
    def _break(self, backend: Backend) -> None:
        """Makes every wait on the group end with an error soon."""

    def meet(self) -> None:
        """Forms the group, and proves with a byte each way that both sides reach each other."""
        with _named("forming the process group"):
            backend = self._make(self._store, self._rank)
        with self._lock:
            self._backend = backend
        greeting = [self._greeting()]
        if self._rank == SENDER:
            self._send(greeting, _GREETING)
            self._receive(greeting, _GREETING)
        else:
            self._receive(greeting, _GREETING)
            self._send(greeting, _GREETING)

    def _greeting(self) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8)

    def send(self, payload: Tensor) -> None:
        """payload: uint8 [n]."""
        self._send(torch.split(payload, PIECE_BYTES), _PAYLOAD)

    def receive(self, into: Tensor) -> None:
        """into: uint8 [n], as many as the peer sends."""
        self._receive(torch.split(into, PIECE_BYTES), _PAYLOAD)

    def _send(self, pieces: Sequence[Tensor], tag: int) -> None:
        with _named("sending over the process group"):
            send = self._whole().send
            self._batch(self._whole(), [partial(send, [piece], 1 - self._rank, tag) for piece in pieces])

    def _receive(self, pieces: Sequence[Tensor], tag: int) -> None:
        with _named("receiving over the process group"):
            recv = self._whole().recv
            self._batch(self._whole(), [partial(recv, [piece], 1 - self._rank, tag) for piece in pieces])

    def _whole(self) -> Backend:
        if self._backend is None or self._is_broken:
            raise PeerLost("the process group was given up")
        return self._backend

    def break_off(self) -> None:
        """From any thread: whoever waits for the peer gets an error instead."""
        self._store.close()
        with self._lock:
            self._is_broken = True
            if self._backend is not None:
                self._break(self._backend)

    def dissolve(self) -> None:
        """Frees the connections."""
        with self._lock:
            self._backend = None


class GlooGroup(PairGroup):
    """Between pools in host memory."""

    def __init__(
        self, store: LinkStore, rank: int, timeout_s: float, device: dist.ProcessGroupGloo.Device
    ) -> None:
        """device: where this side listens; one may serve many groups."""
        super().__init__(store, rank, timeout_s)
        self._device: dist.ProcessGroupGloo.Device | None = device

    def dissolve(self) -> None:
        super().dissolve()
        self._device = None  # its descriptors go with the last who holds it

    def _make(self, store: LinkStore, rank: int) -> Backend:
        gloo: Any = dist.ProcessGroupGloo  # torch's stubs lack this constructor
        options = gloo._Options()
        options._devices = [self._device]
        options._threads = 1  # for collectives, of which there are none
        options._timeout = timedelta(seconds=CONNECT_S / 5)  # gloo waits five times as long to be connected
        backend: Backend = gloo(store, rank, 2, options)
        return backend

    def _batch(self, backend: Backend, operations: Sequence[Operation]) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        for work in [begin() for begin in operations]:
            left_s = max(0.001, deadline_s - time.monotonic())
            work.wait(timedelta(seconds=left_s))

    def _break(self, backend: Backend) -> None:
        # gloo has no abort, but a wait that takes too long closes the pair, and with it ends all other waits.
        with contextlib.suppress(RuntimeError):
            never_sent = backend.recv([torch.empty(1, dtype=torch.uint8)], 1 - self._rank, _BREAK)
            never_sent.wait(timedelta(milliseconds=1))


class NcclGroup(PairGroup):
    """Between pools on CUDA devices."""

    def __init__(self, store: LinkStore, rank: int, timeout_s: float, device: torch.device) -> None:
        super().__init__(store, rank, timeout_s)
        self._device = device

    def _make(self, store: LinkStore, rank: int) -> Backend:
        torch.cuda.set_device(self._device)  # of this thread
        nccl: Any = dist.ProcessGroupNCCL  # as with gloo
        backend: Backend = nccl(store, rank, 2, nccl.Options())
        return backend

    def _greeting(self) -> Tensor:
        return torch.zeros(1, dtype=torch.uint8, device=self._device)

    def _batch(self, backend: Any, operations: Sequence[Operation]) -> None:
        deadline_s = time.monotonic() + self._timeout_s
        backend._start_coalescing()
        for begin in operations:
            begin()
        work = backend._end_coalescing()
        while not work.is_completed():  # CUDA has no wait with a deadline
            if time.monotonic() > deadline_s:
                raise RuntimeError(f"the peer moved nothing for {self._timeout_s} s")
            time.sleep(POLL_S)
        work.wait()  # raises what went wrong
        torch.cuda.current_stream().synchronize()

    def _break(self, backend: Any) -> None:
        with contextlib.suppress(RuntimeError):  # it may be broken already
            backend.abort()


@contextlib.contextmanager
def _named(what: str) -> Iterator[None]:
    """torch's errors are all RuntimeError, with its source's file and line in front."""
    try:
        yield
    except RuntimeError as error:
        reason = str(error).partition("\n")[0].rpartition("] ")[2]
        raise PeerLost(f"{what}: {reason}") from error
