"""A model's own sampling defaults, from its generation_config.json, as vLLM takes them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from baton.errors import ModelFolderError
from baton.router.api.backend import SamplingDefaults

FILE_NAME = "generation_config.json"


class _GenerationConfig(msgspec.Struct):
    """The fields that choose tokens; null counts as left out."""

    temperature: Annotated[float, Meta(ge=0.0)] | None = None
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] | None = None
    top_k: Annotated[int, Meta(ge=0)] | None = None
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0.0)] | None = None


def sampling_defaults(folder: Path) -> SamplingDefaults:
    """What a request that leaves a field out gets. Raises ModelFolderError naming file and field where a value
    is out of range; a folder without the file has OpenAI's defaults."""
    path = folder / FILE_NAME
    if not path.exists():
        return SamplingDefaults()
    try:
        config = msgspec.json.decode(path.read_bytes(), type=_GenerationConfig)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ModelFolderError(f"{path}: {error}") from error
    given = {name: value for name, value in msgspec.structs.asdict(config).items() if value is not None}
    return SamplingDefaults(**given)
