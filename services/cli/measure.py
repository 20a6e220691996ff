"""`baton profile`: measures this machine as a worker would, for `baton sim`."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import TYPE_CHECKING

import typer
from msgspec.structs import asdict

from baton.cli import options as opt
from baton.cli.engine_options import EngineOptions
from baton.cli.process_setup import model_folder

if TYPE_CHECKING:
    from baton.engine.engine import Engine
    from baton.fleet import WorkerProfile


def profile(
    *,
    model: opt.Model = None,
    engine: EngineOptions,
    threads: opt.Threads = None,
    cost_per_hour: opt.CostPerHour = 0.0,
) -> None:
    """Measure how fast one worker is here, and print its profile in the form that `baton sim` reads.

    Example: baton profile --model ./Llama-3.2-1B-Instruct --threads 8 > here.toml
    """
    from baton.engine.engine import Engine
    from baton.worker.profile import measure_profile

    folder = model_folder(model)
    loaded = Engine(engine.config(folder, threads))
    try:
        measured = replace(measure_profile(loaded), cost_per_hour=cost_per_hour)
        typer.echo(f"# {folder.resolve().name} on {engine.device}, {threads or os.cpu_count()} threads")
        typer.echo(profile_toml(measured, *kv_of(loaded)), nl=False)
    finally:
        loaded.close()


def kv_of(engine: Engine) -> tuple[int, int]:
    """Bytes of KV a token, and tokens that the pool holds."""
    block_bytes = engine.model.kv_block_bytes(engine.block_size)
    return block_bytes // engine.block_size, engine.pool.num_blocks * engine.block_size


def profile_toml(speeds: WorkerProfile, kv_bytes_per_token: int, kv_tokens: int) -> str:
    """A file that `baton.sim.fleet_file` reads."""
    from baton.sim.fleet_file import HardwareProfile

    figures = asdict(HardwareProfile.of(speeds, kv_bytes_per_token, kv_tokens))
    return "".join(f"{name.replace('_', '-')} = {_number(value)}\n" for name, value in figures.items())


def _number(value: float) -> str:
    """Four digits; integers as they are."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"
