"""The only crossing between protobuf messages and dataclasses. Decoding checks what the types cannot."""

from __future__ import annotations

import math
from dataclasses import asdict, fields

from baton.errors import ERRORS_BY_CODE, BatonError, InvalidRequest, WorkerFailed
from baton.fleet import (
    Fleet,
    HandoffTotals,
    KVBlocks,
    Member,
    ModelInfo,
    Role,
    WorkerInfo,
    WorkerLoad,
    WorkerProfile,
    WorkerState,
)
from baton.request import FinishReason, GenerationRequest, SamplingParams, Token, TokenOutput
from baton.wire import registry_pb2, types_pb2
from baton.wire.announcement import require_sound, require_sound_load

_FINISH_TO_WIRE = {
    None: types_pb2.FINISH_REASON_UNSPECIFIED,
    FinishReason.STOP: types_pb2.FINISH_REASON_STOP,
    FinishReason.LENGTH: types_pb2.FINISH_REASON_LENGTH,
}
_FINISH_FROM_WIRE = {wire: reason for reason, wire in _FINISH_TO_WIRE.items()}
_ROLE_TO_WIRE = {Role.PREFILL: registry_pb2.ROLE_PREFILL, Role.DECODE: registry_pb2.ROLE_DECODE}
_ROLE_FROM_WIRE = {wire: role for role, wire in _ROLE_TO_WIRE.items()}
_STATE_TO_WIRE = {
    WorkerState.READY: registry_pb2.WORKER_STATE_READY,
    WorkerState.DRAINING: registry_pb2.WORKER_STATE_DRAINING,
    WorkerState.STALLED: registry_pb2.WORKER_STATE_STALLED,
    WorkerState.SUSPECTED: registry_pb2.WORKER_STATE_SUSPECTED,
}
_STATE_FROM_WIRE = {wire: state for state, wire in _STATE_TO_WIRE.items()}


def sampling_to_wire(sampling: SamplingParams) -> types_pb2.SamplingParams:
    return types_pb2.SamplingParams(
        max_tokens=sampling.max_tokens,
        min_tokens=sampling.min_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        min_p=sampling.min_p,
        repetition_penalty=sampling.repetition_penalty,
        presence_penalty=sampling.presence_penalty,
        frequency_penalty=sampling.frequency_penalty,
        logit_bias=[types_pb2.LogitBias(token_id=t, bias=b) for t, b in sampling.logit_bias],
        seed=sampling.seed,
        logprobs=sampling.logprobs,
        stop_token_ids=sampling.stop_token_ids,
        ignore_eos=sampling.ignore_eos,
    )


def sampling_from_wire(wire: types_pb2.SamplingParams) -> SamplingParams:
    if wire.max_tokens < 1:
        raise InvalidRequest(f"max_tokens is {wire.max_tokens}, at least 1 is needed", field="max_tokens")
    return SamplingParams(
        max_tokens=wire.max_tokens,
        min_tokens=wire.min_tokens,
        temperature=wire.temperature,
        top_p=wire.top_p,
        top_k=wire.top_k,
        min_p=wire.min_p,
        repetition_penalty=wire.repetition_penalty,
        presence_penalty=wire.presence_penalty,
        frequency_penalty=wire.frequency_penalty,
        logit_bias=tuple((entry.token_id, entry.bias) for entry in wire.logit_bias),
        seed=wire.seed,
        logprobs=wire.logprobs if wire.HasField("logprobs") else None,
        stop_token_ids=tuple(wire.stop_token_ids),
        ignore_eos=wire.ignore_eos,
    )


def request_to_wire(request: GenerationRequest, remaining_s: float) -> types_pb2.Request:
    return types_pb2.Request(
        request_id=request.request_id,
        token_ids=request.token_ids,
        sampling=sampling_to_wire(request.sampling),
        n=request.n,
        cache_salt=request.cache_salt,
        session_key=request.session_key,
        priority=request.priority,
        remaining_s=remaining_s,
        generated_tokens=request.generated_tokens,
    )


