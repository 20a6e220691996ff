"""What two agents say to each other, MessagePack-encoded; no field can be derived from another.

sender                                  receiver
Hello                 ->
                      <-                Challenge          (mutual proof of the cluster secret)
Proof                 ->
                      <-                Ready or Refused
Rendezvous            <->               Rendezvous         (only where a process group carries the blocks)
Attach                ->                                   (once a transfer: the ticket is taken up)
Push, Push, ...       ->                                   (blocks as bytes)
Lend, Digests, ...    ->                                   (or, over a shared pool, where they lie)
Abort                 ->                                   (only if the sender gives up)
                      <-                Ended              (once a transfer)

On `ucx` also Wire, Wired and Taken, of which `ucx_link` tells.
"""

from __future__ import annotations

import msgspec

PROTOCOL_VERSION = 2
NONCE_BYTES = 16
MAX_REASON_CHARS = 1000


class Hello(msgspec.Struct, frozen=True, tag="hello", kw_only=True):
    """version: of this protocol. nonce: 16 random bytes."""

    version: int
    scheme: str
    nonce: bytes


class Challenge(msgspec.Struct, frozen=True, tag="challenge", kw_only=True):
    """nonce: 16 random bytes. epoch: the listening agent's. mac: its proof of the secret."""

    nonce: bytes
    epoch: bytes
    mac: bytes


class Proof(msgspec.Struct, frozen=True, tag="proof", kw_only=True):
    """mac: the connecting agent's proof of the secret. num_blocks, block_bytes: shape of its pool; on `shm`
    the descriptors of the pool and of its read leases travel with this message. handle: how else the receiver
    reaches the pool (see `cuda_ipc`), else empty. The mac covers all of them but the descriptors."""

    mac: bytes
    num_blocks: int
    block_bytes: int
    handle: bytes = b""


class Ready(msgspec.Struct, frozen=True, tag="ready", kw_only=True):
    """The connection may be used. frame_bytes: the longest payload that is taken."""

    frame_bytes: int


class Refused(msgspec.Struct, frozen=True, tag="refused", kw_only=True):
    """error: class name in `errors`. The connection ends after this."""

    error: str
    reason: str


class Rendezvous(msgspec.Struct, frozen=True, tag="rendezvous", kw_only=True):
    """What one side says while a process group forms (see `pair_group`): torch's own key and value."""

    key: str
    value: bytes


class Attach(msgspec.Struct, frozen=True, tag="attach", kw_only=True):
    """This connection is the one that will fill the ticket's promise; slot, generation: from the ticket.

    first_head, heads: the model's KV heads whose rows will come, where the blocks are not whole; else 0.
    """

    slot: int
    generation: int
    first_head: int = 0
    heads: int = 0


class Push(msgspec.Struct, frozen=True, tag="push", kw_only=True):
    """Blocks of one transfer, whose bytes follow the frame's header.

    positions: int32, little-endian, of the request. digests: uint64, little-endian, one XXH3-64 for each
    `block_array.chunk_blocks` blocks, in order; empty where the agents do not check. staged_bytes: of the blocks,
    where they come beside the link instead (see `pair_group` and `ucx_link`), else 0.
    """

    slot: int
    generation: int
    positions: bytes
    digests: bytes
    staged_bytes: int = 0


class Lend(msgspec.Struct, frozen=True, tag="lend", kw_only=True):
    """Blocks of one transfer, to be copied from the sender's mapped pool.

    positions: int32, little-endian, of the request. block_ids: int32, little-endian, in the mapped pool.
    lease_slot, lease_stamp: leave to read them (see `leases`). is_digested: `Digests` of them follow.
    """

    slot: int
    generation: int
    positions: bytes
    block_ids: bytes
    lease_slot: int
    lease_stamp: int
    is_digested: bool


class Digests(msgspec.Struct, frozen=True, tag="digests", kw_only=True):
    """What lent blocks held. The receiver copies them while the sender computes this.

    positions: those of the `Lend`. digests: as in `Push`.
    """

    slot: int
    generation: int
    positions: bytes
    digests: bytes


class Wire(msgspec.Struct, frozen=True, tag="wire", kw_only=True):
    """The sender's way over UCX. worker: address of its worker. address, key: of its ring of frames. mark: the
    bytes that the ring starts with."""

    worker: bytes
    address: int
    key: bytes
    mark: bytes


class Wired(msgspec.Struct, frozen=True, tag="wired"):
    """The receiver has read the mark."""


class Taken(msgspec.Struct, frozen=True, tag="taken"):
    """The receiver has read the oldest frame of the ring."""


class Abort(msgspec.Struct, frozen=True, tag="abort", kw_only=True):
    """The sender gives the transfer up. error: class name in `errors`."""

    slot: int
    generation: int
    error: str
    reason: str


class Ended(msgspec.Struct, frozen=True, tag="ended", kw_only=True):
    """The receiver is through with a transfer. error: class name in `errors`, empty if all blocks landed."""

    generation: int
    error: str = ""
    reason: str = ""


Message = (
    Hello
    | Challenge
    | Proof
    | Ready
    | Refused
    | Rendezvous
    | Wire
    | Wired
    | Attach
    | Push
    | Taken
    | Lend
    | Digests
    | Abort
    | Ended
)

encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder(Message).decode
