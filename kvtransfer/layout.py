"""How one rank's KV pool lies in memory, and which pairs of pools can exchange blocks.

A block is [layers, 2 (key, value), block_size, KV heads of the rank, head_dim] values. Between two pools of one
model the block size, the dtype and the tensor parallelism (TP) may differ: `plan` converts. All else must agree.
Needs msgspec alone, so that a router can judge pairs without loading an engine's libraries.
"""

from __future__ import annotations

import msgspec

from baton.kvtransfer.errors import LayoutMismatch

VALUE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Dtypes that convert into each other: exactly where the wider holds the narrower, else rounded to nearest even."""

_AGREEING = ("model", "weight_version", "layers", "kv_heads", "head_dim")


class KVLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What has to be known of two pools before a block of one means anything in the other.

    model: fingerprint of weights and configuration, whatever the dtype. dtype: torch's name, as "bfloat16".
    block_size: tokens a block. kv_heads: of the whole model; `heads` are those of this rank. Pools whose dtype
    is not in VALUE_BYTES exchange blocks with equal ones only.
    """

    model: str
    dtype: str
    block_size: int
    layers: int
    kv_heads: int
    head_dim: int
    tp_degree: int = 1
    tp_rank: int = 0
    weight_version: str = ""

    @property
    def replicas(self) -> int:
        """Ranks that hold the same KV heads: more than one where the TP degree exceeds the heads."""
        return max(1, self.tp_degree // self.kv_heads)

    @property
    def heads(self) -> range:
        """The model's KV heads that this rank holds, as Megatron-LM splits them
        (https://arxiv.org/abs/1909.08053): rank r of n the r-th part, neighbours the same one head where there
        are more ranks than heads."""
        if self.tp_degree > self.kv_heads:
            head = self.tp_rank // self.replicas
            return range(head, head + 1)
        count = self.kv_heads // self.tp_degree
        return range(self.tp_rank * count, (self.tp_rank + 1) * count)

    @property
    def value_bytes(self) -> int:
        """Raises LayoutMismatch for a dtype that cannot be converted."""
        if self.dtype not in VALUE_BYTES:
            raise LayoutMismatch(f"dtype {self.dtype!r} cannot be converted (can: {', '.join(VALUE_BYTES)})")
        return VALUE_BYTES[self.dtype]

    @property
    def block_values(self) -> int:
        return self.layers * 2 * self.block_size * len(self.heads) * self.head_dim

    @property
    def block_bytes(self) -> int:
        return self.block_values * self.value_bytes

    def require_sound(self) -> None:
        """Raises LayoutMismatch naming a size that no pool can have."""
        for name in ("block_size", "layers", "kv_heads", "head_dim", "tp_degree"):
            if getattr(self, name) < 1:
                raise LayoutMismatch(f"{name} is {getattr(self, name)}, at least 1 is needed")
        if not 0 <= self.tp_rank < self.tp_degree:
            raise LayoutMismatch(f"tp_rank {self.tp_rank} is outside a tp_degree of {self.tp_degree}")
        if self.kv_heads % self.tp_degree and self.tp_degree % self.kv_heads:
            raise LayoutMismatch(f"tp_degree {self.tp_degree} does not divide {self.kv_heads} kv_heads")

    def require_convertible(self, other: KVLayout) -> None:
        """Raises LayoutMismatch naming the first field in which the two can never be brought together."""
        can_convert = {self.dtype, other.dtype} <= VALUE_BYTES.keys()
        for name in _AGREEING if can_convert else self.__struct_fields__:
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine != theirs:
                raise LayoutMismatch(f"KV layout differs in {name}: {mine!r} here, {theirs!r} at the peer")
        self.require_sound()
        other.require_sound()
