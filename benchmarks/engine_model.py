"""The model that `engine.py` measures: a Llama of 135 million parameters (SmolLM's shape) with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from engine_work import VOCAB
from random_model import save_weights

CONFIG: dict[str, Any] = {
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


def make_folder(folder: Path) -> None:
    """A model folder with random bfloat16 weights, the same ones each time."""
    (folder / "config.json").write_text(json.dumps(CONFIG))
    save_weights(folder)
