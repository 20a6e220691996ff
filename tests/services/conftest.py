"""Engines are built once a module; every test gets fresh schedulers and agents over them, and has to leave
both pools as it found them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stepped_pair import Pair, make_engine

from baton.decode.limits import DecodeLimits
from baton.engine.engine import Engine
from baton.prefill.scheduler import PrefillLimits

MakePair = Callable[..., Pair]


@pytest.fixture(scope="package")
def engine_of(model_folder: Callable[[str], Path]) -> Iterator[Callable[[str, int], Engine]]:
    """An engine by name and number of blocks; the same one for the same arguments."""
    engines: dict[tuple[str, int], Engine] = {}

    def engine(name: str, kv_blocks: int) -> Engine:
        if (name, kv_blocks) not in engines:
            engines[name, kv_blocks] = make_engine(model_folder("llama"), kv_blocks)
        return engines[name, kv_blocks]

    yield engine
    for built in engines.values():
        built.close()


@pytest.fixture
def make_pair(engine_of: Callable[[str, int], Engine]) -> Iterator[MakePair]:
    """`make_pair(prefill_blocks=…, decode_blocks=…, prefill=PrefillLimits(…), decode=DecodeLimits(…))`."""
    pairs: list[Pair] = []

    def make(
        prefill_blocks: int = 64,
        decode_blocks: int = 64,
        prefill: PrefillLimits | None = None,
        decode: DecodeLimits | None = None,
    ) -> Pair:
        engines = engine_of("prefill", prefill_blocks), engine_of("decode", decode_blocks)
        pairs.append(Pair(*engines, prefill, decode))
        return pairs[-1]

    yield make
    for pair in pairs:
        pair.close()


@pytest.fixture
def oracle(engine_of: Callable[[str, int], Engine]) -> Engine:
    """An engine of its own for undisturbed reference runs."""
    return engine_of("oracle", 64)
