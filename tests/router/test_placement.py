from baton.router.placement import Candidate, Demand, Placement, Refusal, Snapshot, place


def placed(snapshot: Snapshot, demand: Demand) -> Placement:
    placement = place(snapshot, demand)
    assert isinstance(placement, Placement)
    return placement


def candidate(worker_id: str, **figures: float) -> Candidate:
    return Candidate(worker_id, **{"available_blocks": 100, **figures})  # type: ignore[arg-type]


DEMAND = Demand(prompt_tokens=400, blocks=25, local_prefill_tokens=64)


def test_the_shortest_prefill_queue_wins() -> None:
    snapshot = Snapshot(
        [candidate("p0", queued_tokens=900), candidate("p1", queued_tokens=100)], [candidate("d0")]
    )
    assert placed(snapshot, DEMAND).prefill == "p1"


def test_a_longer_queue_wins_on_a_faster_worker() -> None:
    slow = candidate("p0", queued_tokens=100, prefill_tokens_per_s=100)
    fast = candidate("p1", queued_tokens=900, prefill_tokens_per_s=2000)
    assert placed(Snapshot([slow, fast], [candidate("d0")]), DEMAND).prefill == "p1"


def test_a_cached_prefix_outweighs_a_slightly_longer_queue() -> None:
    cold = candidate("p0", queued_tokens=0)
    warm = candidate("p1", queued_tokens=100, cached_tokens=320)
    placement = placed(Snapshot([cold, warm], [candidate("d0")]), DEMAND)
    assert placement.prefill == "p1"
    assert any("320 cached" in reason for reason in placement.reasons)


def test_decode_prefers_the_smaller_batch_and_avoids_a_full_pool() -> None:
    busy, free = candidate("d0", sequences=30), candidate("d1", sequences=2)
    full = candidate("d2", sequences=0, available_blocks=1)
    assert placed(Snapshot([candidate("p0")], [busy, free, full]), DEMAND).decode == "d1"


def test_a_session_keeps_its_decode_worker() -> None:
    workers = [candidate(f"d{i}") for i in range(5)]
    demand = Demand(400, 25, session_key="alice")
    chosen = {placed(Snapshot([candidate("p0")], workers), demand).decode for _ in range(3)}
    assert len(chosen) == 1


def test_few_uncached_tokens_are_prefilled_where_the_rest_is_cached() -> None:
    snapshot = Snapshot([candidate("p0")], [candidate("d0", cached_tokens=352)])
    placement = placed(snapshot, DEMAND)
    assert placement.prefill is None
    assert any("only 48 tokens" in reason for reason in placement.reasons)


def test_an_uncached_prompt_goes_through_a_prefill_worker_however_short() -> None:
    assert placed(
        Snapshot([candidate("p0")], [candidate("d0")]), Demand(3, 1, local_prefill_tokens=64)
    ).prefill


def test_without_prefill_workers_decode_prefills_locally() -> None:
    assert placed(Snapshot([], [candidate("d0")]), DEMAND).prefill is None


def test_without_decode_workers_the_request_is_refused_with_a_reason() -> None:
    refusal = place(Snapshot([candidate("p0")], []), DEMAND)
    assert refusal == Refusal("no decode worker is ready")
