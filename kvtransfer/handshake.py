"""How two agents prove to each other that they hold the cluster secret, before anything else is said.

Challenge and response with HMAC-SHA256 over both sides' nonces, the scheme and the receiver's epoch (so that a
restarted receiver is never taken for its predecessor); the connection's two keys come from the same transcript.
"""

from __future__ import annotations

import hmac
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from baton.kvtransfer.errors import MalformedFrame, PeerLost, TransferError, Unauthenticated, from_peer
from baton.kvtransfer.link import LinkOwner, Outbound, unexpected
from baton.kvtransfer.messages import (
    NONCE_BYTES,
    PROTOCOL_VERSION,
    Challenge,
    Hello,
    Message,
    Proof,
    Ready,
    Refused,
)
from baton.kvtransfer.stream_link import StreamLink


class _Transcript:
    """All that both sides have said before the proofs; every part is length-prefixed."""

    def __init__(self, secret: bytes, scheme: str, nonces: tuple[bytes, bytes], epoch: bytes) -> None:
        parts = (scheme.encode(), *nonces, epoch)
        self._text = b"".join(len(part).to_bytes(4, "little") + part for part in parts)
        self._secret = secret

    def derive(self, purpose: bytes, extra: str = "") -> bytes:
        return hmac.digest(self._secret, purpose + b"\0" + self._text + extra.encode(), "sha256")

    def proof_mac(self, num_blocks: int, block_bytes: int, handle: bytes = b"") -> bytes:
        return self.derive(b"sender", f"{num_blocks} {block_bytes} {handle.hex()}")


class _Handshake(LinkOwner, ABC):
    """A link's first owner."""

    def __init__(self, link: StreamLink, on_failed: Callable[[TransferError], None]) -> None:
        self._link = link
        self._on_failed = on_failed
        self._nonce = secrets.token_bytes(NONCE_BYTES)
        self._transcript: _Transcript | None = None

    @abstractmethod
    def on_message(self, message: Message, payload: memoryview) -> None: ...

    def on_closed(self, error: TransferError) -> None:
        self._on_failed(error)

    def next_frame(self) -> Outbound | None:
        return None


class SenderHandshake(_Handshake):
    """The connecting side's. `epoch`: of the agent that it means to reach. `proof` is sent with `fds`."""

    def __init__(
        self,
        link: StreamLink,
        scheme: str,
        secret: bytes,
        epoch: bytes,
        pool: tuple[int, int, bytes],
        fds: Sequence[int],
        on_ready: Callable[[int], None],
        on_failed: Callable[[TransferError], None],
    ) -> None:
        """pool: (num_blocks, block_bytes, handle) of the local pool, as in `Proof`. on_ready: gets the longest
        payload that the peer takes, in bytes."""
        super().__init__(link, on_failed)
        self._scheme, self._secret, self._epoch = scheme, secret, epoch
        self._pool, self._fds = pool, fds
        self._on_ready = on_ready

    def begin(self) -> None:
        self._link.start(self)
        self._link.send(Hello(version=PROTOCOL_VERSION, scheme=self._scheme, nonce=self._nonce))

    def on_message(self, message: Message, payload: memoryview) -> None:
        match message:
            case Challenge() if self._transcript is None:
                self._answer(message)
            case Ready() if self._transcript is not None:
                self._link.reader.signer.use_key(self._transcript.derive(b"receiver key"))
                self._on_ready(message.frame_bytes)
            case Refused():
                raise from_peer(message.error, f"refused by the peer: {message.reason}")
            case _:
                raise unexpected(message)

    def _answer(self, challenge: Challenge) -> None:
        nonces = (self._nonce, challenge.nonce)
        transcript = self._transcript = _Transcript(self._secret, self._scheme, nonces, challenge.epoch)
        if not hmac.compare_digest(challenge.mac, transcript.derive(b"receiver")):
            raise Unauthenticated("the peer does not hold this cluster's secret")
        if challenge.epoch != self._epoch:
            raise PeerLost(f"the peer has restarted: epoch {challenge.epoch.hex()}, not {self._epoch.hex()}")
        num_blocks, block_bytes, handle = self._pool
        mac = transcript.proof_mac(num_blocks, block_bytes, handle)
        proof = Proof(mac=mac, num_blocks=num_blocks, block_bytes=block_bytes, handle=handle)
        self._link.send(proof, self._fds, transcript.derive(b"sender key"))


class ReceiverHandshake(_Handshake):
    """The listening side's. `admit` makes the link ready for a proven peer's frames and returns the longest payload
    that it takes, in bytes, or raises."""

    def __init__(
        self,
        link: StreamLink,
        scheme: str,
        secret: bytes,
        epoch: bytes,
        admit: Callable[[Proof], int],
        on_failed: Callable[[TransferError], None],
    ) -> None:
        super().__init__(link, on_failed)
        self._scheme, self._secret, self._epoch = scheme, secret, epoch
        self._admit = admit

    def begin(self) -> None:
        self._link.start(self)

    def on_message(self, message: Message, payload: memoryview) -> None:
        try:
            match message:
                case Hello() if self._transcript is None:
                    self._challenge(message)
                case Proof() if self._transcript is not None:
                    self._accept(message, self._transcript)
                case _:
                    raise unexpected(message)
        except TransferError as error:
            self._link.send(Refused(error=type(error).__name__, reason=str(error)))
            raise

    def _challenge(self, hello: Hello) -> None:
        if hello.version != PROTOCOL_VERSION:
            raise MalformedFrame(f"protocol version {hello.version}: {PROTOCOL_VERSION} is spoken here")
        if hello.scheme != self._scheme or len(hello.nonce) != NONCE_BYTES:
            raise MalformedFrame(f"a greeting for {hello.scheme!r} with a nonce of {len(hello.nonce)} bytes")
        nonces = (hello.nonce, self._nonce)
        transcript = self._transcript = _Transcript(self._secret, self._scheme, nonces, self._epoch)
        self._link.send(Challenge(nonce=self._nonce, epoch=self._epoch, mac=transcript.derive(b"receiver")))

    def _accept(self, proof: Proof, transcript: _Transcript) -> None:
        mac = transcript.proof_mac(proof.num_blocks, proof.block_bytes, proof.handle)
        if not hmac.compare_digest(proof.mac, mac):
            raise Unauthenticated("the connecting peer does not hold this cluster's secret")
        self._link.reader.signer.use_key(transcript.derive(b"sender key"))
        self._link.send(Ready(frame_bytes=self._admit(proof)), next_key=transcript.derive(b"receiver key"))