def request_from_wire(wire: types_pb2.Request) -> GenerationRequest:
    """The request as a worker needs it; `deadline_s` counts from now."""
    if not wire.request_id:
        raise InvalidRequest("request_id is empty", field="request_id")
    if not wire.token_ids:
        raise InvalidRequest("token_ids is empty, at least 1 token is needed", field="token_ids")
    if wire.n < 1:
        raise InvalidRequest(f"n is {wire.n}, at least 1 is needed", field="n")
    if wire.generated_tokens and (wire.generated_tokens >= len(wire.token_ids) or wire.n > 1):
        raise InvalidRequest(
            f"generated_tokens is {wire.generated_tokens} of {len(wire.token_ids)} for {wire.n} choices: there is "
            "a prompt before them, and one choice",
            field="generated_tokens",
        )
    return GenerationRequest(
        request_id=wire.request_id,
        token_ids=tuple(wire.token_ids),
        sampling=sampling_from_wire(wire.sampling),
        n=wire.n,
        cache_salt=wire.cache_salt,
        session_key=wire.session_key,
        priority=wire.priority,
        deadline_s=wire.remaining_s,
        generated_tokens=wire.generated_tokens,
    )


def output_to_wire(output: TokenOutput) -> types_pb2.TokenOutput:
    token = output.token
    return types_pb2.TokenOutput(
        choice=output.choice,
        index=token.index,
        token_id=token.token_id,
        logprob=token.logprob,
        top_logprobs=[types_pb2.TokenLogprob(token_id=t, logprob=p) for t, p in token.top_logprobs],
        finish_reason=_FINISH_TO_WIRE[output.finish_reason],
        stop_token_id=output.stop_token_id,
    )


def output_from_wire(wire: types_pb2.TokenOutput) -> TokenOutput:
    token = Token(
        wire.index,
        wire.token_id,
        wire.logprob if wire.HasField("logprob") else None,
        tuple((entry.token_id, entry.logprob) for entry in wire.top_logprobs),
    )
    stop_token_id = wire.stop_token_id if wire.HasField("stop_token_id") else None
    return TokenOutput(wire.choice, token, _FINISH_FROM_WIRE[wire.finish_reason], stop_token_id)


def failure_to_wire(error: BatonError) -> types_pb2.Failure:
    return types_pb2.Failure(code=error.code, message=error.message, field=error.field or "")


def failure_from_wire(wire: types_pb2.Failure) -> BatonError:
    return ERRORS_BY_CODE.get(wire.code, WorkerFailed)(wire.message, field=wire.field or None)


def load_to_wire(load: WorkerLoad) -> types_pb2.WorkerLoad:
    return types_pb2.WorkerLoad(
        running=load.running,
        waiting=load.waiting,
        queued_tokens=load.queued_tokens,
        kv_blocks=types_pb2.KVBlocks(**asdict(load.kv_blocks)),
        kv_bytes_sent=load.kv_bytes_sent,
        kv_bytes_received=load.kv_bytes_received,
        preemptions=load.preemptions,
        handoffs=types_pb2.HandoffTotals(**asdict(load.handoffs)),
        busy_s=load.busy_s,
    )


def load_from_wire(wire: types_pb2.WorkerLoad) -> WorkerLoad:
    """Raises InvalidRequest naming the field where a worker reports nonsense."""
    blocks = wire.kv_blocks
    load = WorkerLoad(
        wire.running,
        wire.waiting,
        wire.queued_tokens,
        KVBlocks(blocks.total, blocks.free, blocks.cached, blocks.used, blocks.reserved),
        wire.kv_bytes_sent,
        wire.kv_bytes_received,
        wire.preemptions,
        HandoffTotals(**{each.name: getattr(wire.handoffs, each.name) for each in fields(HandoffTotals)}),
        wire.busy_s,
    )
    require_sound_load(load)
    return load


