"""Writes the folder of `engine_model.py` as one GGUF file, as llama.cpp's own converter would: bfloat16 matrices,
float32 norms, queries and keys with their rotated pairs side by side, and no vocabulary."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.uint16]

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write(folder: Path, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    writer = gguf.GGUFWriter(target, "llama")
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_BF16)
    writer.add_tokenizer_model("none")
    for name, tensor in _tensors(folder / "model.safetensors"):
        if "q_proj" in name or "k_proj" in name:
            tensor = _pairs_side_by_side(tensor, config["head_dim"])
        _add(writer, name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add(writer: gguf.GGUFWriter, name: str, tensor: Array) -> None:
    if tensor.ndim == 1:
        writer.add_tensor(_name(name), (tensor.astype(np.uint32) << 16).view(np.float32))
        return
    as_bytes = np.ascontiguousarray(tensor).view(np.uint8)
    writer.add_tensor(_name(name), as_bytes, raw_dtype=gguf.GGMLQuantizationType.BF16)


def _tensors(path: Path) -> list[tuple[str, Array]]:
    """Names and bfloat16 tensors, their bits as uint16, of a safetensors file."""
    content = path.read_bytes()
    header_bytes = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + header_bytes])
    header.pop("__metadata__", None)
    data = content[8 + header_bytes :]
    return [
        (name, np.frombuffer(data[slice(*entry["data_offsets"])], np.uint16).reshape(entry["shape"]))
        for name, entry in header.items()
    ]


def _name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if stem == "model.embed_tokens":
        return "token_embd.weight"
    if stem == "model.norm":
        return "output_norm.weight"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{NAMES[rest]}.weight"


def _pairs_side_by_side(weight: Array, head_dim: int) -> Array:
    """Dimension i of a head pairs with i + head_dim / 2 in Hugging Face's folders, with its neighbour in GGUF."""
    rows, columns = weight.shape
    halves = weight.reshape(rows // head_dim, 2, head_dim // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)
