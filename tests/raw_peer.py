"""A sender that speaks the protocol by hand, over a blocking socket, and may say what no agent would."""

from __future__ import annotations

import array
import secrets
import socket
from collections.abc import Sequence

from transfer_ends import SECRET, WAIT_S

from baton.kvtransfer.framing import FrameReader, FrameSigner
from baton.kvtransfer.handshake import _Transcript
from baton.kvtransfer.messages import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Challenge,
    Hello,
    Message,
    Proof,
    Ready,
    decode,
    encode,
)


class RawPeer:
    """Connected to `endpoint`, tcp:// or shm://, but not introduced yet."""

    def __init__(self, endpoint: str) -> None:
        self._scheme, _, address = endpoint.partition("://")
        if self._scheme == "tcp":
            host, _, port = address.partition(":")
            self._sock = socket.create_connection((host, int(port)), timeout=WAIT_S)
        else:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._sock.settimeout(WAIT_S)
            self._sock.connect(b"\0" + address.encode())
        self._signer = FrameSigner()
        self._reader = FrameReader()

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *error: object) -> None:
        self._sock.close()

    def introduce(
        self, num_blocks: int = 64, block_bytes: int = 4096, fds: Sequence[int] = ()
    ) -> Message | None:
        """Proves the secret, and claims a pool of that shape; what the receiver answers."""
        hello = Hello(version=PROTOCOL_VERSION, scheme=self._scheme, nonce=secrets.token_bytes(NONCE_BYTES))
        self.send(hello)
        challenge = self.receive()
        assert isinstance(challenge, Challenge)
        transcript = _Transcript(SECRET, self._scheme, (hello.nonce, challenge.nonce), challenge.epoch)
        mac = transcript.proof_mac(num_blocks, block_bytes)
        proof = self.frame(Proof(mac=mac, num_blocks=num_blocks, block_bytes=block_bytes))
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        self._sock.sendmsg([proof], ancillary)
        answer = self.receive()
        if isinstance(answer, Ready):
            self._signer.use_key(transcript.derive(b"sender key"))
            self._reader.signer.use_key(transcript.derive(b"receiver key"))
            self._reader.allow(payload_bytes=0)
        return answer

    def frame(self, message: Message, payload: bytes = b"") -> bytes:
        return self.frame_of(encode(message), payload)

    def frame_of(self, header: bytes, payload: bytes = b"") -> bytes:
        """The next frame of this connection, rightly signed."""
        return self._signer.prefix(header, len(payload)) + header + payload

    def send(self, message: Message, payload: bytes = b"") -> None:
        self.send_bytes(self.frame(message, payload))

    def send_bytes(self, content: bytes) -> None:
        self._sock.sendall(content)

    def receive(self) -> Message | None:
        """None once the receiver has closed the connection."""
        try:
            frame = self._reader.read(self._sock.recv_into)
        except ConnectionResetError:
            return None
        if frame is None:
            return None
        message: Message = decode(frame.header)
        return message
