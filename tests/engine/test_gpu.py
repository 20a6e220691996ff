"""A GPU that cannot serve a model is told so before anything is loaded; by what the GPU is, without one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from baton.engine.gpu import Gpu
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import Shard
from baton.engine.weights import weight_count
from baton.errors import ConfigError

AMPERE = Gpu("cuda:1", "NVIDIA A100", (8, 0), 1000)


@pytest.mark.parametrize("capability", [(7, 5), (6, 1), (7, 10)])
def test_a_gpu_that_is_too_old_is_named_with_what_is_needed(capability: tuple[int, int]) -> None:
    with pytest.raises(ConfigError) as caught:
        replace(AMPERE, name="Tesla T4", capability=capability).require_new_enough()
    assert caught.value.field == "device"
    for part in ("'cuda:1'", "Tesla T4", ".".join(map(str, capability)), "at least 8.0"):
        assert part in caught.value.message


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (12, 0)])
def test_a_newer_gpu_is_taken(capability: tuple[int, int]) -> None:
    replace(AMPERE, capability=capability).require_new_enough()


def test_a_gpu_without_room_is_named_with_all_three_figures() -> None:
    with pytest.raises(
        ConfigError, match=r"1000 bytes free.* weights take 900 bytes .* at least 101"
    ) as caught:
        AMPERE.require_room(weight_bytes=900, kv_bytes=101)
    assert caught.value.field == "device"


def test_weights_and_pool_may_take_all_that_is_free() -> None:
    AMPERE.require_room(weight_bytes=900, kv_bytes=100)


def test_the_parts_of_a_model_are_counted_as_they_are_split(model_folder: Callable[[str], Path]) -> None:
    whole = ModelConfig.from_folder(model_folder("llama"))
    layer = whole.hidden_size * (
        2 * whole.head_dim * (whole.num_heads + whole.num_kv_heads) + 3 * whole.intermediate_size
    )
    assert weight_count(whole) - weight_count(Shard(2).config(whole)) == whole.num_layers * layer // 2
