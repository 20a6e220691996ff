"""A model folder that a whole cluster can serve: random weights, and the demo model's tokenizer."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from baton import demo_model
from baton.engine.architecture import read_architecture
from baton.engine.hf_files import ConfigFile, read_json
from baton.engine.weights import expected_shapes

SHAPE = {
    "hidden_size": 576,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "intermediate_size": 1536,
    "max_position_embeddings": 8192,
    "dtype": "bfloat16",
}
"""SmolLM-135M's, with fewer layers: large enough that computing a token takes longer than sending it."""


def make_servable(folder: Path) -> None:
    """Writes the model into `folder`."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(demo_model.PATH / name, folder / name)
    config = json.loads((demo_model.PATH / "config.json").read_text()) | SHAPE
    (folder / "config.json").write_text(json.dumps(config))
    save_weights(folder)


def save_weights(folder: Path) -> None:
    """Random bfloat16 weights for the config.json in `folder`, the same ones each time."""
    architecture = read_architecture(folder, read_json(folder / "config.json", ConfigFile))
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.ones(shape, dtype=torch.bfloat16)
        if len(shape) == 1
        else (0.02 * torch.randn(shape, generator=generator)).bfloat16()
        for name, shape in expected_shapes(architecture).items()
    }
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def vocabulary(folder: Path) -> int:
    """How many token ids the model in `folder` knows."""
    size: int = json.loads((folder / "config.json").read_text())["vocab_size"]
    return size
