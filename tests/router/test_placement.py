import math
from dataclasses import replace

import pytest

from baton.fleet import WorkerProfile
from baton.router.candidates import Candidate
from baton.router.placement import Placement, PrefillSite, Refusal, place
from baton.router.policies import load_policy
from baton.router.snapshot import Demand, Disaggregation, Snapshot

PREDICTED = load_policy("predicted")
DEMAND = Demand(prompt_tokens=400, blocks=25, local_prefill_tokens=64)


def placed(snapshot: Snapshot, demand: Demand) -> Placement:
    placement = place(snapshot, demand, PREDICTED)
    assert isinstance(placement, Placement)
    return placement


def candidate(worker_id: str, **figures: object) -> Candidate:
    waiting = 50 if "queued_tokens" in figures else 0
    return Candidate(worker_id, **{"available_blocks": 100, "sequences": waiting, **figures})  # type: ignore[arg-type]


def test_the_shortest_prefill_queue_wins() -> None:
    snapshot = Snapshot.of(
        [candidate("p0", queued_tokens=900), candidate("p1", queued_tokens=100)], [candidate("d0")]
    )
    assert placed(snapshot, DEMAND).prefill == "p1"


def test_a_longer_queue_wins_on_a_faster_worker() -> None:
    slow = candidate("p0", queued_tokens=100, profile=WorkerProfile(prefill_tokens_per_s=100))
    fast = candidate("p1", queued_tokens=900, profile=WorkerProfile(prefill_tokens_per_s=2000))
    assert placed(Snapshot.of([slow, fast], [candidate("d0")]), DEMAND).prefill == "p1"


def test_a_cached_prefix_outweighs_a_slightly_longer_queue() -> None:
    cold = candidate("p0", queued_tokens=0)
    warm = candidate("p1", queued_tokens=100, cached_tokens=320)
    placement = placed(Snapshot.of([cold, warm], [candidate("d0")]), DEMAND)
    assert placement.prefill == "p1"
    assert any("320 cached" in reason for reason in placement.reasons)


def test_decode_prefers_the_smaller_batch_and_avoids_a_full_pool() -> None:
    busy, free = candidate("d0", sequences=30), candidate("d1", sequences=2)
    full = candidate("d2", sequences=0, available_blocks=1)
    assert placed(Snapshot.of([candidate("p0")], [busy, free, full]), DEMAND).decode == "d1"


def test_the_faster_of_two_equally_loaded_decode_workers_wins() -> None:
    slow = candidate("d0", sequences=4, profile=WorkerProfile(decode_step_s=0.03))
    fast = candidate("d1", sequences=4, profile=WorkerProfile(decode_step_s=0.02))
    assert placed(Snapshot.of([candidate("p0")], [slow, fast]), DEMAND).decode == "d1"


def test_a_session_keeps_its_decode_worker() -> None:
    workers = [candidate(f"d{i}") for i in range(5)]
    demand = Demand(400, 25, session_key="alice")
    chosen = {placed(Snapshot.of([candidate("p0")], workers), demand).decode for _ in range(3)}
    assert len(chosen) == 1


def test_few_uncached_tokens_are_prefilled_where_the_rest_is_cached() -> None:
    snapshot = Snapshot.of([candidate("p0")], [candidate("d0", cached_tokens=352)])
    placement = placed(snapshot, DEMAND)
    assert placement.prefill is None
    assert placement.site is PrefillSite.LOCAL_CACHED


def test_an_uncached_prompt_goes_through_a_prefill_worker_however_short() -> None:
    assert placed(
        Snapshot.of([candidate("p0")], [candidate("d0")]), Demand(3, 1, local_prefill_tokens=64)
    ).prefill


