"""Prefix caching under the policies: what is shared, what is computed, and what counts as used."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest

from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.mixed import Mixed
from tunebatch.engine.policies.sequential import Sequential
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import RunRecord
from tunebatch.engine.request import Request

SYSTEM = tuple(range(500, 508))  # two blocks of four


def asks(request_id: int, prompt: tuple[int, ...], max_tokens: int, arrival_s: float = 0.0) -> Request:
    return Request(request_id, prompt, max_tokens, arrival_s, ignore_eos=True)


def cached(run: RunRecord) -> list[int]:
    return [record.num_cached_tokens for record in run.requests]


def test_a_shared_beginning_is_computed_once(kit: SimpleNamespace) -> None:
    requests = [asks(i, (*SYSTEM, 10 + i, 20 + i), 3, 1.5 * i) for i in range(3)]
    engine = kit.engine(Continuous(), requests, prefix_caching=True)
    run = engine.run()
    assert run.steps.slices[0] == ((0, 0, 0, 10),)
    assert [step[0][2:] for step in run.steps.slices if step] == [(0, 10), (8, 2), (8, 2)]
    assert cached(run) == [0, 8, 8]
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]


def test_without_the_feature_nothing_is_shared(kit: SimpleNamespace) -> None:
    requests = [asks(i, (*SYSTEM, i), 2, 3.0 * i) for i in range(2)]
    run = kit.serve(Continuous(), requests)
    assert cached(run) == [0, 0] and not run.prefix_caching
    assert run.steps.num_prefill_tokens[0] == 9 and sum(run.steps.num_prefill_tokens) == 18


@pytest.mark.parametrize(("num_prompt", "hit"), [(8, 4), (9, 8), (11, 8), (12, 8), (13, 12)])
def test_the_last_token_is_computed_even_of_a_cached_prompt(
    kit: SimpleNamespace, num_prompt: int, hit: int
) -> None:
    """A prompt of whole blocks computes its last block again, in a block of its own."""
    long = asks(0, SYSTEM + tuple(range(8)), 1)
    run = kit.serve(Continuous(), [long, asks(1, long.prompt[:num_prompt], 3, 5.0)], prefix_caching=True)
    assert cached(run) == [0, hit]
    assert run.steps.slices[1] == ((1, 0, hit, num_prompt - hit),)


def test_the_next_turn_finds_the_answer_of_the_one_before(kit: SimpleNamespace) -> None:
    first = asks(0, SYSTEM[:6], 7)  # 13 tokens: three full blocks, of which two hold generated ones
    told = first.prompt + tuple(kit.expected_output(first))
    run = kit.serve(Continuous(), [first, asks(1, (*told, 7, 8, 9), 2, 50.0)], prefix_caching=True)
    assert cached(run) == [0, 12]


def test_the_last_generated_token_has_no_keys_to_share(kit: SimpleNamespace) -> None:
    first = asks(0, SYSTEM[:6], 6)  # 12 tokens fill three blocks, but the last is never computed
    told = first.prompt + tuple(kit.expected_output(first))
    run = kit.serve(Continuous(), [first, asks(1, (*told, 7, 8, 9), 2, 50.0)], prefix_caching=True)
    assert cached(run) == [0, 8]


def test_blocks_of_a_running_answer_are_shared_as_soon_as_they_are_full(kit: SimpleNamespace) -> None:
    first = asks(0, SYSTEM[:6], 30)
    told = first.prompt + tuple(kit.expected_output(first))
    # After the prefill at 0 and ten decodes it has computed 16 tokens at 11.
    run = kit.serve(Continuous(), [first, asks(1, told[:18], 1, 10.5)], prefix_caching=True)
    assert run.requests[1].first_scheduled_s == 11.0
    assert cached(run) == [0, 12]
    run = kit.serve(Continuous(), [first, asks(1, told[:18], 1, 11.5)], prefix_caching=True)
    assert cached(run) == [0, 16]


@pytest.mark.parametrize("policy", [Chunked(chunk_size=3), Mixed(chunk_size=3)])
def test_chunks_begin_behind_the_hit(kit: SimpleNamespace, policy: Policy) -> None:
    requests = [asks(0, (*SYSTEM, 1), 1), asks(1, (*SYSTEM, *range(20, 25)), 1, 20.0)]
    run = kit.serve(policy, requests, prefix_caching=True)
    assert [step for step in run.steps.slices if step][3:] == [((1, 0, 8, 3),), ((1, 0, 11, 2),)]


def test_a_half_computed_prompt_shares_what_it_has(kit: SimpleNamespace) -> None:
    """Of its nine tokens the second has one to compute, which makes it a short one."""
    requests = [asks(0, SYSTEM * 2, 1), asks(1, (*SYSTEM, 1), 1, 1.5)]
    run = kit.serve(Mixed(chunk_size=4, max_partial_prefills=2), requests, prefix_caching=True)
    assert run.requests[1].first_scheduled_s == 2.0 < run.requests[0].end_s
    assert cached(run) == [0, 8]


def test_hits_leave_room_in_the_token_budget(kit: SimpleNamespace) -> None:
    requests = [asks(0, (*SYSTEM, 1), 1), *(asks(i, (*SYSTEM, i), 1, 5.0) for i in range(1, 6))]
    run = kit.serve(Continuous(max_batched_tokens=5), requests, prefix_caching=True)
    assert run.steps.num_prefills == [1, 5]
    mixed = kit.serve(Mixed(chunk_size=9), requests, prefix_caching=True)
    assert mixed.steps.num_prefills == [1, 5]


def test_hits_fit_beside_a_long_prompts_share(kit: SimpleNamespace) -> None:
    """Of ten tokens the long prompt is left five, and each of the others needs one."""
    requests = [asks(0, (*SYSTEM, 1), 1), asks(1, tuple(range(40)), 1, 5.0)]
    requests += [asks(i, (*SYSTEM, i), 1, 5.0) for i in range(2, 7)]
    run = kit.serve(Mixed(chunk_size=10, max_partial_prefills=2), requests, prefix_caching=True)
    assert [[num for *_, num in step] for step in run.steps.slices[1:3]] == [[5, 1, 1, 1, 1, 1], [10]]


def test_a_preempted_sequence_finds_what_it_had_and_is_not_praised_for_it(kit: SimpleNamespace) -> None:
    requests = [asks(i, tuple(range(30 * i, 30 * i + 6)), 16) for i in range(2)]
    runs = [kit.serve(Continuous(), requests, kit.Executor(num_blocks=8), prefix_caching=on) for on in (0, 1)]
    for run in runs:
        assert run.requests[1].num_preemptions == 1
        assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
        assert cached(run) == [0, 0]
    # Of its four full blocks the older one has taken two since: the last two.
    again = [[start for i, _, start, _ in step if i == 1] for run in runs for step in run.steps.slices[1:]]
    assert [starts for starts in again if starts] == [[0], [8]]


def test_idle_blocks_are_not_used_and_hits_not_free(kit: SimpleNamespace) -> None:
    queues = Queues(num_blocks=4, block_size=4, num_slots=4, max_context=99, prefix_caching=True)
    queues.add(asks(0, (*SYSTEM, 1), 1), 0.0)
    assert queues.admit(0.0)
    first = queues.running[0]
    first.num_computed = 9
    queues.prefixes.extend(first)
    assert (queues.kv.num_used, queues.kv.num_free) == (3, 1)
    queues.add(asks(1, (*SYSTEM, 2), 1), 0.0)
    assert queues.num_to_compute(queues.waiting[1]) == 1
    assert queues.admit(0.0), "two of its three blocks are there, and one is free"
    assert (queues.kv.num_used, queues.kv.num_free) == (4, 0)
    for sequence in list(queues.running.values()):
        queues.finish(sequence, first.record.end_reason, 1.0)
    assert (queues.kv.num_used, queues.kv.num_free) == (0, 4)
    # Two idle blocks are hits, so only the two others are left for what is new.
    queues.add(asks(2, (*SYSTEM, *range(8)), 1), 2.0)
    queues.add(asks(3, (*SYSTEM, *range(8), 5), 1), 2.0)
    assert queues.admit(2.0) and queues.kv.num_free == 0
    assert not queues.admit(2.0) and queues.kv.num_free == 0
    assert queues.running[2].num_computed == 8


def test_a_request_that_does_not_fit_claims_nothing(kit: SimpleNamespace) -> None:
    queues = Queues(num_blocks=6, block_size=4, num_slots=4, max_context=99, prefix_caching=True)
    for i, prompt in enumerate([(*SYSTEM, 1), tuple(range(9)), (*SYSTEM, *range(9))]):
        queues.add(asks(i, prompt, 1), 0.0)
    assert queues.admit(0.0)
    first = queues.running[0]
    first.num_computed = 8
    queues.finish(first, first.record.end_reason, 1.0)
    assert queues.admit(1.0) and queues.kv.num_free == 3
    idle = list(queues.kv.idle)
    # It has two idle hits and needs three more blocks, so five of the three that are free.
    assert not queues.admit(1.0)
    assert list(queues.kv.idle) == idle and queues.kv.num_free == 3 and not queues.waiting[2].block_table


def test_alike_prompts_of_one_step_wait_for_the_first_of_them(kit: SimpleNamespace) -> None:
    requests = [asks(i, (*SYSTEM, 10 + i), 2) for i in range(4)]
    run = kit.serve(Continuous(), requests, prefix_caching=True)
    assert cached(run) == [0, 8, 8, 8]
    assert run.steps.num_prefills == [1, 3, 0]
    assert run.steps.num_prefill_tokens == [9, 3, 0]


def test_what_differs_soon_does_not_wait(kit: SimpleNamespace) -> None:
    """One block less to compute is not worth a step."""
    requests = [asks(i, (*SYSTEM[:4], *range(10 * i, 10 * i + 5)), 8) for i in range(2)]
    engine = kit.engine(Continuous(), [*requests, asks(2, requests[0].prompt, 1, 50.0)], prefix_caching=True)
    run = engine.run()
    # Both compute sixteen tokens, four blocks each, of which the first is kept once.
    assert cached(run) == [0, 0, 8] and len(engine.queues.prefixes.cache) == 7
    assert max(run.steps.blocks_used) == 8


@pytest.mark.parametrize("policy", [Chunked(chunk_size=4), Mixed(chunk_size=4, max_partial_prefills=4)])
def test_who_waits_begins_where_it_differs_from_a_prompt_that_is_half_computed(
    kit: SimpleNamespace, policy: Policy
) -> None:
    long = asks(0, (*SYSTEM, *range(20)), 1)
    run = kit.serve(policy, [long, asks(1, (*SYSTEM, *long.prompt[8:12], 5), 1)], prefix_caching=True)
    # For the last block that they share alone it waits no longer.
    assert cached(run) == [0, 8]
    assert run.requests[1].end_s < run.requests[0].end_s


def test_nobody_waits_for_who_has_left(kit: SimpleNamespace) -> None:
    """The first hangs up in its prompt; the next goes on from what it left, and the last from there."""
    first = replace(asks(0, (*SYSTEM * 3, 1), 2), cancel_at_s=1.5)
    others = [asks(i, (*SYSTEM * 3, i), 2) for i in (1, 2)]
    run = kit.serve(Chunked(chunk_size=5), [first, *others], prefix_caching=True)
    assert cached(run) == [0, 8, 20]
    assert [record.completed for record in run.requests] == [False, True, True]


@pytest.mark.parametrize("cancel_at_s", [0.5, 1.5, 4.5])
def test_what_a_cancelled_request_had_computed_stays(kit: SimpleNamespace, cancel_at_s: float) -> None:
    first = replace(asks(0, (*SYSTEM, 1, 2), 20), cancel_at_s=cancel_at_s)
    engine = kit.engine(Chunked(chunk_size=6), [first, asks(1, (*SYSTEM, 7), 1, 9.0)], prefix_caching=True)
    run = engine.run()
    assert cached(run)[1] == (4 if cancel_at_s < 1.0 else 8)
    assert engine.queues.kv.num_used == 0


def test_every_run_begins_with_an_empty_cache(kit: SimpleNamespace) -> None:
    requests = [asks(i, SYSTEM * (1 + i % 2) + (i,), 1 + i % 5, 2.0 * i) for i in range(9)]
    executor = kit.Executor()
    runs = [kit.serve(Continuous(), requests, executor, prefix_caching=True) for _ in range(2)]
    assert runs[0] == runs[1] and sum(cached(runs[0])) > 0


def test_where_no_tokens_are_computed_only_prompts_are_shared(kit: SimpleNamespace) -> None:
    """A simulation's answers have no tokens, so nobody can ask for what follows them."""

    class Lengths(kit.Executor):  # type: ignore[misc,name-defined]
        def execute(self, plan: StepPlan) -> StepOutput:
            return StepOutput([(5,) if piece.sample else () for piece in plan.slices], None, 1.0)

    first = [asks(0, tuple(range(6)), 16), asks(1, SYSTEM[:6], 20)]
    # In the small pool the second is preempted, after which it samples for a second time, too.
    follow_ups = [asks(2, (*SYSTEM[:6], 5, 5, *SYSTEM), 3, 70.0), asks(3, (*SYSTEM[:6], 5, 5, 1), 3, 70.0)]
    for num_blocks in (64, 8):
        executor = Lengths(num_blocks=num_blocks)
        engine = kit.engine(Continuous(), [*first, *follow_ups], executor, prefix_caching=True)
        while engine.step():
            engine.queues.check_integrity()
        run = engine.record()
        assert run.requests[1].num_preemptions == (num_blocks == 8)
        assert cached(run) == [0, 0, 4, 4]


def test_sequential_serves_a_conversation_from_the_cache(kit: SimpleNamespace) -> None:
    turns, told = [], SYSTEM
    for i in range(4):
        turns.append(asks(i, (*told, 10 + i), 5, 20.0 * i))
        told = turns[-1].prompt + tuple(kit.expected_output(turns[-1]))
    run = kit.serve(Sequential(), turns, prefix_caching=True)
    # All computed tokens of the turn before, which are all but its last, in whole blocks.
    assert cached(run) == [0, 12, 16, 24]
