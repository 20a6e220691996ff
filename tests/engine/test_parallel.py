"""How a model is split among ranks; that the ranks together compute the same is tested end to end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from baton.engine.checkpoint import Checkpoint
from baton.engine.engine_config import EngineConfig, complete
from baton.engine.linear import GatedLinear, Linear
from baton.engine.model_config import ModelConfig
from baton.engine.parallel import WHOLE, Shard
from baton.engine.weights import WeightLoader
from baton.errors import ConfigError

Folders = Callable[[str], Path]


def shards(degree: int) -> list[Shard]:
    return [Shard(degree, rank) for rank in range(degree)]


@pytest.mark.parametrize(
    ("variant", "degree"), [("llama", 2), ("llama", 4), ("llama-four-kv-heads", 2), ("mistral", 8)]
)
def test_every_query_head_finds_its_kv_head_on_its_own_rank(
    model_folder: Folders, variant: str, degree: int
) -> None:
    config = ModelConfig.from_folder(model_folder(variant))
    group = config.num_heads // config.num_kv_heads
    for shard in shards(degree):
        own = shard.config(config)
        heads = [row // config.head_dim for row in shard.query_rows(config)[:: config.head_dim]]
        kv_heads = [row // config.head_dim for row in shard.kv_rows(config)[:: config.head_dim]]
        assert (len(heads), len(kv_heads)) == (own.num_heads, own.num_kv_heads)
        own_group = own.num_heads // own.num_kv_heads
        assert [kv_heads[local // own_group] for local in range(len(heads))] == [h // group for h in heads]


@pytest.mark.parametrize("degree", [2, 4])
def test_the_parts_put_together_are_the_whole_weights(model_folder: Folders, degree: int) -> None:
    folder = model_folder("llama-mqa-biased")
    config = ModelConfig.from_folder(folder)

    def layer(shard: Shard) -> list[torch.Tensor]:
        loader = WeightLoader(Checkpoint(folder), torch.float32, torch.device("cpu"), shard)
        weights = loader.decoder(config).layers[0]
        assert isinstance(weights.gate, GatedLinear)
        assert isinstance(weights.qkv, Linear)
        gate, up = weights.gate.gate_up.weight.chunk(2)
        own = shard.config(config)
        queries, keys, values = torch.split(
            weights.qkv.weight,
            [heads * config.head_dim for heads in (own.num_heads, own.num_kv_heads, own.num_kv_heads)],
        )
        return [gate, up, queries, keys, values]

    gate, up, queries, keys, values = layer(WHOLE)
    parts = list(zip(*map(layer, shards(degree)), strict=True))
    for whole, part in zip((gate, up, queries), parts[:3], strict=True):
        assert torch.equal(torch.cat(part), whole)
    for whole, part in zip((keys, values), parts[3:], strict=True):  # one KV head, on every rank
        assert all(torch.equal(each, whole) for each in part)


@pytest.mark.parametrize(
    ("variant", "tp", "name"),
    [
        ("qwen3", 2, "num_key_value_heads, 3"),
        ("llama", 3, "num_attention_heads, 4"),
        ("mistral", 32, "num_attention_heads, 8"),
    ],
)
def test_a_degree_that_does_not_divide_the_model_is_refused_by_name(
    model_folder: Folders, variant: str, tp: int, name: str
) -> None:
    with pytest.raises(ConfigError, match=f"tp {tp} does not divide the model's {name}") as caught:
        complete(EngineConfig(model_folder(variant), tp=tp))
    assert caught.value.field == "tp"