def test_disaggregation_can_be_switched_off_and_made_a_rule() -> None:
    cached = Snapshot.of([candidate("p0")], [candidate("d0", cached_tokens=400)])
    cold = Snapshot.of([candidate("p0")], [candidate("d0")])
    never = placed(cold, replace(DEMAND, disaggregation=Disaggregation.NEVER))
    always = placed(cached, replace(DEMAND, disaggregation=Disaggregation.ALWAYS))
    assert (never.prefill, never.site) == (None, PrefillSite.LOCAL_NEVER)
    assert (always.prefill, always.site) == ("p0", PrefillSite.REMOTE)


def test_a_decode_worker_computes_a_prompt_when_prefill_is_busy_and_its_streams_stay_within_the_objective() -> (
    None
):
    busy = candidate("p0", queued_tokens=90_000, profile=PROFILE)
    demand = replace(DEMAND, tpot_s=0.2)
    idle, given_much = (candidate("d0", profile=PROFILE, local_prefill_s=seconds) for seconds in (0.0, 3.9))
    assert placed(Snapshot.of([busy], [idle]), demand).site is PrefillSite.LOCAL_PREDICTED
    assert placed(Snapshot.of([busy], [given_much]), demand).site is PrefillSite.REMOTE
    for tpot_s in (0.021, None):
        handed_off = placed(Snapshot.of([busy], [idle]), replace(demand, tpot_s=tpot_s))
        assert handed_off.site is PrefillSite.REMOTE


def test_that_a_session_decodes_with_many_is_no_reason_to_compute_its_prompt_elsewhere() -> None:
    prefill = candidate("p0", profile=PROFILE)
    demand = replace(DEMAND, session_key="alice", tpot_s=0.2)
    idle = [candidate(f"d{i}", profile=PROFILE) for i in range(2)]
    own = placed(Snapshot.of([prefill], idle), demand).decode
    decoding = [replace(d, sequences=60 if d.worker_id == own else 40) for d in idle]
    placement = placed(Snapshot.of([prefill], decoding), demand)
    assert (placement.site, placement.decode) == (PrefillSite.REMOTE, own)


def test_a_session_goes_where_more_of_its_prompt_is_cached_than_on_its_own_worker() -> None:
    demand = Demand(400, 25, session_key="alice")
    cold = [candidate(f"d{i}") for i in range(5)]
    own = placed(Snapshot.of([candidate("p0")], cold), demand).decode
    other = next(worker.worker_id for worker in cold if worker.worker_id != own)
    warm = [replace(w, cached_tokens=320 if w.worker_id == other else 0) for w in cold]
    assert placed(Snapshot.of([candidate("p0")], warm), demand).decode == other


def test_routers_agree_on_both_workers_of_a_new_session_whatever_they_have_placed_before() -> None:
    pools = ([candidate(f"{role}{i}") for i in range(9)] for role in "pd")
    snapshot = Snapshot.of(*pools)
    chosen = [
        {
            (placement.prefill, placement.decode)
            for n in range(4)
            for placement in [placed(snapshot, replace(DEMAND, session_key=f"s{key}", ordinal=n, seed=n))]
        }
        for key in range(60)
    ]
    assert all(len(pairs) == 1 for pairs in chosen)
    assert len({prefill for pairs in chosen for prefill, _ in pairs}) == 9


def test_without_prefill_workers_decode_prefills_locally() -> None:
    assert placed(Snapshot.of([], [candidate("d0")]), DEMAND).prefill is None


def test_without_decode_workers_the_request_is_refused_with_a_reason() -> None:
    refusal = place(Snapshot.of([candidate("p0")], []), DEMAND, PREDICTED)
    assert refusal == Refusal("no decode worker is ready")


# --- the terms of a prediction -----------------------------------------------------------------------------

PROFILE = WorkerProfile(
    prefill_tokens_per_s=1000,
    decode_step_s=0.02,
    copy_bytes_per_s=1e6,
    prefill_s_per_pair=1e-6,
    decode_s_per_sequence=0.001,
    decode_s_per_context_token=1e-5,
)


