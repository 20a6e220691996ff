"""The fault campaign: whatever order things happen in, and whatever gets lost, no block holds a stranger's bytes.

`campaign.schedule` says how the real parts of the hand-off are driven. Each schedule checks that a transfer
which is done brought exactly its request's blocks, that no block changed but by its owner or its promise, that
every half of a transfer ended once, and that at the end no block, promise, lease or session is left.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest
from campaign import mutations
from campaign.runner import first_corruption, prepare, run_everywhere, run_seed, run_seeds

SHORT, LONG = range(1500), range(10**6)

RACES = {
    "a frame came after the end of its transfer",
    "a frame came for a slot that another transfer has by now",
    "a frame overtook others",
    "a frame was duplicated",
    "a frame was lost",
    "a link was made: copying",
    "a link was made: direct",
    "a link was made: mapping",
    "a fence had the rest of a frame copied",
    "a link was reset",
    "a payload was changed on its way",
    "a promised block was refused to another transfer",
    "a receiver crashed with half of the blocks landed",
    "a receiver crashed with its acknowledgement on the way",
    "a restarted receiver was connected to",
    "a sender crashed in the middle of a copy",
    "a ticket in use was replayed by another sender",
    "a ticket of a receiver that had crashed was taken up",
    "a ticket of a receiver's former start was refused",
    "a ticket was refused that its sender had used",
    "an acknowledgement was lost",
    "receiving ended as done",
    "receiving ended as failed",
    "sending ended as done",
    "sending ended as failed",
    "the receiver fenced in the middle of a copy",
    "the receiver's fence had to wait",
    "the sender fenced in the middle of a copy",
    "the sender's fence had to wait",
    "time ran out for a transfer",
}
"""All that a campaign counts; each has to come up, or it shows nothing of it."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(monkeypatch)


def test_no_schedule_breaks_a_promise_and_every_race_comes_up(request: pytest.FixtureRequest) -> None:
    seed: int | None = request.config.getoption("--campaign-seed")
    if seed is not None:
        run_seed(seed, Counter())
        return
    assert set(run_seeds(SHORT)) == RACES


@pytest.mark.parametrize("mutation", mutations.QUICKLY_FOUND)
def test_a_hand_off_without_one_of_its_fences_corrupts_blocks(
    mutation: mutations.Mutation, monkeypatch: pytest.MonkeyPatch
) -> None:
    mutation(monkeypatch)
    assert first_corruption(range(5000)) is not None


@pytest.mark.soak
def test_a_hand_off_without_the_sessions_lock_corrupts_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    mutations.without_the_sessions_lock(monkeypatch)
    assert first_corruption(range(100_000)) is not None


@pytest.mark.soak
def test_a_million_schedules_break_no_promise(
    process_server: None, capfd: pytest.CaptureFixture[str]
) -> None:
    with capfd.disabled():
        seen = run_everywhere(LONG, os.cpu_count() or 1)
        print("\n".join(f"{count:>10,}  {race}" for race, count in sorted(seen.items())))
    assert set(seen) == RACES
