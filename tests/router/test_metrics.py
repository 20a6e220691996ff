from baton.events import EventStream, Lifecycle
from baton.fleet import KVBlocks, Member, ModelInfo, Role, WorkerInfo, WorkerLoad, WorkerProfile, WorkerState
from baton.lifecycle import Transition
from baton.router.handoff_metrics import timeline
from baton.router.metrics import RouterMetrics
from baton.wire.decode_pb2 import ReserveReply

MEMBER = Member(
    WorkerInfo("d0", b"e", Role.DECODE, "h:1", 1, ModelInfo("m", "f", 9, 9), b"", 16, WorkerProfile(), "0"),
    WorkerState.READY,
    WorkerLoad(running=3, waiting=2, kv_blocks=KVBlocks(total=10, free=4, cached=1, used=4, reserved=1)),
)


def values(metrics: RouterMetrics) -> dict[str, float]:
    lines = metrics.text().decode().splitlines()
    return {
        line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if not line.startswith("#")
    }


def test_every_figure_comes_from_the_event_stream() -> None:
    metrics = RouterMetrics(lambda: [MEMBER], lambda: "m")
    stream = EventStream()
    stream.subscribe(metrics.on_event)
    done = Lifecycle("a", stream)
    done.move(Transition.PLACE, site="remote", prompt_tokens=100)
    done.move(Transition.SCHEDULE)
    done.move(Transition.FIRST_TOKENS, cached_tokens=32)
    times_s = {"queued_s": 0.2, "reserve_s": 0.004, "first_byte_s": 0.3, "last_byte_s": 0.9}
    times_s |= {"acknowledged_s": 1.0, "exposed_s": 0.05}
    done.move(Transition.HAND_OFF, blocks=5, bytes=5000, scheme="shm", **times_s)
    done.move(Transition.FINISH, output_tokens=10, e2e_s=1.0, ttft_s=0.1, tpot_s=0.1)
    failed = Lifecycle("b", stream)
    failed.move(Transition.PLACE, site="remote", prompt_tokens=7)
    failed.move(Transition.FAIL, code="worker_failed", output_tokens=2)
    read = values(metrics)
    assert read["baton_prompt_tokens_total"] == 107
    assert read["baton_cached_prompt_tokens_total"] == 32
    assert read["baton_generation_tokens_total"] == 12
    assert read["baton_handoff_bytes_total"] == 5000
    assert read['baton_handoffs_total{scheme="shm"}'] == 1
    for name, time_s in times_s.items():
        assert read[f"baton_handoff_{name.removesuffix('_s')}_seconds_sum"] == time_s
    assert read["baton_requests_finished_total"] == 1
    assert read['baton_requests_unfinished_total{code="worker_failed",state="failed"}'] == 1
    assert read['vllm:time_to_first_token_seconds_count{model_name="m"}'] == 1


def test_the_error_of_a_prediction_is_signed_realised_less_predicted() -> None:
    metrics = RouterMetrics(lambda: [MEMBER], lambda: "m")
    stream = EventStream()
    stream.subscribe(metrics.on_event)
    for name, error_s in (("late", 0.2), ("early", -0.02)):
        request = Lifecycle(name, stream)
        request.move(Transition.PLACE, site="remote", prompt_tokens=1)
        request.move(Transition.SCHEDULE)
        request.move(Transition.FIRST_TOKENS, cached_tokens=0)
        request.move(Transition.HAND_OFF, blocks=1, bytes=1, scheme="shm")
        request.move(Transition.FINISH, output_tokens=2, e2e_s=1.0, ttft_s=1.0, ttft_error_s=error_s)
    read = values(metrics)
    bucket = "baton_ttft_prediction_error_seconds_bucket"
    assert [read[f'{bucket}{{le="{le}"}}'] for le in ("-0.025", "0.0", "0.1", "0.25")] == [0, 1, 1, 2]
    assert read["baton_tpot_prediction_error_seconds_count"] == 0


def test_a_hand_off_of_which_the_prefill_worker_could_not_tell_is_counted_and_not_timed() -> None:
    metrics = RouterMetrics(lambda: [MEMBER], lambda: "m")
    stream = EventStream()
    stream.subscribe(metrics.on_event)
    life = Lifecycle("a", stream)
    life.move(Transition.PLACE, site="remote", prompt_tokens=100)
    life.move(Transition.SCHEDULE)
    life.move(Transition.FIRST_TOKENS, cached_tokens=0)
    life.move(Transition.HAND_OFF, **timeline(ReserveReply(missing_blocks=7, waited_s=0.5), 0.25, None))
    read = values(metrics)
    assert read['baton_handoffs_total{scheme="unknown"}'] == 1
    assert read["baton_handoff_blocks_total"] == 7
    assert read["baton_handoff_reserve_seconds_sum"] == 0.5
    assert read["baton_handoff_start_seconds_sum"] == 0.25
    assert read["baton_handoff_exposed_seconds_count"] == 0


def test_the_fleet_is_read_when_scraped() -> None:
    members = [MEMBER]
    metrics = RouterMetrics(lambda: members, lambda: "m")
    read = values(metrics)
    assert read['baton_worker_running{role="decode",worker="d0"}'] == 3
    assert read['vllm:kv_cache_usage_perc{model_name="m"}'] == 0.5
    members.clear()
    assert values(metrics)["baton_fleet_running"] == 0
