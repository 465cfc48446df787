"""Time: replay against hand-computed runs, queueing theory, and what may never happen."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from itertools import accumulate, pairwise
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.clock import Clock, ReplayClock, VirtualClock, WallClock
from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.sequential import Sequential
from tunebatch.engine.records import RunRecord
from tunebatch.measure.percentiles import batch_means


class Timer:
    """A monotonic clock that moves when told, and by ``per_reading_ns`` whenever it is read."""

    def __init__(self, now_ns: int = 123_456_789, per_reading_ns: int = 0) -> None:
        self.now_ns = now_ns
        self._per_reading_ns = per_reading_ns

    def __call__(self) -> int:
        self.now_ns += self._per_reading_ns
        return self.now_ns


def test_replay_reproduces_a_run_computed_by_hand(kit: SimpleNamespace) -> None:
    """Prefills take 500 ms and decodes 250 ms: A alone, then B's prefill, then both decode."""
    timer = Timer()

    def measured(plan: StepPlan) -> None:
        timer.now_ns += 500_000_000 if plan.slices else 250_000_000

    requests = [kit.request(0, 4, 3, arrival_s=1.0), kit.request(1, 4, 3, arrival_s=1.25)]
    begin_ns = timer.now_ns
    run = kit.serve(Continuous(), requests, kit.Executor(duration=measured), ReplayClock(timer))
    a, b = run.requests
    assert a.token_times_s == pytest.approx([1.5, 2.25, 2.5], rel=1e-12)
    assert b.token_times_s == pytest.approx([2.0, 2.25, 2.5], rel=1e-12)
    assert (a.first_scheduled_s, b.first_scheduled_s) == pytest.approx((1.0, 1.5), rel=1e-12)
    ttft = [record.token_times_s[0] - record.arrival_s for record in (a, b)]
    tpot = [(record.token_times_s[-1] - record.token_times_s[0]) / 2 for record in (a, b)]
    assert ttft == pytest.approx([0.5, 0.75], rel=1e-12)
    assert tpot == pytest.approx([0.5, 0.25], rel=1e-12)
    assert timer.now_ns - begin_ns == 1_500_000_000, "the idle second was not jumped over"


def test_replay_jumps_over_idle_gaps_only(kit: SimpleNamespace) -> None:
    """The timer moves at every reading, as planning would; none of that may be skipped."""
    timer = Timer(per_reading_ns=1_000)

    def measured(plan: StepPlan) -> None:
        timer.now_ns += 1_000_000

    requests = [kit.request(i, 4, 3, arrival_s=gap) for i, gap in enumerate([0.5, 0.5, 0.501, 2.0])]
    run = kit.serve(Continuous(), requests, kit.Executor(duration=measured), ReplayClock(timer))
    steps = run.steps
    gaps = [start - (before + took) for before, took, start in step_edges(run)]
    assert sum(gap > 0.5 for gap in gaps) == 1, "one idle gap, between the third request and the fourth"
    assert all(0 < gap < 1e-5 for gap in gaps if gap < 0.5), "busy time was skipped"
    assert all(took == pytest.approx(1_001e-6) for took in steps.duration_s)


def step_edges(run: RunRecord) -> list[tuple[float, float, float]]:
    """``(start, duration, next start)`` of every step but the last."""
    steps = run.steps
    return [
        (start, took, after)
        for (start, after), took in zip(pairwise(steps.start_s), steps.duration_s, strict=False)
    ]


def test_replay_never_moves_back() -> None:
    timer = Timer()
    clock = ReplayClock(timer)
    clock.idle_until(0.1)
    assert clock.now() >= 0.1
    clock.idle_until(0.05)
    assert clock.now() == pytest.approx(0.1, abs=1e-8)
    timer.now_ns += 7
    assert clock.now() > 0.1