def test_each_term_comes_from_the_profile_of_the_worker_that_does_the_work() -> None:
    prefill = candidate("p0", queued_tokens=500, cached_tokens=100, profile=PROFILE)
    decode = candidate(
        "d0", sequences=3, context_tokens=1000, cached_tokens=200, kv_bytes_per_token=5000, profile=PROFILE
    )
    prediction = placed(Snapshot.of([prefill], [decode]), DEMAND).prediction
    assert prediction.queue_s == 0.5
    assert prediction.prefill_tokens == 300
    assert prediction.prefill_s == pytest.approx(0.3 + 300 * (100 + 150) * 1e-6)
    assert prediction.reserve_s == 0
    assert prediction.handoff_s == pytest.approx(200 * 5000 / 1e6 - prediction.prefill_s)
    assert prediction.step_s == pytest.approx(0.02 + 3 * 0.001 + 1400 * 1e-5)
    assert prediction.ttft_s == prediction.queue_s + prediction.prefill_s
    assert prediction.second_token_s == pytest.approx(
        prediction.ttft_s + prediction.handoff_s + prediction.tpot_s
    )


def test_a_handoff_within_a_host_takes_what_its_own_link_takes() -> None:
    near = replace(PROFILE, same_host_bytes_per_s=1e7, same_host_latency_s=0.5)
    prefill = candidate("p0", host="a", profile=near)

    def handoff_s(host: str, profile: WorkerProfile) -> float:
        decode = candidate("d0", host=host, kv_bytes_per_token=50_000, profile=profile)
        prediction = placed(Snapshot.of([prefill], [decode]), DEMAND).prediction
        return prediction.handoff_s + prediction.prefill_s

    across, within = 400 * 50_000 / 1e6, 0.5 + 400 * 50_000 / 1e7
    assert handoff_s("a", near) == pytest.approx(within)
    assert handoff_s("b", near) == handoff_s("", near) == pytest.approx(across)
    assert handoff_s("a", PROFILE) == pytest.approx(0.5 + across), "the slower end's rate"


def test_of_two_decode_workers_alike_the_one_that_a_handoff_reaches_sooner_is_taken() -> None:
    near = replace(PROFILE, same_host_bytes_per_s=1e9)
    prefill = candidate("p0", host="b", profile=near)
    decode = [candidate(f"d-{host}", host=host, kv_bytes_per_token=50_000, profile=near) for host in "abc"]
    assert placed(Snapshot.of([prefill], decode), DEMAND).decode == "d-b"


def test_the_queue_is_what_the_router_knows_or_what_the_worker_reports_whichever_is_longer() -> None:
    own = candidate("p0", queued_tokens=500, queued_s=2.0, profile=PROFILE)
    reported = candidate("p0", queued_tokens=5000, queued_s=2.0, profile=PROFILE)
    waits = [
        placed(Snapshot.of([prefill], [candidate("d0")]), DEMAND).prediction.queue_s
        for prefill in (own, reported)
    ]
    assert waits == [2.0, 5.0]


def test_the_first_token_waits_for_decode_memory_where_that_takes_longer_than_the_prompt() -> None:
    decode = candidate("d0", sequences=1, available_blocks=0, profile=PROFILE)
    prediction = placed(Snapshot.of([candidate("p0", profile=PROFILE)], [decode]), DEMAND).prediction
    assert prediction.reserve_s == pytest.approx(25 * 0.02)
    assert prediction.ttft_s == prediction.reserve_s


def test_a_worker_without_a_profile_is_predicted_all_the_same() -> None:
    prediction = placed(Snapshot.of([candidate("p0")], [candidate("d0")]), DEMAND).prediction
    assert 0 < prediction.ttft_s < math.inf
    assert 0 < prediction.tpot_s < math.inf


# --- where a prompt is computed ------------------------------------------------------------------------------

STREAMING = {"profile": PROFILE, "sequences": 40, "context_tokens": 2000}
OBJECTIVES = replace(DEMAND, ttft_s=4.0, tpot_s=0.2)


