"""What an engine computes with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from baton.cli.option_groups import OptionGroup
from baton.cli.options import Attention, Dtype, option
from baton.engine.device_name import require_device_name

if TYPE_CHECKING:
    from baton.engine.engine_config import EngineConfig


@dataclass(frozen=True, slots=True)
class EngineOptions(OptionGroup):
    dtype: Annotated[
        Dtype, option(help="Weights and KV; auto is the folder's own.", envvar="BATON_DTYPE")
    ] = Dtype.AUTO
    device: Annotated[str, option(help="cpu, cuda or cuda:N.", envvar="BATON_DEVICE")] = "cpu"
    attention: Annotated[
        Attention,
        option(
            help="Attention backend; auto is the first of these that runs, but never flashinfer.",
            envvar="BATON_ATTENTION",
        ),
    ] = Attention.AUTO
    max_model_len: Annotated[
        int | None,
        option(
            help="Prompt and output, in tokens. Default: the model's.", envvar="BATON_MAX_MODEL_LEN", min=2
        ),
    ] = None
    kv_blocks: Annotated[
        int | None,
        option(
            help="Blocks of each worker's KV pool. Default: from memory.", envvar="BATON_KV_BLOCKS", min=2
        ),
    ] = None
    block_size: Annotated[int, option(help="Tokens a block.", envvar="BATON_BLOCK_SIZE", min=1, max=1024)] = (
        16
    )

    def arguments(self) -> dict[str, object]:
        require_device_name(self.device)
        return OptionGroup.arguments(self)

    def config(self, folder: Path, threads: int | None, tp: int = 1) -> EngineConfig:
        from baton.engine.engine_config import EngineConfig

        return EngineConfig(
            model=folder,
            dtype=self.dtype.value,
            device=self.device,
            block_size=self.block_size,
            kv_blocks=self.kv_blocks,
            max_model_tokens=self.max_model_len,
            attention=self.attention.value,
            threads=threads,
            tp=tp,
        )
