import json
from pathlib import Path

import pytest

from baton.errors import ModelFolderError
from baton.router.api.backend import SamplingDefaults
from baton.router.generation_config import sampling_defaults


def folder_with(path: Path, **fields: object) -> Path:
    (path / "generation_config.json").write_text(json.dumps(fields))
    return path


def test_the_folder_overrides_only_what_it_sets(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, temperature=0.6, top_p=0.9, top_k=None, eos_token_id=[1, 2])
    assert sampling_defaults(folder) == SamplingDefaults(temperature=0.6, top_p=0.9)


def test_a_folder_without_the_file_has_the_usual_defaults(tmp_path: Path) -> None:
    assert sampling_defaults(tmp_path) == SamplingDefaults()


@pytest.mark.parametrize(("field", "value"), [("temperature", -1), ("top_p", 0), ("top_k", "many")])
def test_a_wrong_value_names_file_and_field(tmp_path: Path, field: str, value: object) -> None:
    with pytest.raises(ModelFolderError, match=rf"generation_config\.json.*{field}"):
        sampling_defaults(folder_with(tmp_path, **{field: value}))
