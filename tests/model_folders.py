"""Random-weight Hugging Face model folders, small, servable, one for each family and variant.

Built with transformers' own classes, so that transformers is the oracle for all of them. Each has a byte-level
BPE tokenizer and a chat template. Weights are spread wide, so that greedy output does not fall into a loop,
and the seed is one that leaves the two best logits of every step tried at least 4e-4 apart.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

VOCAB_SIZE = 320
SEED = 3
WEIGHT_STD = 0.17
SPECIAL_TOKENS = ("<|begin|>", "<|end|>", "<|user|>", "<|assistant|>")
BEGIN_ID, END_ID = VOCAB_SIZE - 4, VOCAB_SIZE - 3
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|user|>' if message.role != 'assistant' else '<|assistant|>' }}{{ message.content }}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)

ModelBuilder = Callable[[], PreTrainedModel]


def _shape(**overrides: Any) -> dict[str, Any]:
    """Arguments common to all families, with `overrides`."""
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": 64,
        "intermediate_size": 112,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
        "bos_token_id": BEGIN_ID,
        "eos_token_id": END_ID,
        "tie_word_embeddings": False,
        "dtype": "float32",
    } | overrides


def _llama(**overrides: Any) -> ModelBuilder:
    return lambda: LlamaForCausalLM(LlamaConfig(**_shape(**overrides)))


def _mistral(**overrides: Any) -> ModelBuilder:
    return lambda: MistralForCausalLM(MistralConfig(**_shape(**overrides)))


def _qwen2(**overrides: Any) -> ModelBuilder:
    return lambda: Qwen2ForCausalLM(Qwen2Config(**_shape(**overrides)))


def _qwen3(**overrides: Any) -> ModelBuilder:
    return lambda: Qwen3ForCausalLM(Qwen3Config(**_shape(head_dim=32, **overrides)))


def _scaled(rope_type: str, **fields: Any) -> dict[str, Any]:
    return {"rope_type": rope_type, "rope_theta": 10_000.0, **fields}


VARIANTS: dict[str, ModelBuilder] = {
    "llama": _llama(),
    "llama-mha-tied": _llama(num_attention_heads=2, num_key_value_heads=2, tie_word_embeddings=True),
    "llama-mqa-biased": _llama(num_key_value_heads=1, attention_bias=True, mlp_bias=True),
    "llama-head-dim": _llama(head_dim=24, num_hidden_layers=3, rope_parameters=_scaled("default")),
    "llama-linear": _llama(rope_parameters=_scaled("linear", factor=4.0), max_position_embeddings=512),
    "llama-dynamic": _llama(rope_parameters=_scaled("dynamic", factor=8.0), max_position_embeddings=256),
    "llama-llama3": _llama(
        rope_parameters=_scaled(
            "llama3",
            factor=8.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=256,
        )
    ),
    "llama-yarn": _llama(rope_parameters=_scaled("yarn", factor=8.0, original_max_position_embeddings=256)),
    "mistral": _mistral(sliding_window=None, num_attention_heads=8),
    "mistral-window": _mistral(sliding_window=64, num_hidden_layers=4, head_dim=8),
    "qwen2": _qwen2(),
    "qwen2-window": _qwen2(
        use_sliding_window=True,
        sliding_window=48,
        max_window_layers=1,
        num_hidden_layers=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
    ),
    "qwen3": _qwen3(num_attention_heads=6, num_key_value_heads=3),
    "qwen3-biased-window": _qwen3(
        attention_bias=True,
        use_sliding_window=True,
        sliding_window=40,
        num_hidden_layers=2,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "llama-sharded": _llama(num_hidden_layers=4),
}
SPLITTABLE: dict[str, ModelBuilder] = {"llama-four-kv-heads": _llama(num_key_value_heads=4)}
"""Further variants that only tensor parallelism tells apart."""

PACKABLE: dict[str, ModelBuilder] = {
    "llama-packable": _llama(intermediate_size=128, num_key_value_heads=1, attention_bias=True),
    "mistral-packable": _mistral(intermediate_size=128, sliding_window=70, head_dim=24),
    "qwen3-packable": _qwen3(intermediate_size=128, num_attention_heads=6, num_key_value_heads=3),
}
"""Further variants all of whose products are packed, in bfloat16 on a CPU that has products of it."""


def make_folder(name: str, path: Path, dtype: torch.dtype = torch.float32) -> Path:
    """Writes the variant `name` to the folder `path`, the same bytes at each call; returns `path`."""
    with torch.random.fork_rng(devices=[]):
        model = (VARIANTS | SPLITTABLE | PACKABLE)[name]()
    _randomize(model, seed=zlib.crc32(f"{name}{SEED}".encode()))
    torch.nn.Module.to(model, dtype=dtype)
    model.config.dtype = dtype
    model.generation_config.eos_token_id = [END_ID]
    model.save_pretrained(path, max_shard_size="100KB" if name.endswith("sharded") else "1GB")
    write_tokenizer(path)
    return path


def _randomize(model: PreTrainedModel, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(0.5, 1.5, generator=generator)
            else:
                parameter.normal_(0.0, WEIGHT_STD, generator=generator)


def to_transformers_4(path: Path) -> None:
    """Rewrites `config.json` in the older style: `rope_scaling`, `rope_theta`, `torch_dtype`."""
    config_path = path / "config.json"
    config = json.loads(config_path.read_text())
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    rope["type"] = rope.pop("rope_type")
    config["rope_scaling"] = None if rope["type"] == "default" else rope
    config["torch_dtype"] = config.pop("dtype")
    config_path.write_text(json.dumps(config))


def write_tokenizer(path: Path) -> None:
    """`tokenizer.json` over all bytes with a few merges, `tokenizer_config.json` with the chat template."""
    alphabet = sorted(ByteLevel.alphabet())
    letters = "etaoinshrdlu"
    merges = [(first, second) for first in letters for second in letters][: VOCAB_SIZE - 4 - len(alphabet)]
    tokens = alphabet + ["".join(pair) for pair in merges]
    tokenizer = tokenizers.Tokenizer(BPE({token: index for index, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(path / "tokenizer.json"))
    begin, end, *_ = SPECIAL_TOKENS
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


def prompt_ids(tokens: int, seed: int = 0) -> list[int]:
    """`tokens` random token ids, none of them special."""
    generator = torch.Generator().manual_seed(seed * 100_003 + tokens)
    ids: list[int] = torch.randint(VOCAB_SIZE - len(SPECIAL_TOKENS), (tokens,), generator=generator).tolist()
    return ids
