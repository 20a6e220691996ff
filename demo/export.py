"""The model folder as published ones are: any loader of Llama models reads it."""

import dataclasses
import json
import pathlib

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from demo import tokenizer as demo_tokenizer
from demo.model import Llama, Shape

_GREATEST_FOLDER_BYTES = 6_000_000


def _config(model: Llama, ids: dict[str, int]) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **dataclasses.asdict(model.shape),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "tie_word_embeddings": True,
        "use_cache": True,
        "torch_dtype": "bfloat16",
        "bos_token_id": ids[demo_tokenizer.BEGIN_OF_TEXT],
        "eos_token_id": [ids[demo_tokenizer.TURN_END], ids[demo_tokenizer.END_OF_TEXT]],
        "pad_token_id": ids[demo_tokenizer.END_OF_TEXT],
    }


def _generation_config(config: dict[str, object]) -> dict[str, object]:
    tokens = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    return {**tokens, "do_sample": True, "temperature": 0.6, "top_p": 0.9}


def read_folder(shape: Shape, folder: pathlib.Path) -> tuple[Llama, Tokenizer]:
    """The model and tokenizer that `write_folder` wrote, the weights in float32 again."""
    weights = load_file(folder / "model.safetensors")
    model = Llama(shape)
    model.load_state_dict({name.removeprefix("model."): value.float() for name, value in weights.items()})
    return model, Tokenizer.from_file(str(folder / "tokenizer.json"))


def write_folder(model: Llama, tokenizer: Tokenizer, folder: pathlib.Path) -> int:
    """Write weights in bf16, configuration and tokenizer; returns the folder's size in bytes.

    Raises `ValueError` when the folder is larger than the repository wants to carry.
    """
    folder.mkdir(parents=True, exist_ok=True)
    weights = {
        f"model.{name}": value.detach().to(torch.bfloat16) for name, value in model.state_dict().items()
    }
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = _config(model, demo_tokenizer.special_ids(tokenizer))
    for name, content in (("config", config), ("generation_config", _generation_config(config))):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    demo_tokenizer.save(tokenizer, folder, model.shape.max_position_embeddings)
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    if size > _GREATEST_FOLDER_BYTES:
        raise ValueError(f"{folder} takes {size:,} bytes, more than {_GREATEST_FOLDER_BYTES:,}")
    return size
