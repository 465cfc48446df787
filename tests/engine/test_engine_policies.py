"""What each strategy means, step by step; every step takes one second."""

from __future__ import annotations

from collections import deque
from itertools import pairwise
from types import SimpleNamespace

import pytest

from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.dynamic import Dynamic
from tunebatch.engine.policies.sequential import Sequential
from tunebatch.engine.policies.static import Static
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import STRATEGIES, strategy


def test_static_waits_for_a_full_batch(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 4, 2, arrival_s) for i, arrival_s in enumerate([0.0, 1.0, 10.0, 20.0])]
    steps = kit.serve(Static(3), requests).steps
    assert steps.start_s == [10.0, 11.0, 20.0, 21.0]
    assert steps.slots_active == [3, 3, 1, 1]


def test_static_starts_what_is_left_at_the_end_of_the_stream(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 4, 1, float(i)) for i in range(3)]
    steps = kit.serve(Static(8), requests).steps
    assert (steps.start_s, steps.num_prefills) == ([2.0], [3])


def test_static_holds_slots_until_the_longest_ends(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 4, i + 1) for i in range(4)]
    run = kit.serve(Static(4), requests)
    assert run.steps.slots_active == [4, 3, 2, 1]
    assert run.steps.slots_held == [4, 4, 4, 4]
    assert run.steps.blocks_used[-1] < run.steps.blocks_used[0], "blocks return at once, slots do not"
    assert sorted(run.occupancy) == [(i, i, 0.0, i + 1.0, 4.0) for i in range(4)]


@pytest.mark.parametrize("policy", [Static(2), Dynamic(2, max_delay_s=0.0)])
def test_nobody_joins_a_running_batch(kit: SimpleNamespace, policy: Static) -> None:
    requests = [kit.request(0, 4, 5), kit.request(1, 4, 1), kit.request(2, 4, 1, 0.5)]
    run = kit.serve(policy, requests)
    assert run.requests[2].first_scheduled_s == run.requests[0].end_s == 5.0


def test_static_splits_prefills_by_the_token_budget(kit: SimpleNamespace) -> None:
    steps = kit.serve(Static(4, max_batched_tokens=8), [kit.request(i, 4, 2) for i in range(4)]).steps
    assert steps.num_prefill_tokens == [8, 8, 0]
    assert steps.num_decodes == [0, 0, 4]


def test_static_can_group_alike_lengths(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 4, max_tokens) for i, max_tokens in enumerate([1, 6, 1, 6])]
    executor = kit.Executor()
    steps = kit.serve(Static(2, sort_by_length=True), requests, executor).steps
    assert [prefilled for prefilled, _ in executor.plans if prefilled] == [(1, 3), (0, 2)]
    assert len(steps) == 7 < len(kit.serve(Static(2), requests).steps)


def test_dynamic_starts_exactly_at_the_delay(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 1, 1.0), kit.request(1, 4, 1, 3.0), kit.request(2, 4, 1, 100.0)]
    steps = kit.serve(Dynamic(4, max_delay_s=2.5), requests).steps
    assert steps.start_s == [3.5, 102.5]
    assert steps.num_prefills == [2, 1]


def test_dynamic_starts_as_soon_as_the_batch_is_full(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 1, 1.0), kit.request(1, 4, 1, 1.5), kit.request(2, 4, 1, 100.0)]
    assert kit.serve(Dynamic(2, max_delay_s=2.5), requests).steps.start_s[0] == 1.5


def test_dynamic_counts_the_delay_from_the_arrival(kit: SimpleNamespace) -> None:
    """Whoever waited out the delay behind a running batch starts as soon as that ends."""
    requests = [kit.request(0, 4, 6, 0.0), kit.request(1, 4, 1, 2.0), kit.request(2, 4, 1, 100.0)]
    run = kit.serve(Dynamic(4, max_delay_s=1.0), requests)
    assert run.requests[0].end_s == run.requests[1].first_scheduled_s == 7.0


def test_dynamic_forgets_the_delay_of_a_request_that_hung_up(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 1, 0.0, cancel_at_s=1.0), kit.request(1, 4, 1, 1.5)]
    run = kit.serve(Dynamic(4, max_delay_s=2.0), requests)
    assert run.requests[0].end_s == 1.0
    assert run.steps.start_s == [3.5]


