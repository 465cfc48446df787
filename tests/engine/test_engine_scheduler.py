"""Every strategy on random work in tiny pools: same tokens, nothing lost, nothing leaked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine import strategies
from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.knobs import MAX_BATCH_SIZE, Knob
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason, RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import STRATEGIES, Strategy, strategy

# Sixteenths are exact in binary, so times can be compared with ==.
TICK = 1 / 16

SHAPES = st.tuples(
    st.integers(1, 12),  # prompt
    st.integers(1, 10),  # max_tokens
    st.integers(0, 12),  # ticks since the arrival before
    st.none() | st.integers(0, 60),  # ticks until cancelled
    st.booleans(),  # ignore_eos
    st.integers(0, 3),  # what the prompt begins with
)
Shape = tuple[int, int, int, int | None, bool, int]


def requests_of(shapes: list[Shape], kit: SimpleNamespace) -> list[Request]:
    requests: list[Request] = []
    arrival_s = 0.0
    for i, (prompt, max_tokens, gap, patience, ignore_eos, begins) in enumerate(shapes):
        arrival_s += gap * TICK
        cancel_at_s = None if patience is None else arrival_s + patience * TICK
        request = kit.request(i, prompt, max_tokens, arrival_s, cancel_at_s, ignore_eos)
        # With nothing, with what one or two others begin with, or with the conversation before it.
        beginning: tuple[int, ...] = ((), (1,) * 12, (1,) * 5 + (2,) * 7, ())[begins]
        if begins == 3 and requests:
            beginning = (*requests[-1].prompt, *kit.expected_output(requests[-1]))
        shared = beginning[: max(prompt - i % 3, 0)]
        requests.append(replace(request, prompt=shared + request.prompt[len(shared) :]))
    return requests


# Every strategy of the table, and what has its own code behind a knob, with and without features.
FEATURES = ("", "+prefix", "+ngram", "+draft", "+prefix+draft")
CASES = {
    **{name + features: name + features for name in STRATEGIES for features in FEATURES},
    **{f"mixed{features}, auto": f"mixed{features}" for features in FEATURES},
    **{f"chunked{features}, forecast": f"chunked{features}" for features in ("", "+prefix+draft")},
}


def knobs_of(
    case: str, batch: int, tokens: int, delay: int, chunk: int, partial: int = 1
) -> dict[str, float]:
    values = {
        "max_batch_size": batch,
        "min_batch_size": 1 + batch // 2,
        "target": 0.9,
        "max_batched_tokens": tokens,
        "max_delay_s": delay * TICK,
        "chunk_size": 0 if case.endswith("auto") else chunk,
        "max_partial_prefills": partial,
        "sort_by_length": 0,
        "forecast_kv": int(case.endswith("forecast")),
        "num_drafts": tokens % 5,  # 0: auto
    }
    # A knob that is new has its default.
    return {knob.name: values.get(knob.name, knob.default) for knob in strategies.knobs_of(CASES[case])}


def strategy_of(case: str, *knobs: int) -> Strategy:
    return strategy(CASES[case], knobs_of(case, *knobs))


LIMITS = st.builds(
    LatencyLimits,
    ttft_s=st.none() | st.integers(1, 40).map(lambda ticks: ticks * TICK),
    tpot_s=st.none() | st.integers(1, 8).map(lambda ticks: ticks * TICK),
)


@pytest.mark.parametrize("case", CASES)
@settings(max_examples=220, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=14),
    num_blocks=st.integers(3, 10),
    block_size=st.integers(1, 4),
    max_slots=st.integers(1, 6),
    batch=st.integers(1, 6),
    tokens=st.integers(1, 24),
    delay=st.integers(0, 10),
    chunk=st.integers(1, 8),
    partial=st.integers(1, 3),
    limits=LIMITS,
)
def test_random_work(
    kit: SimpleNamespace,
    case: str,
    shapes: list[Shape],
    num_blocks: int,
    block_size: int,
    max_slots: int,
    batch: int,
    tokens: int,
    delay: int,
    chunk: int,
    partial: int,
    limits: LatencyLimits,
) -> None:
    chosen = strategy_of(case, batch, tokens, delay, chunk, partial)
    check_random_work(kit, chosen, limits, shapes, num_blocks, block_size, max_slots)


@pytest.mark.parametrize("case", ["mixed, auto", "adaptive", "mixed+draft, auto", "adaptive+prefix+draft"])
@settings(max_examples=25, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=30, max_size=60),
    num_blocks=st.integers(3, 20),
    block_size=st.integers(1, 4),
    batch=st.integers(1, 6),
    partial=st.integers(1, 3),
    limits=LIMITS,
)
def test_random_work_that_is_learnt_from(
    kit: SimpleNamespace,
    case: str,
    shapes: list[Shape],
    num_blocks: int,
    block_size: int,
    batch: int,
    partial: int,
    limits: LatencyLimits,
) -> None:
    """Enough steps and answers that every guess of the policy is its own."""
    chosen = strategy_of(case, batch, 1, 0, 0, partial)
    check_random_work(kit, chosen, limits, shapes, num_blocks, block_size, max_slots=6)


def check_random_work(
    kit: SimpleNamespace,
    chosen: Strategy,
    limits: LatencyLimits,
    shapes: list[Shape],
    num_blocks: int,
    block_size: int,
    max_slots: int,
    make_executor: Callable[..., Any] | None = None,
) -> None:
    requests = requests_of(shapes, kit)
    executor = (make_executor or kit.Executor)(
        num_blocks,
        block_size,
        max_slots,
        max_context=20,
        duration=lambda plan: TICK * (1 + plan.num_slice_tokens // 4 + plan.num_decodes // 2),
    )
    clock, source = VirtualClock(), kit.Source(requests)
    engine = engine_for(chosen, executor, source, clock, limits=limits)

    boundaries = [clock.now()]
    limit = 40 * sum(len(request.prompt) + request.max_tokens + 3 for request in requests)
    while engine.step():
        engine.queues.check_integrity()
        assert len(engine.queues.running) <= min(max_slots, engine.queues.slots.num_taken)
        boundaries.append(clock.now())
        assert boundaries[-1] >= boundaries[-2], "time went backwards"
        assert len(boundaries) < limit, "the run does not end"
    kv = engine.queues.kv
    run = engine.record()

    assert kv.num_free == kv.num_blocks, "blocks leaked"
    assert sorted(source.ended) == [request.id for request in requests], "told of an end twice or never"
    assert [record.id for record in run.requests] == [request.id for request in requests]
    for request, record in zip(requests, run.requests, strict=True):
        expected = kit.expected_output(request)
        too_long = len(request.prompt) + request.max_tokens > 20
        never_fits = -(-(len(request.prompt) + request.max_tokens - 1) // block_size) > num_blocks
        assert (record.end_reason is EndReason.REJECTED) == (too_long or never_fits)
        assert record.end_reason is not EndReason.UNFINISHED
        assert len(record.token_times_s) == len(record.output)
        assert record.token_times_s == sorted(record.token_times_s)
        assert record.output == expected[: len(record.output)], "the tokens depend on the schedule"
        if record.completed:
            assert record.output == expected
            stopped = not request.ignore_eos and expected[-1] == kit.EOS
            assert record.end_reason is (EndReason.STOP if stopped else EndReason.LENGTH)
            assert record.end_s == record.token_times_s[-1]
        if record.first_scheduled_s is not None:
            assert record.first_scheduled_s >= request.arrival_s
            assert all(time > record.first_scheduled_s for time in record.token_times_s)
        else:
            assert not record.output
        if request.cancel_at_s is not None and record.end_reason is not EndReason.REJECTED:
            due = next((time for time in boundaries if time >= request.cancel_at_s), None)
            if record.end_reason is EndReason.CANCELLED:
                assert record.end_s == due, "not ended at the first boundary after the cancellation"
            else:
                assert due is None or record.end_s <= due, "outlived its cancellation"
        assert record.end_reason is not EndReason.CANCELLED or request.cancel_at_s is not None
        assert record.num_cached_tokens % block_size == 0
        assert not record.num_cached_tokens or "prefix" in chosen.features
        if record.completed and not record.num_preemptions:
            computed = sum(n for step in run.steps.slices for i, _, _, n in step if i == request.id)
            assert computed == len(request.prompt) - record.num_cached_tokens > 0
    check_order(chosen, requests, run)
    assert sum(run.steps.num_preempted) == sum(record.num_preemptions for record in run.requests)
    check_occupancy(run.occupancy)


def check_order(chosen: Strategy, requests: list[Request], run: RunRecord) -> None:
    """While a request waits, be it at first or after a preemption, nobody who came later begins; but where
    short prompts pass long ones, somebody with fewer tokens to compute may."""
    passes = int(dict(chosen.knobs).get("max_partial_prefills", 1)) > 1
    for request, record in zip(requests, run.requests, strict=True):
        stays = sorted((start, end) for _, i, start, end, _ in run.occupancy if i == request.id)
        starts, ends = [start for start, _ in stays], [request.arrival_s, *(end for _, end in stays)]
        for left_s, back_s in zip(ends, starts, strict=False):
            known = len(request.prompt) + sum(time <= left_s for time in record.token_times_s)
            for later in run.requests[request.id + 1 :]:
                first_s = later.first_scheduled_s
                if first_s is not None and left_s <= first_s < back_s:
                    assert passes and later.num_prompt_tokens - later.num_cached_tokens < known, "overtaking"


def check_occupancy(occupancy: list[tuple[int, int, float, float, float]]) -> None:
    by_slot: dict[int, list[tuple[float, float, float]]] = {}
    for slot, _, start, end, held in occupancy:
        assert start <= end <= held
        by_slot.setdefault(slot, []).append((start, end, held))
    for stays in by_slot.values():
        stays.sort()
        assert all(a[2] <= b[0] for a, b in pairwise(stays)), "a slot was held twice"


def forecasts(case: str) -> bool:
    """Keeps out what would run the cache over, going by the expected lengths of answers."""
    return case.endswith("forecast") or case.startswith("adaptive")


PREEMPTING = [case for case in CASES if not case.startswith("sequential") and not forecasts(case)]


@pytest.mark.parametrize("case", PREEMPTING)
def test_tiny_pools_do_preempt_and_change_no_token(kit: SimpleNamespace, case: str) -> None:
    requests = [kit.request(i, 3, 12) for i in range(4)]
    executor = kit.Executor(num_blocks=6, block_size=3)
    run = engine_for(strategy_of(case, 4, 64, 0, 2), executor, kit.Source(requests), VirtualClock()).run()
    assert sum(run.steps.num_preempted) > 0
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
    assert run.requests[0].num_preemptions == 0, "the oldest yields to nobody"


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("prompt", "max_tokens", "fits"), [(5, 8, True), (5, 9, False), (13, 1, False)])
def test_what_can_never_fit_is_rejected_at_once(
    kit: SimpleNamespace, case: str, prompt: int, max_tokens: int, fits: bool
) -> None:
    """Twelve tokens of KV: the last token of an answer is never stored, so thirteen in all fit."""
    requests = [kit.request(0, prompt, max_tokens), kit.request(1, 2, 2)]
    policy = strategy_of(case, 1, 64, 0, 2).make_policy()
    run = kit.serve(policy, requests, kit.Executor(num_blocks=3, block_size=4))
    assert (run.requests[0].end_reason is EndReason.LENGTH) == fits
    assert (run.requests[0].end_reason is EndReason.REJECTED) != fits
    assert run.requests[1].completed


def test_the_context_limit_rejects(kit: SimpleNamespace) -> None:
    requests = [kit.request(0, 5, 5), kit.request(1, 5, 6)]
    run = kit.serve(strategy("continuous").make_policy(), requests, kit.Executor(max_context=10))
    assert [record.end_reason for record in run.requests] == [EndReason.LENGTH, EndReason.REJECTED]


def test_the_same_tokens_under_every_strategy(kit: SimpleNamespace) -> None:
    requests = [kit.request(i, 1 + i % 7, 1 + i % 9, i * TICK, ignore_eos=False) for i in range(30)]
    outputs = [
        [
            record.output
            for record in kit.serve(strategy_of(case, 8, 64, 1, 5).make_policy(), requests).requests
        ]
        for case in CASES
    ]
    assert all(output == outputs[0] for output in outputs)


def test_a_stopped_run_leaves_nothing_behind(kit: SimpleNamespace) -> None:
    engine = kit.engine(strategy("continuous").make_policy(), [kit.request(i, 4, 9) for i in range(3)])
    for _ in range(4):
        engine.step()
    run = engine.record()
    assert {record.end_reason for record in run.requests} == {EndReason.UNFINISHED}
    assert all(len(record.token_times_s) == len(record.output) == 4 for record in run.requests)
    assert engine.queues.kv.num_free == engine.queues.kv.num_blocks


def test_admission_leaves_a_hundredth_of_the_pool_for_those_that_run(kit: SimpleNamespace) -> None:
    queues = Queues(num_blocks=200, block_size=4, num_slots=4, max_context=999)
    for request in [kit.request(0, 400), kit.request(1, 396), kit.request(2, 392)]:
        queues.add(request, 0.0)
    assert queues.admit(0.0) and queues.kv.num_free == 100
    assert not queues.admit(0.0), "99 blocks of 100 leave one, not two"
    assert queues.admit(0.0, queues.waiting[2]) and queues.kv.num_free == 2
    for sequence in list(queues.running.values()):
        queues.finish(sequence, EndReason.CANCELLED, 1.0)
    queues.add(kit.request(3, 800, 1), 1.0)
    assert queues.admit(1.0, queues.waiting[3]), "there is nobody to leave any for"


def test_a_strategy_with_a_new_knob_gets_all_of_this_for_free(
    kit: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = replace(STRATEGIES["continuous"], make=lambda max_batch_size, luck: Continuous(max_batch_size))
    kind = replace(kind, knobs=(MAX_BATCH_SIZE, Knob("luck", 1, 9, 7, "of ten")))
    monkeypatch.setitem(STRATEGIES, "lucky", kind)
    monkeypatch.setitem(CASES, "lucky+prefix", "lucky+prefix")
    chosen = strategy_of("lucky+prefix", 3, 24, 0, 8)
    assert dict(chosen.knobs) == {"max_batch_size": 3, "luck": 7}
    check_random_work(kit, chosen, LatencyLimits(), [(5, 4, 1, None, True, 1)] * 6, 8, 4, 6)
