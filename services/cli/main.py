"""The `baton` command: every option of every process, checked before anything starts."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from baton import __version__
from baton.cli import options as opt
from baton.cli.measure import profile
from baton.cli.option_groups import with_groups
from baton.cli.router import router
from baton.cli.settings import CONFIG_VARIABLE, check_environment, read_config_file
from baton.cli.sim import sim
from baton.cli.up import up
from baton.cli.worker import worker_command
from baton.errors import BatonError


class Commands(TyperGroup):
    """Names a value that is refused: it need not have been typed, but may be the environment's or a file's."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except typer.BadParameter as error:
            from pydantic import ValidationError

            if isinstance(error.__cause__, ValidationError):
                value = repr(error.__cause__.errors()[0]["input"])
                error.message += "" if value in error.message else f", not {value}"
            raise


app = typer.Typer(
    name="baton",
    cls=Commands,
    help="Disaggregated LLM serving: prefill and decode on separate pools of workers.\n\n"
    "Every option can be given as an environment variable too (--max-model-len: BATON_MAX_MODEL_LEN) or in a "
    "TOML file; the command line wins over the environment, and that over the file.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point; a BatonError ends the process with one line and status 2."""
    try:
        app()
    except BatonError as error:
        where = f" [{error.field}]" if error.field else ""
        print(f"baton: {error.message}{where}", file=sys.stderr)
        raise SystemExit(2) from None


@app.callback()
def configure(
    context: typer.Context,
    config: Annotated[
        Path | None,
        typer.Option(
            help="TOML file, one table a command, as \\[up] with port = 8001.", envvar=CONFIG_VARIABLE
        ),
    ] = None,
) -> None:
    group = context.command
    assert isinstance(group, TyperGroup), "the callback belongs to the group of all commands"
    check_environment(group)
    if config is not None:
        context.default_map = read_config_file(config, group)


app.command()(with_groups(up))
app.command()(with_groups(router))
app.command(
    "prefill",
    help="Run one prefill worker: computes prompts, hands their KV blocks to decode workers.\n\n"
    "Example: BATON_SECRET=... baton prefill --model ./model --registry 10.0.0.1:8100 --host 10.0.0.2",
)(with_groups(worker_command("prefill")))
app.command(
    "decode",
    help="Run one decode worker: receives KV blocks, generates a token a sequence and step.\n\n"
    "Example: BATON_SECRET=... baton decode --model ./model --registry 10.0.0.1:8100 --host 10.0.0.3",
)(with_groups(worker_command("decode")))

app.command()(sim)
app.command()(with_groups(profile))


@app.command()
def plan(
    url: Annotated[
        str, typer.Option(help="Where a router serves.", envvar="BATON_URL")
    ] = "http://127.0.0.1:8000",
    api_key: Annotated[str, typer.Option(help="Bearer key.", envvar="BATON_API_KEY")] = "",
) -> None:
    """Show how pressed the pools are and what the planner makes of it, where --planner is advise or on."""
    from baton.cli.plan import show_plan

    show_plan(url, api_key)


@app.command()
def chat(
    url: Annotated[
        str, typer.Option(help="Where a router serves.", envvar="BATON_URL")
    ] = "http://127.0.0.1:8000",
    model: Annotated[str, typer.Option(help="Model name; default: the one served.")] = "",
    system: Annotated[str, typer.Option(help="System prompt.")] = "",
    temperature: Annotated[float, typer.Option(help="0 is greedy.", min=0.0, max=2.0)] = 0.7,
    max_tokens: Annotated[int, typer.Option(help="Of each answer.", min=1)] = 512,
    api_key: Annotated[str, typer.Option(help="Bearer key.", envvar="BATON_API_KEY")] = "",
) -> None:
    """Chat with a served model in the terminal. /reset starts anew, /quit or Ctrl-D leaves."""
    from baton.cli.chat import ChatSession

    ChatSession(url, model, system, temperature, max_tokens, api_key).run()


@app.command()
def flip(
    worker: Annotated[str, typer.Argument(help="Its id, as /workers tells it.")],
    role: Annotated[opt.RoleName, typer.Argument(help="What it is to be.")],
    url: Annotated[
        str, typer.Option(help="Where a router serves.", envvar="BATON_URL")
    ] = "http://127.0.0.1:8000",
    drain_timeout: Annotated[
        float,
        typer.Option(
            help="Seconds that what runs there may take to finish or move.",
            envvar="BATON_DRAIN_TIMEOUT",
            show_envvar=False,
            min=0,
        ),
    ] = 30.0,
    api_key: Annotated[str, typer.Option(help="Bearer key.", envvar="BATON_API_KEY")] = "",
) -> None:
    """Make a running worker a prefill or a decode worker. It keeps its weights and its cache, and no request fails.

    Example: baton flip prefill-1 decode
    """
    from baton.cli.flip import flip as ask

    print(ask(url, worker, role.value, drain_timeout, api_key))


@app.command()
def version() -> None:
    """Print the version of Baton and of what it computes with."""
    from importlib.metadata import version as version_of

    names = ("torch", "grpcio", "tokenizers")
    print(f"baton {__version__} ({', '.join(f'{name} {version_of(name)}' for name in names)})")