def test_continuous_admits_in_the_next_step(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 5), kit.request(1, 4, 2, 1.5)]
    executor = kit.Executor()
    run = kit.serve(Continuous(), requests, executor)
    assert run.requests[1].first_scheduled_s == 2.0
    assert executor.plans == [
        ((0,), ()),
        ((), (0,)),
        ((1,), ()),
        ((), (0, 1)),
        ((), (0,)),
        ((), (0,)),
    ]
    assert run.steps.slots_held == [1, 1, 2, 2, 1, 1]


def test_continuous_refills_a_slot_at_once(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 4), kit.request(1, 4, 2), kit.request(2, 4, 1)]
    run = kit.serve(Continuous(2), requests)
    assert run.requests[2].first_scheduled_s == run.requests[1].end_s


def test_a_prompt_over_the_budget_goes_alone(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, prompt, 1) for i, prompt in enumerate([9, 3, 3, 3])]
    steps = kit.serve(Continuous(max_batched_tokens=6), requests).steps
    assert steps.num_prefill_tokens == [9, 6, 3]


def test_sequential_never_runs_two(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 4, 3, 0.5 * i) for i in range(6)]
    run = kit.serve(Sequential(), requests)
    assert set(run.steps.slots_active) == set(run.steps.slots_held) == {1}
    assert all(later.first_scheduled_s == earlier.end_s for earlier, later in pairwise(run.requests))


def test_a_preempted_request_returns_first(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 3, 6) for i in range(3)]
    executor = kit.Executor(num_blocks=4, block_size=3)
    run = kit.serve(Continuous(), requests, executor)
    assert run.requests[1].num_preemptions > 0
    assert run.requests[1].end_s < run.requests[2].end_s


def test_cancelled_while_decoding_frees_its_slot(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 50, cancel_at_s=3.5), kit.request(1, 4, 2)]
    run = kit.serve(Continuous(1), requests)
    assert run.requests[0].end_s == run.requests[1].first_scheduled_s == 4.0
    assert run.requests[0].token_times_s == [1.0, 2.0, 3.0, 4.0]


class ClosedLoop:
    """One client that asks again when it has been answered."""

    def __init__(self, requests: list[Request]) -> None:
        self._queue = deque(requests)
        self._due: float | None = 0.0

    def next_arrival_s(self) -> float | None:
        return self._due if self._queue else None

    def take(self, now_s: float) -> list[Request]:
        if self._due is None or self._due > now_s or not self._queue:
            return []
        self._due = None
        return [self._queue.popleft()]

    def finished(self, record: RequestRecord, now_s: float) -> None:
        self._due = now_s


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_closed_loop_is_served_to_its_end(kit: SimpleNamespace, name: str) -> None:
    """Also when an answer is a rejection, and when static never fills a batch."""
    lengths = [(4, 2), (99, 2), (99, 1), (4, 1)]
    requests = [kit.request(i, prompt, max_tokens) for i, (prompt, max_tokens) in enumerate(lengths)]
    run = kit.serve(strategy(name).make_policy(), ClosedLoop(requests), kit.Executor(max_context=20))
    assert [record.completed for record in run.requests] == [True, False, False, True]


@pytest.mark.parametrize("name", STRATEGIES)
def test_two_runs_make_the_same_steps(kit: SimpleNamespace, name: str) -> None:
    requests = [kit.request(i, 1 + i % 5, 1 + i % 7, i / 3, ignore_eos=False) for i in range(25)]
    runs = [
        kit.serve(strategy(name).make_policy(), requests, kit.Executor(num_blocks=9, block_size=2))
        for _ in range(2)
    ]
    assert runs[0] == runs[1]


def test_a_place_that_a_cancellation_leaves_in_a_static_batch_stays_empty(kit: SimpleNamespace) -> None:
    # Prompts of 4 with a budget of 4: one prefill a step. Request 2 hangs up while the first is prefilled.
    requests = [kit.request(i, 4, 3) for i in range(2)]
    requests += [kit.request(2, 4, 3, 0.0, cancel_at_s=0.5), kit.request(3, 4, 3, 0.5)]
    run = kit.serve(Static(3, max_batched_tokens=4), requests)
    first, second, _, late = run.requests
    assert (first.first_scheduled_s, second.first_scheduled_s) == (0.0, 1.0)
    assert late.first_scheduled_s is not None and late.first_scheduled_s >= second.end_s


def test_static_does_not_wait_for_more_requests_than_there_are_slots(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 4, 1, 0.0), kit.request(1, 4, 1, 0.0), kit.request(2, 4, 1, 50.0)]
    run = kit.serve(Static(8), requests, kit.Executor(max_slots=2))
    assert [record.first_scheduled_s for record in run.requests] == [0.0, 0.0, 50.0]
