"""What a GPU has to be and to have before a model is loaded onto it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from baton.errors import ConfigError

MIN_CAPABILITY = (8, 0)
"""Ampere: the first with bfloat16 in its matrix units, and what Triton's kernels are compiled for."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as torch tells of it. capability: compute capability, major and minor."""

    device: str
    name: str
    capability: tuple[int, int]
    free_bytes: int

    @classmethod
    def at(cls, device: str) -> Gpu:
        """device: one that is there."""
        name, capability = torch.cuda.get_device_name(device), torch.cuda.get_device_capability(device)
        return cls(device, name, capability, torch.cuda.mem_get_info(device)[0])

    def require_new_enough(self) -> None:
        """Raises ConfigError for one that is too old."""
        if self.capability < MIN_CAPABILITY:
            raise ConfigError(
                f"device {self.device!r} ({self.name}) has compute capability {_version(self.capability)}, "
                f"at least {_version(MIN_CAPABILITY)} is needed",
                field="device",
            )

    def require_room(self, weight_bytes: int, kv_bytes: int) -> None:
        """Raises ConfigError where weights and the KV pool asked for, or the least one that works, do not fit."""
        if weight_bytes + kv_bytes > self.free_bytes:
            raise ConfigError(
                f"device {self.device!r} ({self.name}) has {self.free_bytes} bytes free, but the weights take "
                f"{weight_bytes} bytes and the KV pool at least {kv_bytes}",
                field="device",
            )


def _version(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))
