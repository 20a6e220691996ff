"""What the engines of `engine.py` are asked to do, and the loop in which each answers from its own process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from safetensors.torch import save_file

from baton.engine.architecture import read_architecture
from baton.engine.hf_files import ConfigFile, read_json
from baton.engine.weights import expected_shapes

VOCAB = 49152
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 576,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "vocab_size": VOCAB,
    "tie_word_embeddings": True,
    "max_position_embeddings": 8192,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "dtype": "bfloat16",
    "bos_token_id": 0,
    "eos_token_id": 0,
}
"""A Llama of 135 million parameters (SmolLM's shape)."""

REALTIME_PRIORITY = 1


class Work(NamedTuple):
    """kind: "prefill" of `batch` prompts of `tokens`, or "decode" of as many sequences behind as many tokens."""

    kind: str
    batch: int
    tokens: int
    target: float | None = None

    @property
    def name(self) -> str:
        return f"{self.kind} {self.batch} × {self.tokens}"

    @property
    def tokens_a_time(self) -> int:
        """Tokens that one repetition computes."""
        return self.batch * self.tokens if self.kind == "prefill" else self.batch


class Contender(Protocol):
    def burst(self, work: Work, repetitions: int) -> list[float]:
        """Seconds of each prefill or decode step, after one that does not count."""
        ...


def make_folder(folder: Path) -> None:
    """A model folder with random bfloat16 weights, the same ones each time."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    generator = torch.Generator().manual_seed(0)
    architecture = read_architecture(folder, read_json(folder / "config.json", ConfigFile))
    weights = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in expected_shapes(architecture).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def prompts(work: Work) -> list[list[int]]:
    """Token ids, the same for every contender."""
    generator = torch.Generator().manual_seed(1)
    ids: list[list[int]] = torch.randint(VOCAB, (work.batch, work.tokens), generator=generator).tolist()
    return ids


def answer(contender: Contender) -> None:
    """Carries out bursts that come as lines of JSON, [work, repetitions, realtime], until there are no more."""
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        work, repetitions, realtime = json.loads(line)
        with _ahead_of_others(realtime):
            seconds = contender.burst(Work(*work), repetitions)
        print(json.dumps(seconds), flush=True)


@contextmanager
def _ahead_of_others(is_wanted: bool) -> Iterator[None]:
    """All threads of this process go before all else that runs on the machine; needs root."""
    if not is_wanted:
        yield
        return
    _schedule(os.SCHED_RR, REALTIME_PRIORITY)
    try:
        yield
    finally:
        _schedule(os.SCHED_OTHER, 0)


def _schedule(policy: int, priority: int) -> None:
    for thread in os.listdir("/proc/self/task"):
        os.sched_setscheduler(int(thread), policy, os.sched_param(priority))


def command(arguments: Sequence[str]) -> tuple[Path, int]:
    """The folder and the threads that a contender's process is given."""
    folder, threads = arguments
    return Path(folder), int(threads)
