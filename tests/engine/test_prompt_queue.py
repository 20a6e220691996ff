"""The order in which a worker computes prompts: what is promised to whom, whatever arrives when."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st

from baton.engine.prompt_queue import ELDEST_SHARE, PASSING_TOKENS, PATIENCE_STEPS, PromptQueue
from baton.engine.step_room import ChunkLimit

BUDGET = 64
SHARE = BUDGET // ELDEST_SHARE


@dataclass(eq=False)
class Prompt:
    remaining_tokens: int
    priority: int = 0
    blocks: int = 0
    computed_tokens: int = 0
    queued_at_s: float = 0.0


@dataclass
class Worker:
    """A queue over a pool of blocks that is stepped by hand, a block a token."""

    free_blocks: int = 10**9
    queue: PromptQueue[Prompt] = field(default_factory=lambda: PromptQueue[Prompt](ChunkLimit(BUDGET)))
    ended: list[Prompt] = field(default_factory=list)

    def add(self, *prompts: Prompt) -> None:
        for prompt in prompts:
            self.queue.add(prompt)

    def step(self) -> dict[Prompt, int]:
        chunks = self.queue.plan(self._admit)
        assert sum(length for _, length in chunks) <= BUDGET
        for prompt, length in chunks:
            assert 0 < length <= prompt.remaining_tokens
            prompt.remaining_tokens -= length
            prompt.computed_tokens += length
            if not prompt.remaining_tokens:
                self.queue.remove(prompt)
                self.free_blocks += prompt.blocks
                self.ended.append(prompt)
        return dict(chunks)

    def steps_until_ended(self, prompt: Prompt) -> int:
        steps = 0
        while prompt in self.queue:
            self.step()
            steps += 1
        return steps

    def _admit(self, prompt: Prompt) -> bool:
        if prompt.remaining_tokens > self.free_blocks:
            return False
        prompt.blocks = prompt.remaining_tokens
        self.free_blocks -= prompt.blocks
        return True


def test_a_short_prompt_is_computed_in_the_next_step_beside_a_long_one() -> None:
    worker = Worker()
    long, short = Prompt(100 * BUDGET), Prompt(BUDGET // 2)
    worker.add(long)
    assert worker.step() == {long: BUDGET}
    worker.add(short)
    assert worker.step() == {short: BUDGET // 2}
    assert worker.step() == {long: BUDGET}


def test_prompts_that_fit_into_one_step_end_in_it_together() -> None:
    worker = Worker()
    prompts = [Prompt(20) for _ in range(3)]
    worker.add(*prompts)
    assert worker.step() == dict.fromkeys(prompts, 20)


def test_among_equals_the_one_that_came_first_is_computed_to_its_end() -> None:
    worker = Worker()
    first, second = Prompt(3 * BUDGET), Prompt(3 * BUDGET)
    worker.add(first, second)
    assert worker.steps_until_ended(first) == 3
    assert second.remaining_tokens == 3 * BUDGET


def test_one_that_comes_back_from_elsewhere_stands_where_it_would_have_stood() -> None:
    worker = Worker()
    first, last = (Prompt(3 * BUDGET, queued_at_s=float(second)) for second in (1, 3))
    worker.add(first, last)
    worker.step()
    worker.add(back := Prompt(3 * BUDGET, queued_at_s=2.0))
    assert [worker.steps_until_ended(prompt) for prompt in (first, back, last)] == [2, 3, 3]


def test_an_eldest_that_comes_back_has_patience_of_its_own() -> None:
    worker = Worker()
    worker.add(Prompt(5 * BUDGET, 1, queued_at_s=2.0), Prompt(100 * BUDGET))
    for _ in range(PATIENCE_STEPS):
        worker.step()
    worker.add(back := Prompt(5 * BUDGET, 2, queued_at_s=-1.0))
    assert all(back not in worker.step() for _ in range(PATIENCE_STEPS))
    assert worker.step()[back] == SHARE


def test_a_long_prompt_goes_on_however_many_short_ones_come() -> None:
    worker = Worker()
    long = Prompt(10 * BUDGET)
    worker.add(long)
    steps = 0
    while long in worker.queue:
        worker.add(Prompt(BUDGET), Prompt(BUDGET))
        worker.step()
        steps += 1
    assert steps <= PATIENCE_STEPS + 10 * ELDEST_SHARE


def test_lower_values_of_priority_go_first_whatever_their_length() -> None:
    worker = Worker()
    late, urgent = Prompt(10, 1), Prompt(5 * BUDGET)
    worker.add(late, urgent)
    assert worker.steps_until_ended(urgent) == 5
    assert worker.step() == {late: 10}


def test_an_eldest_without_memory_is_passed_by_so_many_tokens_and_no_more() -> None:
    worker = Worker(free_blocks=50)
    large = Prompt(60)
    worker.add(large)
    passed = 0
    while True:
        short = Prompt(30)
        worker.add(short)
        if not (chunks := worker.step()):
            break
        passed += sum(chunks.values())
    assert max(PASSING_TOKENS * 60, PATIENCE_STEPS * 30) <= passed < PASSING_TOKENS * 60 + 30
    worker.free_blocks = 60
    assert worker.steps_until_ended(large) == 1
    assert worker.steps_until_ended(short) == 1


def test_a_prompt_that_leaves_while_it_waits_for_memory_lets_the_others_in() -> None:
    worker = Worker(free_blocks=40)
    large, short = Prompt(60), Prompt(30)
    worker.add(large, short)
    assert worker.step() == {short: 30}
    worker.queue.remove(large)
    worker.add(another := Prompt(40))
    assert worker.step() == {another: 40}
    assert worker.queue.waiting == 0
    assert worker.queue.admitted == []


prompts = st.builds(
    Prompt, st.integers(1, 5 * BUDGET), st.integers(-2, 2), queued_at_s=st.sampled_from([0.0, -1.0, -2.0])
)


@settings(max_examples=200, deadline=None)
@given(
    arrivals=st.lists(st.lists(prompts, max_size=4), max_size=40),
    blocks=st.integers(5 * BUDGET, 8 * BUDGET),
)
def test_every_prompt_ends_and_every_step_keeps_the_rules(arrivals: list[list[Prompt]], blocks: int) -> None:
    worker = Worker(free_blocks=blocks)
    here: list[Prompt] = []
    eldest, left_out_steps = None, 0
    sent = sum(len(batch) for batch in arrivals)
    for batch in itertools.chain(arrivals, itertools.repeat([])):
        worker.add(*batch)
        here = sorted(
            (one for one in [*here, *batch] if one in worker.queue), key=lambda one: one.queued_at_s
        )
        assert here == list(worker.queue)
        if len(worker.ended) == sent:
            break
        if not here:
            continue
        before = {prompt: prompt.remaining_tokens for prompt in here}
        left_out_steps, eldest = left_out_steps if eldest is here[0] else 0, here[0]
        has_memory = eldest.blocks or worker.free_blocks >= eldest.remaining_tokens
        chunks = worker.step()
        assert chunks, "where there are prompts, something is computed"
        if left_out_steps >= PATIENCE_STEPS and has_memory:
            assert chunks[eldest] >= min(SHARE, before[eldest])
        left_out_steps += eldest not in chunks
        for prompt in set(chunks) - {eldest}:
            held = [one for one in here if one.blocks and _urgency(one, before) < _urgency(prompt, before)]
            assert all(chunks.get(one) == before[one] for one in held), "out of turn"
    assert worker.free_blocks == blocks


def _urgency(prompt: Prompt, remaining_tokens: dict[Prompt, int]) -> tuple[int, int]:
    return prompt.priority, remaining_tokens[prompt]


@settings(max_examples=100, deadline=None)
@given(
    others=st.lists(st.integers(1, 20 * BUDGET), max_size=10),
    already_computed_steps=st.integers(0, 10),
    short=st.integers(1, BUDGET // 2),
)
def test_a_short_prompt_waits_for_none_that_is_longer(
    others: list[int], already_computed_steps: int, short: int
) -> None:
    worker, longer = Worker(), [Prompt(tokens) for tokens in others]
    worker.add(*longer)
    for _ in range(already_computed_steps):
        worker.step()
    ahead = [one.remaining_tokens for one in longer if one.remaining_tokens <= short]
    worker.add(prompt := Prompt(short))
    assert worker.steps_until_ended(prompt) <= 1 + (sum(ahead) + short) // (BUDGET - SHARE - short)
