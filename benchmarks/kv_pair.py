"""Two processes, one that has blocks and one that lacks them, timed for the driver in `kvtransfer.py`.

Runs inside the peers' environments too, so it needs numpy alone.

    driver --- JSON lines on stdin and stdout --- sending process --- pipe --- receiving process

A hand-off is timed at the sender, from "all blocks are ready and what the receiver offered is known" until the
sender knows that all bytes have arrived. Before each one the receiver picks other blocks of its pool, and so
does the sender, so that nothing is measured on warm, adjoining memory. After each burst both compare what arrived.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]
Ids = NDArray[np.int32]

POOL_BYTES = 128 << 20
"""Four times the largest cache of common machines, so that blocks come from main memory."""

MODEL_BLOCK_BYTES = 30 * 2 * 16 * 3 * 64 * 2
"""One block of a 135M-parameter model: 30 layers, K and V, 16 tokens, 3 KV heads of 64, 2 bytes a value."""


class Case(NamedTuple):
    """One hand-off: `num_blocks` blocks scattered over pools of `POOL_BYTES`."""

    name: str
    num_blocks: int
    block_bytes: int

    @property
    def bytes(self) -> int:
        return self.num_blocks * self.block_bytes

    @property
    def pool_blocks(self) -> int:
        return POOL_BYTES // self.block_bytes


CASES = (
    Case("64 KiB × 1024", 1024, 64 << 10),
    Case("16 KiB × 4096", 4096, 16 << 10),
    Case("4 KiB × 4096", 4096, 4 << 10),
    Case("128 tokens of a 135M model", 8, MODEL_BLOCK_BYTES),
)


class Receiver(ABC):
    """blocks: uint8 [pool_blocks, block_bytes]."""

    blocks: Blocks

    @abstractmethod
    def hello(self) -> Any:
        """What the sender has to know of this end, once."""

    def greet(self, sender: Any) -> None:
        """Takes what the sender said of itself in return."""
        del sender

    @abstractmethod
    def offer(self, block_ids: Ids) -> Any:
        """What the sender has to know of one hand-off into `block_ids`."""

    @abstractmethod
    def settle(self) -> None:
        """Returns once the hand-off offered last is here."""

    @abstractmethod
    def close(self) -> None: ...


class Sender(ABC):
    blocks: Blocks

    def hello(self) -> Any:
        """What the receiver has to know in return for its own hello."""
        return None

    @abstractmethod
    def send(self, offer: Any, block_ids: Ids) -> tuple[float, Callable[[], None]]:
        """The timed part: hands the blocks over. Returns when this end knew that all had arrived (on the clock
        of `time.monotonic`), and what is left to tidy up untimed."""

    @abstractmethod
    def close(self) -> None: ...


MakeReceiver = Callable[[Case, list[str]], Receiver]
MakeSender = Callable[[Case, list[str], Any], Sender]


def fresh_blocks(case: Case) -> Blocks:
    """A pool in plain memory, every page of it touched."""
    return np.zeros((case.pool_blocks, case.block_bytes), np.uint8)


def fill(blocks: Blocks, seed: int) -> None:
    words = blocks.reshape(-1)[: blocks.size // 8 * 8].view(np.uint64)
    words[:] = np.random.default_rng(seed).integers(0, 1 << 63, len(words), np.uint64)


def digest(blocks: Blocks, ids: Ids) -> bytes:
    return hashlib.sha256(blocks[ids].data).digest()


def main(make_receiver: MakeReceiver, make_sender: MakeSender) -> None:
    """Answers the driver, a line for a line, until it ends this process."""
    die_with_parent()
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not get between the answers
    pipe, far_pipe = multiprocessing.Pipe()
    context = multiprocessing.get_context("spawn")
    context.Process(target=_receive, args=(far_pipe, make_receiver, sys.argv[1:]), daemon=True).start()
    far_pipe.close()
    sender: Sender | None = None
    for line in sys.stdin:
        asked = json.loads(line)
        if asked["word"] == "prepare":
            if sender is not None:
                sender.close()
            sender = _prepare(pipe, Case(*asked["case"]), make_sender)
            answer = []
        else:
            assert sender is not None, "no case was prepared"
            answer = _burst(pipe, sender, asked["repetitions"], asked["realtime"])
        print(json.dumps(answer), file=answers, flush=True)


def _prepare(pipe: Connection, case: Case, make_sender: MakeSender) -> Sender:
    pipe.send(("prepare", case))
    sender = make_sender(case, sys.argv[1:], pipe.recv())
    fill(sender.blocks, seed=1)
    pipe.send(("greet", sender.hello()))
    return sender


def _burst(pipe: Connection, sender: Sender, repetitions: int, realtime: bool) -> list[float]:
    """Seconds of each hand-off."""
    pipe.send(("realtime", realtime))
    set_realtime(realtime)
    seconds = []
    for _ in range(repetitions):
        pipe.send(("offer", None))
        offer = pipe.recv()
        ids = choose(sender.blocks, len(offer[0]))
        started_s = time.monotonic()
        acknowledged_s, tidy = sender.send(offer[1], ids)
        seconds.append(acknowledged_s - started_s)
        tidy()
    set_realtime(False)
    pipe.send(("check", digest(sender.blocks, ids)))
    if not pipe.recv():
        raise RuntimeError("other bytes arrived than were sent")
    return seconds


def _receive(pipe: Connection, make_receiver: MakeReceiver, arguments: list[str]) -> None:
    die_with_parent()
    receiver: Receiver | None = None
    case: Case
    ids = np.empty(0, np.int32)
    while True:
        word, given = pipe.recv()
        if word == "prepare":
            if receiver is not None:
                receiver.close()
            case = given
            receiver = make_receiver(case, arguments)
            pipe.send(receiver.hello())
            continue
        assert receiver is not None, word
        if word == "greet":
            receiver.greet(given)
        elif word == "realtime":
            set_realtime(given)
        elif word == "offer":
            ids = choose(receiver.blocks, case.num_blocks)
            pipe.send((ids, receiver.offer(ids)))
            receiver.settle()
        else:
            set_realtime(False)
            pipe.send(digest(receiver.blocks, ids) == given)


def die_with_parent() -> None:
    """Whatever becomes of the parent: a peer that polls must not poll for ever (prctl(2), PR_SET_PDEATHSIG)."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def choose(blocks: Blocks, count: int) -> Ids:
    """`count` different blocks of a pool, in random order."""
    return np.random.default_rng().permutation(len(blocks))[:count].astype(np.int32)


def set_realtime(wanted: bool) -> None:
    """Puts all threads of this process before (or back among) what else runs on the machine (sched(7)).

    Raises PermissionError where the user may not.
    """
    policy, priority = (os.SCHED_RR, 1) if wanted else (os.SCHED_OTHER, 0)
    for thread_id in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread_id), policy, os.sched_param(priority))
