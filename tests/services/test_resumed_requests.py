"""A request that goes on where another worker left it, through both schedulers, and what a router keeps of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from model_folders import prompt_ids
from stepped_pair import GREEDY, Pair, request, undisturbed

from baton.engine.engine import Engine
from baton.errors import InvalidRequest, WorkerFailed
from baton.request import SamplingParams, Token, TokenOutput
from baton.router.part import Part
from baton.wire.convert import request_from_wire, request_to_wire

MakePair = Callable[..., Pair]
SAMPLED = replace(
    GREEDY,
    max_tokens=12,
    min_tokens=9,
    temperature=1.0,
    seed=5,
    repetition_penalty=1.2,
    frequency_penalty=0.3,
    presence_penalty=0.1,
    ignore_eos=False,
    logprobs=2,
)


@pytest.mark.parametrize("is_local", [False, True])
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    prompt_tokens=st.integers(1, 14),
    generated_tokens=st.integers(1, 11),
    sampling=st.sampled_from([GREEDY, SAMPLED]),
)
def test_wherever_a_sequence_is_cut_it_goes_on_with_the_same_tokens(
    make_pair: MakePair,
    oracle: Engine,
    is_local: bool,
    prompt_tokens: int,
    generated_tokens: int,
    sampling: SamplingParams,
) -> None:
    prompt = prompt_ids(prompt_tokens, seed=prompt_tokens)
    [tokens] = undisturbed(oracle, request(prompt, sampling))
    cut = min(generated_tokens, len(tokens) - 1)
    pair = make_pair()
    ride = pair.ride([*prompt, *tokens[:cut]], sampling, is_local=is_local, generated_tokens=cut)
    pair.finish(ride)
    assert ride.tokens == [tokens[cut:]]
    assert (ride.outputs[0][-1].token.logprob is None) == (sampling.logprobs is None)


def test_each_choice_goes_on_by_itself_with_its_own_seed(make_pair: MakePair, oracle: Engine) -> None:
    asked = request(prompt_ids(9), replace(SAMPLED, logprobs=None), n=3)
    expected = undisturbed(oracle, asked)
    part = Part(asked, {choice: tokens[: choice + 2] for choice, tokens in enumerate(expected)})
    pair = make_pair()
    for choice, single in enumerate(part.split()):
        attempt = single.attempt(f"again-{choice}")
        ride = pair.ride(attempt.token_ids, attempt.sampling, generated_tokens=attempt.generated_tokens)
        pair.finish(ride)
        outputs = [single.take(output) for output in ride.outputs[0]]
        assert [output.token.token_id for output in outputs] == expected[choice][choice + 2 :]
        assert {output.choice for output in outputs} == {choice}
        assert not single.is_open


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_token_that_comes_again_or_too_early_never_reaches_the_client(index: int) -> None:
    part = Part(request(prompt_ids(3)), {0: [7, 8]})
    with pytest.raises(WorkerFailed, match=f"token {index} .* where 2 is due"):
        part.take(TokenOutput(0, Token(index, 9)))
    assert part.take(TokenOutput(0, Token(2, 9))).token.token_id == 9


@pytest.mark.parametrize(("generated_tokens", "choices"), [(3, 1), (4, 1), (1, 2)])
def test_a_request_whose_output_leaves_no_prompt_or_has_several_choices_is_refused(
    generated_tokens: int, choices: int
) -> None:
    wire = request_to_wire(request(prompt_ids(3), generated_tokens=generated_tokens, n=choices), 1.0)
    with pytest.raises(InvalidRequest, match="generated_tokens") as refused:
        request_from_wire(wire)
    assert refused.value.field == "generated_tokens"
