"""A model folder that a whole cluster can serve: random weights, and the demo model's tokenizer."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from baton import demo_model
from baton.engine.architecture import Architecture, read_architecture
from baton.engine.hf_files import ConfigFile, read_json
from baton.engine.weights import expected_shapes

LAYERS = 12
SHAPE = {
    "hidden_size": 576,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
"""SmolLM-135M's, with fewer layers: large enough that computing a token takes longer than sending it."""

SHARD_BYTES = 2 << 30

Shape = tuple[int, ...]


def make_servable(folder: Path, layers: int = LAYERS) -> None:
    """Writes the model into `folder`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model.PATH / name, folder / name)
    config = json.loads((demo_model.PATH / "config.json").read_text()) | SHAPE | {"num_hidden_layers": layers}
    (folder / "config.json").write_text(json.dumps(config))
    save_weights(folder)


def save_weights(folder: Path, device: str = "cpu") -> Architecture:
    """Random bfloat16 weights for the config.json in `folder`, the same ones each time; drawn on `device`. Returns
    what they are the weights of."""
    architecture = read_architecture(folder, read_json(folder / "config.json", ConfigFile))
    generator = torch.Generator(device).manual_seed(0)
    shards = _shards(expected_shapes(architecture))
    file_of: dict[str, str] = {}
    for number, shapes in enumerate(shards):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05d}.safetensors"
        weights = {name: _random(shape, generator) for name, shape in shapes.items()}
        save_file(weights, folder / file, {"format": "pt"})
        file_of |= dict.fromkeys(shapes, file)
    if len(shards) > 1:
        index = {"metadata": {}, "weight_map": file_of}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return architecture


def _shards(shapes: dict[str, Shape]) -> list[dict[str, Shape]]:
    """`shapes` in their order, shared out among files that fit into memory."""
    shards: list[dict[str, Shape]] = [{}]
    room_bytes = SHARD_BYTES
    for name, shape in shapes.items():
        size_bytes = math.prod(shape) * torch.bfloat16.itemsize
        if shards[-1] and size_bytes > room_bytes:
            shards.append({})
            room_bytes = SHARD_BYTES
        shards[-1][name] = shape
        room_bytes -= size_bytes
    return shards


def _random(shape: Shape, generator: torch.Generator) -> torch.Tensor:
    if len(shape) == 1:  # of a norm
        return torch.ones(shape, dtype=torch.bfloat16)
    return (0.02 * torch.randn(shape, generator=generator, device=generator.device)).bfloat16().cpu()


def vocabulary(folder: Path) -> int:
    """How many token ids the model in `folder` knows."""
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size
