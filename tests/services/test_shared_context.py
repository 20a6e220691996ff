"""What the router counts of a decode worker's sequences."""

from __future__ import annotations

from mini_fleet import FleetOfTest, Script, until
from model_folders import prompt_ids
from routed_fleet import Router, routed
from stepped_pair import request

from baton.fleet import Role
from baton.router.placement import Placement, place
from baton.router.policies import load_policy
from baton.router.prompt_hashes import PromptHashes
from baton.router.snapshot import Demand


async def test_a_prefix_that_sequences_share_counts_for_each_that_reads_it() -> None:
    fleet, asked = FleetOfTest(), request(prompt_ids(40), n=2)
    hashes = PromptHashes(asked.token_ids, "")

    def context_tokens(router: Router) -> list[float]:
        column: list[float] = router.workers.snapshot(hashes, ()).decode.context_tokens.tolist()
        return column

    async with fleet.scripted_worker("d", Role.DECODE, Script()), routed(fleet) as router:
        placement = place(router.workers.snapshot(hashes, ()), Demand(40, 3), load_policy("predicted"))
        assert isinstance(placement, Placement)
        with router.workers.lease(placement, asked, hashes):
            with router.workers.lease(placement, asked, hashes) as moving:
                assert context_tokens(router) == [2 * 2 * 40]
                moving.moved_on()
                assert context_tokens(router) == [2 * 40]
            assert context_tokens(router) == [2 * 40]
        assert context_tokens(router) == [0]


async def test_a_sequence_counts_as_queued_until_its_prompt_has_its_turn() -> None:
    fleet, asked, script = FleetOfTest(), request(prompt_ids(40), n=2), Script()
    hashes = PromptHashes(asked.token_ids, "")
    async with (
        fleet.scripted_worker("p", Role.PREFILL, script),
        fleet.scripted_worker("d", Role.DECODE, script),
        routed(fleet) as router,
    ):
        await until(lambda: router.workers.has_ready("p", Role.PREFILL))

        def counted() -> list[float]:
            decode = router.workers.snapshot(hashes, ()).decode
            return [decode.sequences[0], decode.queued_sequences[0]]

        placement = place(router.workers.snapshot(hashes, ()), Demand(40, 3), load_policy("predicted"))
        assert isinstance(placement, Placement)
        with router.workers.lease(placement, asked, hashes) as lease:
            assert counted() == [2, 2]
            lease.scheduled()
            assert counted() == [2, 0]
        with router.workers.lease(placement, asked, hashes) as lease:
            lease.moved_on()
            assert counted() == [0, 0]
        assert counted() == [0, 0]