def test_idle_prefill_workers_are_not_relieved_at_the_expense_of_streams() -> None:
    streaming = candidate("d0", cached_tokens=320, **STREAMING)
    snapshot = Snapshot.of([candidate("p0", profile=PROFILE)], [streaming])
    assert placed(snapshot, OBJECTIVES).site is PrefillSite.REMOTE


def test_busy_prefill_workers_are_relieved_while_streams_have_slack() -> None:
    busy = candidate("p0", queued_tokens=2000, profile=PROFILE)
    snapshot = Snapshot.of([busy], [candidate("d0", **STREAMING)])
    assert placed(snapshot, OBJECTIVES).site is PrefillSite.LOCAL_PREDICTED
    without_slack = replace(OBJECTIVES, tpot_s=0.1)
    assert placed(snapshot, without_slack).site is PrefillSite.REMOTE


def test_what_a_request_has_waited_already_counts_against_its_objective() -> None:
    busy = candidate("p0", queued_tokens=400, profile=PROFILE)
    snapshot = Snapshot.of([busy], [candidate("d0", **STREAMING)])
    assert placed(snapshot, OBJECTIVES).site is PrefillSite.REMOTE
    late = replace(OBJECTIVES, waited_s=3.0)
    assert placed(snapshot, late).site is PrefillSite.LOCAL_PREDICTED


def test_who_has_waited_beyond_the_objective_is_no_reason_any_more_to_hold_up_streams() -> None:
    busy = candidate("p0", queued_tokens=400, profile=PROFILE)
    snapshot = Snapshot.of([busy], [candidate("d0", **STREAMING)])
    assert placed(snapshot, replace(OBJECTIVES, waited_s=3.9)).site is PrefillSite.LOCAL_PREDICTED
    assert placed(snapshot, replace(OBJECTIVES, waited_s=4.0)).site is PrefillSite.REMOTE


# --- where streams are late ----------------------------------------------------------------------------------


def decoding(**sequences: int) -> Snapshot:
    workers = [candidate(name, sequences=count, profile=PROFILE) for name, count in sequences.items()]
    return Snapshot.of([candidate("p0", profile=PROFILE)], workers)


IN_50_MS = replace(DEMAND, tpot_s=0.05)


def test_a_worker_whose_streams_would_miss_their_objective_is_passed_over_even_by_its_sessions() -> None:
    sessions = [replace(IN_50_MS, session_key=f"session {number}") for number in range(20)]
    assert {placed(decoding(d0=40, d1=20, d2=40), demand).decode for demand in sessions} == {"d1"}
    assert {placed(decoding(d0=20, d1=20, d2=40), demand).decode for demand in sessions} == {"d0", "d1"}


def test_what_would_be_late_everywhere_goes_where_streams_are_the_latest_and_spares_the_others() -> None:
    crowded = decoding(d0=30, d1=60, d2=40)
    assert placed(crowded, IN_50_MS).decode == "d1"
    assert placed(crowded, replace(IN_50_MS, session_key="alice")).decode == "d1"
    assert placed(crowded, DEMAND).decode == "d0"


def test_a_worker_without_a_place_in_time_is_passed_over_and_one_with_a_short_wait_is_not() -> None:
    full = candidate("d0", sequences=20, max_running=16, cached_tokens=384, profile=PROFILE)
    free = candidate("d1", sequences=18, max_running=20, kv_bytes_per_token=5000, profile=PROFILE)
    snapshot = Snapshot.of([candidate("p0", profile=PROFILE)], [full, free])
    assert placed(snapshot, replace(IN_50_MS, ttft_s=0.5)).decode == "d0"
    placement = placed(snapshot, replace(IN_50_MS, ttft_s=0.1))
    assert (placement.decode, placement.prediction.reserve_s) == ("d1", 0.0)


def test_an_objective_that_no_worker_would_meet_alone_is_no_reason_to_crowd_one() -> None:
    impossible = replace(DEMAND, tpot_s=0.001)
    assert placed(decoding(d0=30, d1=60, d2=40), impossible).decode == "d0"
