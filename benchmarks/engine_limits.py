"""What the machine could do at best: how fast it reads memory and multiplies in bfloat16."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from engine_model import CONFIG
from engine_work import VOCAB, Work

READ_BYTES = 512 << 20
SIDE = 2048
TIMES = 5
WEIGHT_BYTES = 2

LAYERS = int(CONFIG["num_hidden_layers"])
HIDDEN = int(CONFIG["hidden_size"])
QUERIES = int(CONFIG["num_attention_heads"]) * int(CONFIG["head_dim"])
KEYS = int(CONFIG["num_key_value_heads"]) * int(CONFIG["head_dim"])
LAYER_WEIGHTS = LAYERS * HIDDEN * (2 * QUERIES + 2 * KEYS + 3 * int(CONFIG["intermediate_size"]))
HEAD_WEIGHTS = HIDDEN * VOCAB
KV_BYTES = LAYERS * 2 * KEYS * WEIGHT_BYTES
"""Of one token."""


class Limits(NamedTuple):
    read_bytes_per_s: float
    product_flop_per_s: float

    def seconds(self, work: Work) -> float:
        """The least that one pass or step can take: every weight and key is read once, every product computed."""
        return max(_bytes(work) / self.read_bytes_per_s, _flop(work) / self.product_flop_per_s)


def measure() -> Limits:
    """With torch's kernels and as many threads as torch has; the best of some tries."""
    memory = torch.ones(READ_BYTES // 4)
    a, b = torch.ones(2, SIDE, SIDE, dtype=torch.bfloat16)
    return Limits(READ_BYTES / _least_s(memory.sum), 2 * SIDE**3 / _least_s(lambda: a @ b))


def _least_s(work: Callable[[], object]) -> float:
    seconds = []
    for _ in range(TIMES):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def _bytes(work: Work) -> float:
    return WEIGHT_BYTES * (LAYER_WEIGHTS + HEAD_WEIGHTS) + work.batch * work.tokens * KV_BYTES


def _flop(work: Work) -> float:
    """A causal prompt sees half of its keys on average."""
    seen = work.tokens / 2 if work.kind == "prefill" else work.tokens
    tokens = work.tokens_a_time
    layers = tokens * (2 * LAYER_WEIGHTS + 4 * LAYERS * QUERIES * seen)
    return layers + 2 * work.batch * HEAD_WEIGHTS
