"""A rank's transfer agent over its part of the KV pool."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from baton.engine.kv_pool import KVPool
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import Shard
from baton.errors import ConfigError
from baton.kvtransfer import rows
from baton.kvtransfer.agent import TransferAgent
from baton.kvtransfer.base import KVLayout, KVMemory
from baton.kvtransfer.errors import TransferError
from baton.kvtransfer.schemes import fastest_first

_log = logging.getLogger(__name__)


def make_agent(
    model: ModelConfig,
    pool: KVPool,
    shard: Shard,
    secret: bytes,
    schemes: Sequence[str],
    host: str,
    port: int = 0,
) -> TransferAgent:
    """model: the whole one. schemes: none for the fastest that this host has.

    Logs why a scheme is not offered. Raises ConfigError where none, or not the one asked for, can work here.
    """
    layout = KVLayout(
        model=model.fingerprint,
        dtype=model.dtype_name,
        block_size=pool.block_size,
        layers=model.num_layers,
        kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        tp_degree=shard.degree,
        tp_rank=shard.rank,
    )
    try:
        agent = TransferAgent(
            KVMemory(pool.bytes_view, pool.fd), layout, secret, schemes or fastest_first(), host, port
        )
    except TransferError as error:
        raise ConfigError(str(error), field="transport") from error
    for scheme, reason in agent.unavailable.items():
        _log.info("KV transport %s is not offered: %s", scheme, reason)
    if not rows.is_native_built():
        _log.warning(
            "KV blocks move without the native module, slower: it is built where a C compiler is found"
        )
    return agent
