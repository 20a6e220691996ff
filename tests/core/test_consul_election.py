"""Two processes that stand for one office on a real Consul."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from consul_agent import ConsulAgent

CANDIDATE = Path(__file__).parents[1] / "candidate.py"


class Candidates:
    """Processes that stand for one office, and the file of what they did while they held it."""

    def __init__(self, agent: ConsulAgent, acts: Path) -> None:
        self._acts = acts
        self.processes = {
            name: subprocess.Popen(
                [sys.executable, "-P", str(CANDIDATE), agent.address, "fleet", name, str(acts)]
            )
            for name in ("a", "b")
        }

    def __enter__(self) -> Candidates:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def acts(self) -> list[str]:
        """Names, in the order of time."""
        if not self._acts.exists():
            return []
        lines = [line.split() for line in self._acts.read_text().splitlines()]
        return [name for name, _ in sorted(lines, key=lambda line: float(line[1]))]

    def terms(self) -> list[str]:
        """Who held the office, one after another."""
        acts = self.acts()
        return [name for number, name in enumerate(acts) if number == 0 or acts[number - 1] != name]

    def wait_until(self, condition: Callable[[list[str]], bool]) -> None:
        deadline_s = time.monotonic() + 20.0
        while not condition(self.acts()):
            assert time.monotonic() < deadline_s, self.terms()
            time.sleep(0.05)


def test_of_two_processes_one_at_a_time_leads_through_an_empty_restart_of_consul_and_a_leaders_death(
    tmp_path: Path,
) -> None:
    with ConsulAgent() as agent, Candidates(agent, tmp_path / "acts") as candidates:
        candidates.wait_until(lambda acts: len(acts) > 10)
        agent.kill()
        agent.start()
        acted = len(candidates.acts())
        candidates.wait_until(lambda acts: len(acts) > acted + 100)
        assert len(candidates.terms()) <= 2, "one term before, one after, never to and fro"
        leader = candidates.acts()[-1]
        [other] = set(candidates.processes) - {leader}
        candidates.processes[leader].kill()
        candidates.wait_until(lambda acts: acts[-1] == other)
        assert candidates.terms()[-2:] == [leader, other]
        assert len(candidates.terms()) <= 3