def worker_to_wire(worker: WorkerInfo) -> registry_pb2.WorkerInfo:
    model = worker.model
    return registry_pb2.WorkerInfo(
        worker_id=worker.worker_id,
        epoch=worker.epoch,
        role=_ROLE_TO_WIRE[worker.role],
        address=worker.address,
        pid=worker.pid,
        model=registry_pb2.ModelInfo(
            name=model.name,
            fingerprint=model.fingerprint,
            max_model_tokens=model.max_model_tokens,
            vocab_size=model.vocab_size,
            eos_token_ids=model.eos_token_ids,
        ),
        kv_layout=worker.kv_layout,
        block_size=worker.block_size,
        profile=registry_pb2.WorkerProfile(**asdict(worker.profile)),
        version=worker.version,
        schemes=worker.schemes,
        kv_events_address=worker.kv_events_address,
        kv_replay_address=worker.kv_replay_address,
        role_changes_unix_s=worker.role_changes_unix_s,
        max_running=worker.max_running,
    )


def worker_from_wire(wire: registry_pb2.WorkerInfo) -> WorkerInfo:
    """Raises InvalidRequest naming the field where a worker announces nonsense."""
    for field in ("worker_id", "address", "epoch"):
        if not getattr(wire, field):
            raise InvalidRequest(f"worker {wire.worker_id!r} announces no {field}", field=field)
    model = wire.model
    worker = WorkerInfo(
        wire.worker_id,
        wire.epoch,
        role_from_wire(wire.role),
        wire.address,
        wire.pid,
        ModelInfo(
            model.name,
            model.fingerprint,
            model.max_model_tokens,
            model.vocab_size,
            tuple(model.eos_token_ids),
        ),
        wire.kv_layout,
        wire.block_size,
        _profile_from_wire(wire),
        wire.version,
        tuple(wire.schemes),
        wire.kv_events_address,
        wire.kv_replay_address,
        tuple(wire.role_changes_unix_s),
        wire.max_running,
    )
    require_sound(worker)
    return worker


def role_to_wire(role: Role) -> registry_pb2.Role.ValueType:
    return _ROLE_TO_WIRE[role]


def role_from_wire(wire: registry_pb2.Role.ValueType) -> Role:
    if wire not in _ROLE_FROM_WIRE:
        raise InvalidRequest(f"worker role {wire} is unknown", field="role")
    return _ROLE_FROM_WIRE[wire]


def _profile_from_wire(wire: registry_pb2.WorkerInfo) -> WorkerProfile:
    profile = {each.name: getattr(wire.profile, each.name) for each in fields(WorkerProfile)}
    for name, value in profile.items():
        if not 0 <= value < math.inf:
            raise InvalidRequest(
                f"worker {wire.worker_id!r} announces {name} {value}, which is no speed", field=name
            )
    return WorkerProfile(**profile)


def state_to_wire(state: WorkerState) -> registry_pb2.WorkerState.ValueType:
    return _STATE_TO_WIRE[state]


def state_from_wire(wire: registry_pb2.WorkerState.ValueType) -> WorkerState:
    if wire not in _STATE_FROM_WIRE:
        raise InvalidRequest(f"worker state {wire} is unknown", field="state")
    return _STATE_FROM_WIRE[wire]


def member_to_wire(member: Member) -> registry_pb2.Member:
    return registry_pb2.Member(
        worker=worker_to_wire(member.worker),
        state=state_to_wire(member.state),
        load=load_to_wire(member.load),
    )


def member_from_wire(wire: registry_pb2.Member) -> Member:
    return Member(worker_from_wire(wire.worker), state_from_wire(wire.state), load_from_wire(wire.load))


def fleet_to_wire(fleet: Fleet) -> registry_pb2.FleetSnapshot:
    return registry_pb2.FleetSnapshot(members=[member_to_wire(member) for member in fleet.members])


def fleet_from_wire(wire: registry_pb2.FleetSnapshot) -> Fleet:
    return Fleet(tuple(member_from_wire(member) for member in wire.members))
