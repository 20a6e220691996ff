"""A model folder is read as published, or refused with the file and the tensor."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from baton.engine.model import CausalLM
from baton.engine.model_config import ModelConfig
from baton.errors import ConfigError, ModelFolderError

Folders = Callable[[str], Path]
SHARD = "model-00002-of-00009.safetensors"


@pytest.fixture
def folder(model_folder: Folders, tmp_path: Path) -> Path:
    """A copy of a single-file Llama folder, to be spoilt."""
    return shutil.copytree(model_folder("llama"), tmp_path / "llama")


@pytest.fixture
def sharded(model_folder: Folders, tmp_path: Path) -> Path:
    return shutil.copytree(model_folder("llama-sharded"), tmp_path / "sharded")


def set_config(folder: Path, file: str = "config.json", **fields: Any) -> None:
    """Sets fields of a JSON file; None deletes."""
    path = folder / file
    content = json.loads(path.read_text()) | fields
    kept = {name: value for name, value in content.items() if value is not None}
    path.write_text(json.dumps(kept))


def set_tensors(folder: Path, file: str = "model.safetensors", **tensors: torch.Tensor | None) -> None:
    """Replaces tensors (dots written as __); None deletes."""
    path = folder / file
    content = load_file(path)
    for name, tensor in tensors.items():
        content.pop(name.replace("__", "."), None)
        if tensor is not None:
            content[name.replace("__", ".")] = tensor
    save_file(content, path)


def assert_refused(folder: Path, *parts: str) -> None:
    with pytest.raises(ModelFolderError) as caught:
        ModelConfig.from_folder(folder)
    for part in parts:
        assert part in caught.value.message


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path / "nowhere", "nowhere", "no such folder")


def test_a_folder_without_config_is_refused(folder: Path) -> None:
    (folder / "config.json").unlink()
    assert_refused(folder, "config.json", "no such file")


@pytest.mark.parametrize("content", [b"{", b"", b"\xff\xfe", b"[1]", b'{"model_type": "llama"}'])
def test_a_malformed_config_is_refused(folder: Path, content: bytes) -> None:
    (folder / "config.json").write_bytes(content)
    assert_refused(folder, "config.json")


@pytest.mark.parametrize(
    ("fields", "parts"),
    [
        ({"hidden_size": "64"}, ["$.hidden_size"]),
        ({"num_hidden_layers": 0}, ["$.num_hidden_layers"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"model_type": "gpt2"}, ["'gpt2'", "llama, mistral, qwen2, qwen3"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["LlamaForSequenceClassification"]),
        ({"hidden_act": "relu"}, ["'relu'", "silu"]),
        ({"quantization_config": {"bits": 4}}, ["quantization_config", "float32, bfloat16 or float16"]),
        *(
            (
                {"quantization_config": {"quant_method": method}},
                [f"quantization_config '{method}'", "bfloat16"],
            )
            for method in ("awq", "gptq", "fp8")
        ),
        ({"num_key_value_heads": 3}, ["num_attention_heads 4", "num_key_value_heads 3"]),
        ({"dtype": "float8_e4m3fn"}, ["'float8_e4m3fn'", "bfloat16"]),
        ({"rope_parameters": {"rope_type": "longrope"}}, ["'longrope'", "default, linear, dynamic"]),
        ({"rope_parameters": {"rope_type": "linear"}}, ["'linear'", "'factor'"]),
        ({"rope_parameters": {"rope_type": "llama3", "factor": 8}}, ["'low_freq_factor'"]),
        ({"rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, ["by layer type"]),
        ({"rope_scaling": {"type": "mrope"}}, ["'mrope'"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor 0.5"]),
        ({"head_dim": 15}, ["head_dim 15"]),
    ],
    ids=str,
)
def test_a_config_that_cannot_be_served_is_refused(
    folder: Path, fields: dict[str, Any], parts: list[str]
) -> None:
    set_config(folder, **fields)
    assert_refused(folder, "config.json", *parts)


def test_layer_types_must_fit_layers_and_window(model_folder: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(model_folder("qwen2"), tmp_path / "qwen2")
    set_config(folder, layer_types=["full_attention"])
    assert_refused(folder, "layer_types", "2 layers")
    set_config(folder, layer_types=["full_attention", "sliding_attention"])
    assert_refused(folder, "layer_types", "no sliding window")


def test_a_folder_without_weights_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    assert_refused(folder, "model.safetensors", "model.safetensors.index.json")


def test_a_truncated_file_is_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert_refused(folder, "model.safetensors", "truncated")


def test_a_file_that_is_no_safetensors_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x80\x02pickle")
    assert_refused(folder, "model.safetensors", "not a safetensors file")


def test_a_missing_tensor_is_named(folder: Path) -> None:
    set_tensors(folder, model__layers__1__mlp__up_proj__weight=None)
    assert_refused(folder, "model.layers.1.mlp.up_proj.weight", "missing")


def test_a_wrong_shape_is_named_with_both_shapes(folder: Path) -> None:
    set_tensors(folder, model__norm__weight=torch.ones(63))
    assert_refused(folder, "model.safetensors", "'model.norm.weight'", "[63]", "[64]")


def test_an_unsupported_stored_dtype_is_named(folder: Path) -> None:
    set_tensors(folder, model__norm__weight=torch.ones(64, dtype=torch.int8))
    assert_refused(folder, "'model.norm.weight'", "I8", "BF16")


def test_a_missing_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    assert_refused(sharded, SHARD, "no such file")


def test_a_truncated_shard_is_named(sharded: Path) -> None:
    (sharded / SHARD).write_bytes((sharded / SHARD).read_bytes()[:500])
    assert_refused(sharded, SHARD, "truncated")


def test_a_tensor_that_the_index_promises_in_vain_is_named(sharded: Path) -> None:
    name = next(iter(load_file(sharded / SHARD)))
    set_tensors(sharded, SHARD, **{name.replace(".", "__"): None})
    assert_refused(sharded, SHARD, f"'{name}'", "index.json lists it")


def test_a_malformed_index_is_refused(sharded: Path) -> None:
    (sharded / "model.safetensors.index.json").write_text('{"weight_map": ["a"]}')
    assert_refused(sharded, "model.safetensors.index.json", "$.weight_map")


def test_an_index_cannot_reach_outside_the_folder(sharded: Path) -> None:
    index = sharded / "model.safetensors.index.json"
    index.write_text('{"weight_map": {"lm_head.weight": "../llama/model.safetensors"}}')
    assert_refused(sharded, "index.json", "outside the folder")


def test_wrong_arguments_are_refused_with_the_choices(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"'int8' is unknown .*bfloat16"):
        ModelConfig.from_folder(folder, dtype="int8")
    for tokens in (0, 2049):
        with pytest.raises(ConfigError, match=f"{tokens} is outside 1 to 2048"):
            ModelConfig.from_folder(folder, max_model_tokens=tokens)


def test_the_config_tells_what_the_folder_says(folder: Path) -> None:
    config = ModelConfig.from_folder(folder, max_model_tokens=500)
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (2, 64, 320)
    assert (config.num_heads, config.num_kv_heads, config.head_dim) == (4, 2, 16)
    assert config.max_model_tokens == 500
    assert config.kv_block_bytes(16) == 16 * 2 * 2 * 2 * 16 * 4
    assert config.dtype_name == "float32"


def test_end_of_sequence_comes_from_the_generation_config_first(folder: Path) -> None:
    set_config(folder, eos_token_id=7)
    set_config(folder, "generation_config.json", eos_token_id=[3, 5])
    assert ModelConfig.from_folder(folder).eos_token_ids == {3, 5}
    set_config(folder, "generation_config.json", eos_token_id=None)
    assert ModelConfig.from_folder(folder).eos_token_ids == {7}
    (folder / "generation_config.json").unlink()
    assert ModelConfig.from_folder(folder).eos_token_ids == {7}
    set_config(folder, eos_token_id=None)
    assert ModelConfig.from_folder(folder).eos_token_ids == frozenset()


def test_dtype_is_the_stored_one_where_the_config_names_none(folder: Path) -> None:
    set_config(folder, dtype=None)
    assert ModelConfig.from_folder(folder).dtype == torch.float32
    tensors = {name: tensor.half() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    assert ModelConfig.from_folder(folder).dtype == torch.float16
    assert ModelConfig.from_folder(folder, dtype="bfloat16").dtype == torch.bfloat16


def test_sliding_windows_are_those_of_the_family(model_folder: Folders) -> None:
    windows = {
        name: ModelConfig.from_folder(model_folder(name)).sliding_windows
        for name in ("llama", "mistral", "mistral-window", "qwen2-window", "qwen3-biased-window")
    }
    assert windows == {
        "llama": (None, None),
        "mistral": (None, None),
        "mistral-window": (64, 64, 64, 64),
        "qwen2-window": (None, 48, 48),
        "qwen3-biased-window": (40, None),
    }


def test_a_head_of_its_own_is_used_even_where_the_config_calls_it_tied(folder: Path) -> None:
    set_config(folder, tie_word_embeddings=True)
    head = load_file(folder / "model.safetensors")["lm_head.weight"]
    model = CausalLM.load(ModelConfig.from_folder(folder))
    hidden = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    set_tensors(folder, lm_head__weight=None)
    tied = CausalLM.load(ModelConfig.from_folder(folder))
    assert (model.logits(hidden) - tied.logits(hidden)).abs().max() > 0.1
    set_tensors(folder, lm_head__weight=head)
    again = CausalLM.load(ModelConfig.from_folder(folder))
    torch.testing.assert_close(model.logits(hidden), again.logits(hidden))


def test_fingerprints_agree_for_one_folder_and_differ_for_other_weights(folder: Path, tmp_path: Path) -> None:
    def fingerprint(path: Path, dtype: str = "auto") -> str:
        return ModelConfig.from_folder(path, dtype).fingerprint

    first = fingerprint(folder)
    in_two_dtypes = {ModelConfig.from_folder(folder, dtype).kv_fingerprint for dtype in ("auto", "bfloat16")}
    assert len(in_two_dtypes) == 2
    assert fingerprint(shutil.copytree(folder, tmp_path / "copy")) == first
    set_config(folder, transformers_version="4.0.0")
    assert fingerprint(folder) == first
    assert fingerprint(folder, "bfloat16") == first
    set_config(folder, rms_norm_eps=1e-5)
    assert fingerprint(folder) != first
    set_config(folder, rms_norm_eps=1e-6)
    assert fingerprint(folder) == first
    set_tensors(folder, model__norm__weight=torch.full((64,), 0.5))
    assert fingerprint(folder) != first
