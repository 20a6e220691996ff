"""A link over a stream socket, AF_UNIX or TCP, non-blocking throughout.

Sending happens wherever it is asked for: a short hand-off leaves from the caller's own thread, without a
switch to the I/O thread. What does not fit, or is long, goes on there.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import threading
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from baton.kvtransfer import messages
from baton.kvtransfer.errors import MalformedFrame, PeerLost, TransferError
from baton.kvtransfer.framing import FrameReader, FrameSigner
from baton.kvtransfer.io_thread import IOThread
from baton.kvtransfer.link import Link, LinkOwner, Pieces
from baton.kvtransfer.messages import Message

FRAMES_PER_TURN = 4
"""Frames that one call of `flush`, or one readiness of the socket, handles before others get their turn."""

MAX_FDS = 2


class _Control(NamedTuple):
    """fds travel with the message; after it, frames are signed with `next_key` where one is given."""

    message: Message
    fds: Sequence[int] = ()
    next_key: bytes = b""


class _Progress(enum.Enum):
    IDLE = enum.auto()
    BLOCKED = enum.auto()
    MORE = enum.auto()


class StreamLink(Link):
    def __init__(self, io: IOThread, sock: socket.socket) -> None:
        """Takes over `sock`, connected and non-blocking."""
        self.owner: LinkOwner
        self.received_fds: list[int] = []
        self.takes_fds = False
        self.reader = FrameReader()
        self._io = io
        self._sock = sock
        self._signer = FrameSigner()
        self._control: deque[_Control] = deque()
        self._unsent: deque[memoryview] = deque()
        self._unsent_fds: Sequence[int] = ()
        self._writing = threading.Lock()
        self._is_closed = False

    def start(self, owner: LinkOwner) -> None:
        """On the I/O thread: begins to read."""
        self.owner = owner
        self._io.loop.add_reader(self._sock, self._on_readable)

    # --- sending -------------------------------------------------------------------------------------------

    def send(self, message: Message, fds: Sequence[int] = (), next_key: bytes = b"") -> None:
        if not self._is_closed:
            self._control.append(_Control(message, fds, next_key))
            self.flush()

    def flush(self) -> None:
        if not self._writing.acquire(blocking=False):
            # Whoever is writing may have looked for frames just before ours came.
            self._io.post(self.flush)
            return
        try:
            progress = self._write()
        except OSError as error:
            lost = PeerLost(f"sending to the peer: {error.strerror}")
            self._io.post(lambda: self.close(lost))
            return
        finally:
            self._writing.release()
        if progress is _Progress.BLOCKED:
            self._io.post(self._await_writable)
        elif progress is _Progress.MORE:
            self._io.post(self.flush)

    def _write(self) -> _Progress:
        if self._is_closed:
            return _Progress.IDLE
        for _ in range(FRAMES_PER_TURN):
            if not self._unsent and not self._load():
                return _Progress.IDLE
            if not self._transmit():
                return _Progress.BLOCKED
        return _Progress.MORE

    def _load(self) -> bool:
        """Makes the next frame ready to leave; False where there is none."""
        if self._control:
            message, self._unsent_fds, next_key = self._control.popleft()
            self._frame(message, ())
            if next_key:
                self._signer.use_key(next_key)
            return True
        frame = self.owner.next_frame()
        if frame is None:
            return False
        self._frame(frame.message, frame.payload)
        return True

    def _frame(self, message: Message, payload: Pieces) -> None:
        header = messages.encode(message)
        prefix = self._signer.prefix(header, sum(map(len, payload)))
        self._unsent = deque((memoryview(prefix + header), *payload))

    def _transmit(self) -> bool:
        """Hands the frame to the kernel; False where it took only a part."""
        while self._unsent:
            ancillary = []
            if self._unsent_fds:
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", self._unsent_fds))]
            try:
                sent_bytes = self._sock.sendmsg(self._unsent, ancillary)
            except BlockingIOError:
                return False
            self._unsent_fds = ()
            while self._unsent and sent_bytes >= len(self._unsent[0]):
                sent_bytes -= len(self._unsent.popleft())
            if sent_bytes:
                self._unsent[0] = self._unsent[0][sent_bytes:]
        return True

    def release_payload(self) -> None:
        with self._writing:
            self._unsent = deque(memoryview(bytes(piece)) for piece in self._unsent)

    def _await_writable(self) -> None:
        if not self._is_closed:
            self._io.loop.add_writer(self._sock, self._on_writable)

    def _on_writable(self) -> None:
        self._io.loop.remove_writer(self._sock)
        self.flush()

    # --- receiving -----------------------------------------------------------------------------------------

    def _on_readable(self) -> None:
        try:
            for _ in range(FRAMES_PER_TURN):
                frame = self.reader.read(self._receive_into)
                if frame is None:
                    raise PeerLost("the peer closed the connection")
                self.owner.on_message(messages.decode(frame.header), frame.payload)
                if self._is_closed:
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self.close(PeerLost(f"receiving from the peer: {error.strerror}"))
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            self.close(MalformedFrame(f"a header that cannot be decoded: {error}"))
        except TransferError as error:
            self.close(error)

    def _receive_into(self, target: memoryview) -> int:
        if not self.takes_fds:
            return self._sock.recv_into(target)
        space = socket.CMSG_SPACE(MAX_FDS * array.array("i").itemsize)
        count, ancillary, _, _ = self._sock.recvmsg_into([target], space, socket.MSG_CMSG_CLOEXEC)
        for level, kind, data in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                self.received_fds.extend(array.array("i", data))
        if len(self.received_fds) > MAX_FDS:
            raise MalformedFrame(f"{len(self.received_fds)} descriptors, at most {MAX_FDS} are allowed")
        return count

    # --- the end -------------------------------------------------------------------------------------------

    def close(self, error: TransferError) -> None:
        if self._is_closed:
            return
        self._io.loop.remove_reader(self._sock)
        self._io.loop.remove_writer(self._sock)
        with self._writing:
            self._is_closed = True
            self._sock.close()
            self._control.clear()
            self._unsent.clear()
        self.drop_fds()
        self.reader.release()
        owner = self.owner
        del self.owner  # each refers to the other, and a peer's channel is not left to the garbage collector
        owner.on_closed(error)

    def drop_fds(self) -> None:
        """Closes the descriptors that came from the peer."""
        while self.received_fds:
            os.close(self.received_fds.pop())