@pytest.mark.parametrize("until_s", [1e-9, 1 / 3, 0.1 + 0.2, 12345.678901234567, 1e6 / 7])
@pytest.mark.parametrize("make", [VirtualClock, lambda: ReplayClock(Timer())])
def test_idling_ends_no_earlier_than_asked(make: Callable[[], Clock], until_s: float) -> None:
    clock = make()
    clock.idle_until(until_s)
    assert until_s <= clock.now() < until_s + 1e-8


def test_the_wall_clock_sleeps_long_enough() -> None:
    clock = WallClock()
    clock.idle_until(0.005)
    assert clock.now() >= 0.005
    clock.idle_until(0.0)


def test_a_virtual_clock_needs_durations() -> None:
    with pytest.raises(ValueError, match="how long"):
        VirtualClock().step_took(None)


def test_wall_and_replay_make_the_same_steps(kit: SimpleNamespace) -> None:
    """Bursts far apart, so that no scheduling jitter of the host can change who meets whom."""

    def real(plan: StepPlan) -> None:
        time.sleep(0.0005)

    def plans(clock: Clock) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        requests = [kit.request(i, 4 + i, 2 + i % 3, 0.25 * (i // 3)) for i in range(6)]
        executor = kit.Executor(duration=real)
        kit.serve(Continuous(max_batch_size=2), requests, executor, clock)
        return list(executor.plans)

    assert plans(WallClock()) == plans(ReplayClock())


@pytest.mark.parametrize(("service", "expected"), [("fixed", 0.7 / 0.6), ("exponential", 0.7 / 0.3)])
def test_waiting_of_one_server_follows_queueing_theory(
    kit: SimpleNamespace, service: str, expected: float
) -> None:
    """Poisson arrivals at 0.7 of what is served: M/D/1 waits ``rho / 2(1 - rho)``, M/M/1 twice as long.

    Lindley's recursion exactly, theory within the error that batch means tell.
    """
    rho, count, draw = 0.7, 20_000, random.Random(6)
    arrivals = list(accumulate(draw.expovariate(rho) for _ in range(count)))
    took = [1.0 if service == "fixed" else draw.expovariate(1.0) for _ in range(count)]
    requests = [kit.request(i, 1, 1, arrival_s) for i, arrival_s in enumerate(arrivals)]
    executor = kit.Executor(duration=lambda plan: took[plan.slices[0].sequence.id])
    run = kit.serve(Sequential(), requests, executor)
    waits = [record.first_scheduled_s - record.arrival_s for record in run.requests]
    free_at, by_hand = 0.0, []
    for arrival_s, service_s in zip(arrivals, took, strict=True):
        start = max(free_at, arrival_s)
        by_hand.append(start - arrival_s)
        free_at = start + service_s
    assert waits == pytest.approx(by_hand, abs=1e-6)
    found = batch_means(waits, 20, confidence=0.99)
    assert found is not None and found.lower < expected < found.upper
    assert found.upper - found.lower < 0.35 * expected


@settings(max_examples=60, deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 8), st.integers(1, 8), st.integers(0, 20)), min_size=1, max_size=16
    ),
    batch=st.integers(1, 5),
)
def test_continuous_batching_never_idles_with_work(
    kit: SimpleNamespace, shapes: list[tuple[int, int, int]], batch: int
) -> None:
    arrival_s, requests = 0.0, []
    for i, (prompt, max_tokens, gap) in enumerate(shapes):
        arrival_s += gap
        requests.append(kit.request(i, prompt, max_tokens, arrival_s))
    run = kit.serve(Continuous(batch), requests, kit.Executor(num_blocks=8, block_size=2))
    edges = [(start + took, after) for start, took, after in step_edges(run)]
    for end, after in edges:
        assert after >= end, "a step began before the one before it ended"
        if after > end:
            idle = [r.id for r in run.requests if r.arrival_s < after and r.end_s > end]
            assert not idle, f"idle from {end} to {after} with {idle} to be served"
    assert all(r.token_times_s[0] > r.arrival_s for r in run.requests), "an answer before its question"
