"""What is made of the runs of `rebalancing_live.py`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rows import Row
from turning_traffic import OUTPUT_HEAVY, PROMPT_HEAVY, Objectives, Run, good_by_time, soonest_return_s

SPLITS = ("3:1", "2:2", "1:3")
TURNING, STEADY = "turning", "steady"
PHASES = (PROMPT_HEAVY, OUTPUT_HEAVY, PROMPT_HEAVY)
TARGET = 0.95
BIN_S = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """phase_s: how long each phase was. cooldown_s, flips_per_hour: what the planner had to keep to."""

    phase_s: float
    cooldown_s: float
    flips_per_hour: int


def best_split(runs: Mapping[str, Run], kind: str, objectives: Objectives) -> str:
    """The one with the most good requests of `kind`, of equals the soonest. Raises KeyError for one not tried."""

    def rank(split: str) -> tuple[int, float]:
        run = runs[f"{split} {kind}"]
        return run.good(0, objectives), -sum(answer.took_s for answer in run.answers)

    return max(SPLITS, key=rank)


def figures(runs: Mapping[str, Run], limits: Limits, objectives: Objectives) -> list[Row]:
    turning = runs[TURNING]
    changes = turning.role_changes()
    steady = sum(len(runs[f"{STEADY} {kind}"].role_changes()) for kind in set(PHASES))
    return [
        *_goodput(runs, limits, objectives),
        *_shares(runs, objectives),
        Row(name="role changes", value=len(changes), unit="changes", target=limits.flips_per_hour),
        Row(
            name="soonest change the other way",
            value=soonest_return_s(changes),
            unit="s",
            target=limits.cooldown_s,
        ),
        Row(name="failed requests, traffic that turns", value=turning.failed, unit="requests", target=0),
        Row(name="role changes under steady traffic", value=steady, unit="changes", target=0),
    ]


def _goodput(runs: Mapping[str, Run], limits: Limits, objectives: Objectives) -> Iterator[Row]:
    """Beside the best split of each phase, and beside the one that would have been best all the time."""
    good = {split: [runs[f"{split} {kind}"].good(0, objectives) for kind in PHASES] for split in SPLITS}
    best = [best_split(runs, kind, objectives) for kind in PHASES]
    always = max(SPLITS, key=lambda split: sum(good[split]))
    met = sum(runs[TURNING].good(phase, objectives) for phase in range(len(PHASES)))
    hindsight = sum(good[split][phase] for phase, split in enumerate(best))
    for peer, peer_good, target in (
        (f"best split of each phase ({', '.join(best)})", hindsight, TARGET),
        (f"the best split all the time ({always})", sum(good[always]), None),
    ):
        yield Row(
            name="goodput over three phases",
            value=met / len(PHASES) / limits.phase_s,
            unit="requests/s",
            peer=peer,
            peer_value=peer_good / len(PHASES) / limits.phase_s,
            ratio=met / max(1, peer_good),
            target=target,
        )


def _shares(runs: Mapping[str, Run], objectives: Objectives) -> Iterator[Row]:
    """Of requests that were sent, those that were good: by phase with the planner, by kind with each split."""
    parts = [(f"phase {number + 1}, planner", runs[TURNING], number) for number in range(len(PHASES))]
    parts += [(f"{kind}, {split}", runs[f"{split} {kind}"], 0) for kind in PHASES[:2] for split in SPLITS]
    for name, run, phase in parts:
        share = 100 * run.good(phase, objectives) / max(1, run.sent(phase))
        yield Row(name=f"good requests, {name}", value=share, unit="%")


def told(run: Run, objectives: Objectives) -> str:
    """A run in a few lines: its phases, and who changed roles when and why."""
    lines = []
    for phase in sorted({answer.sent.phase for answer in run.answers if answer.sent.phase >= 0}):
        of_phase = [answer for answer in run.answers if answer.sent.phase == phase]
        ttfts_s = [answer.ttft_s for answer in of_phase if answer.ttft_s is not None]
        tpots_s = [answer.tpot_s for answer in of_phase if answer.tpot_s is not None]
        medians = " and ".join(
            f"{np.median(times_s) * 1000:.0f}" for times_s in (ttfts_s, tpots_s) if times_s
        )
        lines.append(
            f"{run.name}, phase {phase + 1}: {run.good(phase, objectives)} good of {len(of_phase)}, {run.failed} "
            f"failed in all; median TTFT and TPOT {medians or 'unknown'} ms"
        )
    lines += [
        f"  {change.at_s:6.1f} s: {change.worker} to {change.role}: {change.reason}"
        for change in run.role_changes()
    ]
    return "\n".join(lines)


def plot(run: Run, phase_s: float, objectives: Objectives, path: Path) -> None:
    """Requests sent and good ones over time, with the turns of traffic and each role change."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 5), layout="constrained")
    axes = figure.subplots()
    at_s, sent, good = good_by_time(run, BIN_S, objectives)
    axes.step(at_s, sent, where="mid", color="grey", label="sent")
    axes.step(at_s, good, where="mid", label="good")
    for turn in range(1, len(PHASES)):
        axes.axvline(turn * phase_s, linestyle="--", color="grey")
    colours = {"prefill": "tab:orange", "decode": "tab:green"}
    labelled: set[str] = set()
    for change in run.role_changes():
        label = None if change.role in labelled else f"a worker goes to {change.role}"
        labelled.add(change.role)
        axes.axvline(change.at_s, color=colours[change.role], label=label)
    axes.set(xlabel="seconds", ylabel="requests/s, by when they were sent", ylim=(0, None))
    axes.legend()
    figure.savefig(path)
