"""A model folder, checked: what it computes, in which dtype, up to which length, and its fingerprint."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import torch

from baton.engine.architecture import Architecture, read_architecture
from baton.engine.checkpoint import Checkpoint
from baton.engine.hf_files import ConfigFile, GenerationConfigFile, TokenIds, read_json
from baton.engine.rope import RopeConfig
from baton.engine.weights import expected_shapes, verify
from baton.errors import ConfigError, ModelFolderError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig(Architecture):
    """Frozen and complete once built; existing means that the folder can be loaded.

    dtype: of weights, activations and KV. max_model_tokens: limit of prompt plus output. fingerprint: hex
    name of the weights and what is computed with them: equal for one folder anywhere, whatever the dtype.
    """

    folder: Path
    dtype: torch.dtype
    max_model_tokens: int
    eos_token_ids: frozenset[int]
    fingerprint: str

    @classmethod
    def from_folder(
        cls, path: str | Path, dtype: str = "auto", max_model_tokens: int | None = None
    ) -> ModelConfig:
        """Reads configuration and headers of the folder `path` and checks them against each other.

        dtype: "auto" (the folder's own) or a key of DTYPES. max_model_tokens: None for the model's own limit.
        Raises ModelFolderError where the folder cannot be served, ConfigError where an argument is wrong.
        """
        folder = Path(path)
        if not folder.is_dir():
            raise ModelFolderError(f"{folder}: no such folder")
        config_path = folder / "config.json"
        file = read_json(config_path, ConfigFile)
        architecture = read_architecture(config_path, file)
        checkpoint = Checkpoint(folder)
        verify(architecture, checkpoint)
        torch_dtype = _dtype(config_path, file, checkpoint, dtype)
        shape = {field.name: getattr(architecture, field.name) for field in dataclasses.fields(architecture)}
        return cls(
            **shape,
            folder=folder,
            dtype=torch_dtype,
            max_model_tokens=_max_model_tokens(architecture.rope, max_model_tokens),
            eos_token_ids=_eos_token_ids(folder, file),
            fingerprint=_fingerprint(architecture, checkpoint),
        )

    @property
    def dtype_name(self) -> str:
        """torch's name of the dtype, as "bfloat16"."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def kv_fingerprint(self) -> str:
        """Name of what fixes the contents of KV: the fingerprint and the dtype."""
        return f"{self.fingerprint} {self.dtype_name}"

    def kv_block_bytes(self, block_size: int) -> int:
        """Bytes of one KV block of `block_size` tokens: all layers, K and V."""
        return 2 * block_size * self.num_layers * self.num_kv_heads * self.head_dim * self.dtype.itemsize

    def prefix_cache_variant(self, prompt_tokens: int) -> str:
        """Part of the block-hash namespace of a request with `prompt_tokens`: "" unless the KV of its tokens
        depends on that length (dynamic rope scaling beyond the model's own length)."""
        return self.rope.prefix_cache_variant(prompt_tokens)


def _dtype(path: Path, file: ConfigFile, checkpoint: Checkpoint, wanted: str) -> torch.dtype:
    if wanted != "auto":
        if wanted not in DTYPES:
            raise ConfigError(
                f"dtype {wanted!r} is unknown (choices: auto, {', '.join(DTYPES)})", field="dtype"
            )
        return DTYPES[wanted]
    name = file.dtype or file.torch_dtype
    if name is None:
        return checkpoint.dtype
    if name not in DTYPES:
        raise ModelFolderError(f"{path}: dtype {name!r} is not supported (supported: {', '.join(DTYPES)})")
    return DTYPES[name]


def _max_model_tokens(rope: RopeConfig, wanted: int | None) -> int:
    limit = rope.context_tokens
    if wanted is None:
        return limit
    if not 1 <= wanted <= limit:
        raise ConfigError(
            f"max_model_len {wanted} is outside 1 to {limit}, the model's context", field="max_model_len"
        )
    return wanted


def _eos_token_ids(folder: Path, file: ConfigFile) -> frozenset[int]:
    generation_path = folder / "generation_config.json"
    token_ids: TokenIds = None
    if generation_path.exists():
        token_ids = read_json(generation_path, GenerationConfigFile).eos_token_id
    if token_ids is None:
        token_ids = file.eos_token_id
    if token_ids is None:
        return frozenset()
    return frozenset([token_ids] if isinstance(token_ids, int) else token_ids)


def _fingerprint(architecture: Architecture, checkpoint: Checkpoint) -> str:
    weights = checkpoint.fingerprint(expected_shapes(architecture))
    return sha256(f"{architecture} {weights}".encode()).hexdigest()[:32]
