"""The safetensors files of a model folder, memory-mapped; every fault names file and tensor.

Format: https://huggingface.co/docs/safetensors, one `model.safetensors` or shards with an index.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from baton.engine.hf_files import ShardIndexFile, read_json
from baton.errors import ModelFolderError

STORED_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
SAMPLES = 8
SAMPLE_BYTES = 512


class _Header(Protocol):
    def get_shape(self) -> list[int]: ...
    def get_dtype(self) -> str: ...


class _Shard(Protocol):
    """What is used of `safetensors.safe_open`, whose stubs carry no types."""

    def keys(self) -> list[str]: ...
    def get_slice(self, name: str) -> _Header: ...
    def get_tensor(self, name: str) -> Tensor: ...


class Checkpoint:
    """The tensors of one model folder by name. Opening reads headers alone; pages are read when used."""

    def __init__(self, folder: Path) -> None:
        """Raises ModelFolderError where a file is missing, truncated or not safetensors."""
        self.folder = folder
        self._shards: dict[Path, _Shard] = {}
        self._shard_of: dict[str, Path] = {}
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.exists():
            self._shard_of = dict.fromkeys(self._open(single), single)
        elif index.exists():
            self._open_shards(index)
        else:
            raise ModelFolderError(f"{folder}: neither {single.name} nor {index.name} is there")

    def _open(self, path: Path) -> list[str]:
        """Opens one file and returns the names of its tensors."""
        try:
            shard: _Shard = safe_open(path, framework="pt")
        except FileNotFoundError as error:
            raise ModelFolderError(f"{path}: no such file") from error
        except (SafetensorError, OSError) as error:
            raise ModelFolderError(f"{path}: truncated or not a safetensors file ({error})") from error
        self._shards[path] = shard
        return shard.keys()

    def _open_shards(self, index: Path) -> None:
        weight_map = read_json(index, ShardIndexFile).weight_map
        for shard_name in sorted(set(weight_map.values())):
            path = self.folder / shard_name
            if path.parent != self.folder:
                raise ModelFolderError(f"{index}: shard {shard_name!r} is outside the folder")
            present = set(self._open(path))
            for name in (name for name, shard in weight_map.items() if shard == shard_name):
                if name not in present:
                    raise ModelFolderError(
                        f"{path}: tensor {name!r} is missing, though {index.name} lists it"
                    )
                self._shard_of[name] = path

    def __contains__(self, name: str) -> bool:
        return name in self._shard_of

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first floating-point tensor, by name."""
        for name in sorted(self._shard_of):
            stored = self._shards[self._shard_of[name]].get_slice(name).get_dtype()
            if stored in STORED_DTYPES:
                return STORED_DTYPES[stored]
        raise ModelFolderError(f"{self.folder}: no tensor has a supported dtype ({', '.join(STORED_DTYPES)})")

    def require(self, name: str, shape: tuple[int, ...]) -> None:
        """Raises ModelFolderError unless tensor `name` is there with `shape` and a supported dtype."""
        path = self._shard_of.get(name)
        if path is None:
            raise ModelFolderError(f"{self.folder}: tensor {name!r} is missing from the safetensors files")
        header = self._shards[path].get_slice(name)
        if tuple(header.get_shape()) != shape:
            raise ModelFolderError(
                f"{path}: tensor {name!r} has shape {list(header.get_shape())}, expected {list(shape)}"
            )
        if header.get_dtype() not in STORED_DTYPES:
            raise ModelFolderError(
                f"{path}: tensor {name!r} has dtype {header.get_dtype()} "
                f"(supported: {', '.join(STORED_DTYPES)})"
            )

    def tensor(self, name: str) -> Tensor:
        """Tensor `name` as stored, on the CPU, mapped from the file; it stays valid without this object."""
        return self._shards[self._shard_of[name]].get_tensor(name)

    def fingerprint(self, names: Iterable[str]) -> str:
        """Hash of the tensors `names`: their names, dtypes, shapes, and a sample of their bytes.

        At most SAMPLES * SAMPLE_BYTES bytes a tensor are read, evenly spread, so that a large folder takes a
        moment; weights that were trained further differ everywhere.
        """
        digest = sha256()
        for name in sorted(names):
            tensor = self.tensor(name)
            digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
            for sample in _samples(tensor.reshape(-1).view(torch.uint8)):
                digest.update(sample.numpy().tobytes())
        return digest.hexdigest()


def _samples(content: Tensor) -> list[Tensor]:
    last_start = content.numel() - SAMPLE_BYTES
    if last_start < SAMPLES * SAMPLE_BYTES:
        return [content]
    starts = (last_start * sample // (SAMPLES - 1) for sample in range(SAMPLES))
    return [content[start : start + SAMPLE_BYTES] for start in starts]
