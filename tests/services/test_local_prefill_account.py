"""What decode workers were given to compute of late is known while it counts, whatever becomes of the fleet."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from mini_fleet import FleetOfTest, Script, until
from model_folders import prompt_ids
from routed_fleet import Router, routed
from stepped_pair import request

from baton.fleet import Role
from baton.router.candidates import Candidate
from baton.router.fleet_columns import LOCAL_MEMORY_S, FleetColumns
from baton.router.placement import Placement, place
from baton.router.policies import load_policy
from baton.router.prefix_index import PrefixIndex
from baton.router.prompt_hashes import PromptHashes
from baton.router.snapshot import Demand, Snapshot

ASKED = request(prompt_ids(9), n=1)
HASHES = PromptHashes(prompt_ids(9), "")


def known(router: Router) -> Snapshot:
    return router.workers.snapshot(HASHES, ())


async def test_new_speeds_of_one_worker_leave_the_account_of_all() -> None:
    fleet, script = FleetOfTest(), Script()
    async with (
        fleet.scripted_worker("d0", Role.DECODE, script),
        fleet.scripted_worker("d1", Role.DECODE, script),
        routed(fleet) as router,
    ):
        await until(lambda: len(known(router).decode) == 2)
        placement = place(known(router), Demand(prompt_tokens=9, blocks=1), load_policy("round_robin"))
        assert isinstance(placement, Placement)
        with router.workers.lease(placement, ASKED, HASHES):
            assert sum(known(router).decode.local_prefill_s) > 0
        member = fleet.members["d1"]
        faster = replace(member.worker, profile=replace(member.worker.profile, decode_step_s=0.005))
        fleet.members["d1"] = replace(member, worker=faster)
        router.workers.update(fleet.snapshot)
        decode = known(router).decode
        assert decode.profile.decode_step_s[decode.index("d1")] == 0.005  # type: ignore[index]
        assert sum(decode.local_prefill_s) > 0


def test_the_account_is_kept_by_worker_and_fades_on() -> None:
    index = PrefixIndex()
    d0, d1, d2 = (Candidate(worker_id) for worker_id in ("d0", "d1", "d2"))
    columns = FleetColumns({Role.DECODE: [d1, d2]}, index.slot)
    columns.snapshot(index.match_all(()), now_s=100.0)
    columns.note_local_prefill("d1", 0.5)
    columns.note_local_prefill("d2", 0.3)
    columns = columns.made_anew({Role.DECODE: [d0, d1], Role.PREFILL: [d2]})
    snapshot = columns.snapshot(index.match_all(()), now_s=100.0 + LOCAL_MEMORY_S)
    assert snapshot.decode.worker_ids == ["d0", "d1"]
    assert snapshot.decode.local_prefill_s.tolist() == [0.0, pytest.approx(0.5 / math.e)]
    assert snapshot.prefill.local_prefill_s.tolist() == [0.0]
