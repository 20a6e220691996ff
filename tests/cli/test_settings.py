import time
from pathlib import Path

import pytest
import typer.main
from typer.core import TyperGroup

from baton.cli.main import app
from baton.cli.process_setup import checked_advertise
from baton.cli.processes import Child
from baton.cli.settings import check_environment, read_config_file
from baton.errors import ConfigError


@pytest.fixture
def group() -> TyperGroup:
    command = typer.main.get_command(app)
    assert isinstance(command, TyperGroup)
    return command


def test_a_table_a_command_and_a_key_an_option(tmp_path: Path, group: TyperGroup) -> None:
    file = tmp_path / "baton.toml"
    file.write_text('[up]\nport = 8001\nmax-model-len = 512\nhost = "::1"\n')
    assert read_config_file(file, group) == {"up": {"port": 8001, "max_model_len": 512, "host": "::1"}}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[up]\nprot = 8001\n", "prot"),
        ("[upp]\nport = 8001\n", "upp"),
        ("port = 8001\n", "port"),
        ("[up\n", "baton.toml"),
    ],
)
def test_a_wrong_file_names_what_is_wrong(tmp_path: Path, group: TyperGroup, text: str, named: str) -> None:
    file = tmp_path / "baton.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=named):
        read_config_file(file, group)


def test_a_missing_file_is_named(tmp_path: Path, group: TyperGroup) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        read_config_file(tmp_path / "nowhere.toml", group)


def test_an_unknown_variable_is_named(group: TyperGroup) -> None:
    check_environment(group, {"BATON_PORT": "1", "BATON_SECRET": "x", "PATH": "/"})
    with pytest.raises(ConfigError, match="BATON_PROT"):
        check_environment(group, {"BATON_PROT": "1"})


def test_a_wildcard_address_needs_one_that_others_can_dial() -> None:
    assert checked_advertise("0.0.0.0", "10.0.0.7") == "10.0.0.7"
    assert checked_advertise("10.0.0.7", "") == ""
    with pytest.raises(ConfigError, match="--advertise"):
        checked_advertise("0.0.0.0", "")


def test_a_child_sees_only_the_variables_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BATON_PORT", "not a port")
    child = Child("probe", ["version"], {})
    child.wait_or_kill(time.monotonic() + 30)
    assert child.exit_code == 0
