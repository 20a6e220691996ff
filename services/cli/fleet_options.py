"""How many processes `baton up` starts, and what each worker gets of the machine."""

from __future__ import annotations

import os
from dataclasses import dataclass

from baton.cli import options as opt
from baton.cli.cores import available_cores, share_out
from baton.cli.option_groups import OptionGroup
from baton.fleet import Role


@dataclass(frozen=True, slots=True)
class FleetOptions(OptionGroup):
    routers: opt.Routers = 1
    prefill: opt.PrefillWorkers = 1
    decode: opt.DecodeWorkers = 1
    tp: opt.Tp = 1
    prefill_tp: opt.PrefillTp = None
    decode_tp: opt.DecodeTp = None
    threads: opt.Threads = None
    pin: opt.Pin = True

    def tp_of(self, role: Role) -> int:
        return (self.prefill_tp if role is Role.PREFILL else self.decode_tp) or self.tp

    def threads_each(self) -> int:
        """Compute threads of each process of a worker."""
        return self.threads or max(1, (os.cpu_count() or 1) // sum(self._processes().values()))

    def cores(self) -> dict[str, str]:
        """By worker, the cores that it keeps to; nothing where any will do."""
        return share_out(available_cores(), self._processes()) if self.pin else {}

    def _processes(self) -> dict[str, int]:
        """By worker, how many share its model."""
        counts = {Role.PREFILL: self.prefill, Role.DECODE: self.decode}
        return {
            f"{role.value}-{number}": self.tp_of(role)
            for role, workers in counts.items()
            for number in range(workers)
        }
