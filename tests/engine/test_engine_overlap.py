"""A step is planned while the one before computes: the same tokens and accounts, in less time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_engine_scheduler import (
    CASES,
    LIMITS,
    SHAPES,
    TICK,
    Shape,
    check_random_work,
    forecasts,
    strategy_of,
)

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.records import EndReason, RequestRecord, RunRecord
from tunebatch.engine.request import Request
from tunebatch.measure.metrics import summarize

# Drafts go on from the last token, so that there is nothing to overlap.
DRAFTING = [case for case in CASES if "+ngram" in case or "+draft" in case]
OVERLAPPING = [case for case in CASES if case not in DRAFTING]


# What these plan hangs on how the steps went, of which they hear later.
LEARNING = [case for case in OVERLAPPING if case.endswith("auto") or forecasts(case)]


class Told:
    """Requests that are there from the start; asserts that an answer is whole when its end is told."""

    def __init__(self, requests: Iterable[Request]) -> None:
        self._requests = list(requests)

    def next_arrival_s(self) -> float | None:
        return 0.0 if self._requests else None

    def take(self, now_s: float) -> list[Request]:
        taken, self._requests = self._requests, []
        return taken

    def finished(self, record: RequestRecord, now_s: float) -> None:
        assert len(record.output) == len(record.token_times_s)
        assert not record.completed or record.token_times_s[-1] == now_s


@pytest.mark.parametrize("case", OVERLAPPING)
@settings(max_examples=50, deadline=None)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=14),
    num_blocks=st.integers(3, 10),
    block_size=st.integers(1, 4),
    max_slots=st.integers(1, 6),
    knobs=st.tuples(*(st.integers(low, high) for low, high in ((1, 6), (1, 24), (0, 10), (1, 8), (1, 3)))),
    limits=LIMITS,
)
def test_random_work(
    kit: SimpleNamespace,
    case: str,
    shapes: list[Shape],
    num_blocks: int,
    block_size: int,
    max_slots: int,
    knobs: tuple[int, ...],
    limits: LatencyLimits,
) -> None:
    chosen = strategy_of(case, *knobs)
    check_random_work(kit, chosen, limits, shapes, num_blocks, block_size, max_slots, kit.LateExecutor)


@pytest.mark.parametrize("case", [case for case in OVERLAPPING if case not in LEARNING])
@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(1, 12), st.integers(1, 10)), min_size=1, max_size=14),
    num_blocks=st.integers(6, 12),
    block_size=st.integers(1, 4),
    knobs=st.tuples(*(st.integers(low, high) for low, high in ((1, 6), (1, 24), (0, 10), (1, 8), (1, 3)))),
)
def test_nothing_else_changes_where_all_ends_are_known(
    kit: SimpleNamespace,
    case: str,
    lengths: list[tuple[int, int]],
    num_blocks: int,
    block_size: int,
    knobs: tuple[int, ...],
) -> None:
    """The same plans, step for step, with the same times, and so all accounts of requests and slots."""
    requests = [kit.request(i, *one) for i, one in enumerate(lengths)]

    def served(overlap: bool) -> tuple[RunRecord, Any]:
        executor = kit.LateExecutor(
            num_blocks, block_size, duration=lambda plan: TICK * (1 + plan.num_slice_tokens)
        )
        chosen = strategy_of(case, *knobs)
        engine = engine_for(chosen, executor, Told(requests), VirtualClock(), overlap=overlap)
        return engine.run(), executor.plans

    (late, late_plans), (at_once, plans) = served(overlap=True), served(overlap=False)
    assert late.overlap and not at_once.overlap
    assert (replace(late, overlap=False), late_plans) == (at_once, plans)


@pytest.mark.parametrize("case", OVERLAPPING)
def test_what_is_preempted_is_computed_again_with_all_its_tokens(kit: SimpleNamespace, case: str) -> None:
    requests = [kit.request(i, 3, 12) for i in range(4)]
    executor = kit.LateExecutor(num_blocks=6, block_size=3)
    engine = engine_for(strategy_of(case, 4, 64, 0, 2), executor, Told(requests), VirtualClock())
    run = engine.run()
    assert [record.output for record in run.requests] == [kit.expected_output(r) for r in requests]
    assert sum(run.steps.num_preempted) > 0 or case.startswith("sequential") or forecasts(case)


@pytest.mark.parametrize("case", DRAFTING)
def test_drafts_need_the_tokens_first(kit: SimpleNamespace, case: str) -> None:
    executor = kit.LateExecutor()
    requests = [kit.request(i, 3, 12) for i in range(3)]
    engine = engine_for(strategy_of(case, 4, 64, 0, 2), executor, Told(requests), VirtualClock())
    while engine.step():
        assert executor.num_in_flight == 0


def ending_early(kit: SimpleNamespace, after: int, max_tokens: int) -> Request:
    """A request that the fake model ends with its EOS after so many tokens."""
    for i in range(10_000):
        request = kit.request(i, 4, max_tokens, ignore_eos=False)
        output = kit.expected_output(request)
        if len(output) == after and output[-1] == kit.EOS:
            return request
    raise AssertionError("no such request")


@pytest.mark.parametrize("after", [1, 2, 5])
def test_a_late_eos_wastes_one_decode_and_says_so(kit: SimpleNamespace, after: int) -> None:
    request = ending_early(kit, after, max_tokens=20)
    executor = kit.LateExecutor(block_size=2)
    engine = kit.engine(Continuous(), Told([request]), executor, prefix_caching=True)
    while engine.step():
        engine.queues.check_integrity()
    run = engine.record()
    (record,) = run.requests
    assert record.output == kit.expected_output(request)
    assert record.end_reason is EndReason.STOP
    assert record.token_times_s == [float(i + 1) for i in range(after)] and record.end_s == after
    assert run.occupancy == [(0, request.id, 0.0, float(after), float(after))]
    assert run.steps.num_wasted == [*[0] * after, 1]
    assert run.steps.num_decodes == [0, *[1] * after], "the device did compute it"
    assert summarize(run).bubble == pytest.approx(1 / (after + 1))
    assert engine.queues.kv.num_free == engine.queues.kv.num_blocks


def test_a_late_eos_at_the_last_token_wastes_nothing(kit: SimpleNamespace) -> None:
    request = ending_early(kit, after=5, max_tokens=5)
    run = kit.serve(Continuous(), Told([request]), kit.LateExecutor())
    assert run.requests[0].end_reason is EndReason.STOP
    assert run.steps.num_wasted == [0] * 5


@pytest.mark.parametrize(("steps", "delivered"), [(1, 0), (2, 1), (4, 3)])
def test_the_token_in_flight_of_who_hangs_up_is_dropped(
    kit: SimpleNamespace, steps: int, delivered: int
) -> None:
    """Also of one whose last token it is, which holds neither blocks nor slot any more."""
    requests = [kit.request(0, 4, 4), kit.request(1, 4, 9)]
    executor = kit.LateExecutor(num_blocks=12, block_size=2)
    engine = kit.engine(Continuous(), Told(requests), executor)
    for _ in range(steps):
        engine.step()
    gone = engine._in_flight.plan.slices[0].sequence if steps == 1 else engine._in_flight.decoding[0]
    assert gone.id == 0 and executor.num_in_flight == 1
    assert (gone.id in engine.queues.running) == (steps < 4)
    engine.queues.finish(gone, EndReason.CANCELLED, engine._clock.now())
    while engine.step():
        engine.queues.check_integrity()
    run = engine.record()
    assert run.requests[0].output == kit.expected_output(requests[0])[:delivered]
    assert len(run.requests[0].token_times_s) == delivered
    assert run.requests[0].end_reason is EndReason.CANCELLED
    assert run.requests[1].output == kit.expected_output(requests[1])
    assert sum(run.steps.num_wasted) == (steps > 1), "a prompt's own token is no decode"
    assert engine.queues.kv.num_free == engine.queues.kv.num_blocks


def test_a_stopped_run_takes_in_what_is_in_flight(kit: SimpleNamespace) -> None:
    engine = kit.engine(Continuous(), Told([kit.request(i, 4, 9) for i in range(3)]), kit.LateExecutor())
    for _ in range(4):
        engine.step()
    run = engine.record()
    assert {record.end_reason for record in run.requests} == {EndReason.UNFINISHED}
    assert all(len(record.token_times_s) == len(record.output) == 4 for record in run.requests)
    assert len(run.steps.duration_s) == len(run.steps.num_decodes) == len(run.steps.num_wasted) == 4
    assert engine.queues.kv.num_free == engine.queues.kv.num_blocks


class TwoClocks:
    """Time as the host sees it, while a device computes by itself."""

    name: ClassVar[str] = "virtual"

    def __init__(self) -> None:
        self.now_s = 0.0
        self.device_s = 0.0

    def now(self) -> float:
        return self.now_s

    def idle_until(self, time_s: float) -> None:
        self.now_s = max(self.now_s, time_s)

    def step_took(self, duration_s: float | None) -> None:
        pass


def device(kit: SimpleNamespace, clock: TwoClocks, host_s: float, device_s: float) -> Any:
    """An executor for which the host works for a while, and then the device."""

    class Device(kit.LateExecutor):  # type: ignore[misc]  # the kit is untyped
        def submit(self, plan: StepPlan) -> Any:
            handle = super().submit(plan)
            clock.now_s += host_s
            clock.device_s = max(clock.device_s, clock.now_s) + device_s
            return handle, clock.device_s

        def collect(self, handle: Any) -> StepOutput:
            clock.now_s = max(clock.now_s, handle[1])
            return super().collect(handle[0])

    return Device()


@pytest.mark.parametrize(("host_s", "device_s"), [(3.0, 5.0), (5.0, 3.0), (4.0, 4.0), (0.0, 2.0)])
@pytest.mark.parametrize("overlap", [True, False])
def test_a_step_takes_the_longer_of_host_and_device_and_not_the_sum(
    kit: SimpleNamespace, host_s: float, device_s: float, overlap: bool
) -> None:
    clock = TwoClocks()
    requests = [kit.request(0, 4, 20), kit.request(1, 4, 7)]
    engine = Engine(
        device(kit, clock, host_s, device_s), Continuous(), Told(requests), clock, overlap=overlap
    )
    run = engine.run()
    steps, each = run.steps, max(host_s, device_s) if overlap else host_s + device_s
    assert len(steps) == 20
    # The host prepares the first alone, and waits for the last alone.
    assert steps.duration_s[2:-1] == [each] * 17
    assert steps.start_s[0] == 0.0
    for step, (start_s, after_s) in enumerate(pairwise(steps.start_s)):
        assert start_s + steps.duration_s[step] == after_s, "durations do not tile the time"
    ends = [start + took for start, took in zip(steps.start_s, steps.duration_s, strict=True)]
    assert run.requests[0].token_times_s == ends
    assert run.requests[1].token_times_s == ends[:7]
    assert clock.now_s == ends[-1]


def test_an_idle_gap_is_no_part_of_a_step(kit: SimpleNamespace) -> None:
    """Nothing is in flight when the engine idles, be it for an arrival or for a batch to fill."""
    clock, source = TwoClocks(), kit.Source([kit.request(0, 4, 3), kit.request(1, 4, 2, arrival_s=100.0)])
    executor = device(kit, clock, host_s=1.0, device_s=3.0)
    idle_until = clock.idle_until

    def idle(time_s: float) -> None:
        assert executor.num_in_flight == 0
        idle_until(time_s)

    clock.idle_until = idle  # type: ignore[method-assign]
    run = engine_for(strategy_of("dynamic", 4, 64, 16, 0), executor, source, clock).run()
    assert run.steps.start_s == [1.0, 5.0, 8.0, 101.0, 105.0], "one second is the delay of the batch"
    assert run.steps.duration_s == [4.0, 3.0, 3.0, 4.0, 3.0]
    assert [record.first_scheduled_s for record in run.requests] == [1.0, 101.0]
    assert [record.token_times_s for record in run.requests] == [[5.0, 8.0, 11.0], [105.0, 108.0]]


def test_overlap_is_what_the_executor_says_unless_told(kit: SimpleNamespace) -> None:
    def in_flight(overlaps: bool, overlap: bool | None) -> int:
        executor = kit.LateExecutor()
        executor.overlaps = overlaps
        engine = Engine(executor, Continuous(), Told([kit.request(0)]), VirtualClock(), overlap=overlap)
        engine.step()
        return executor.num_in_flight

    assert in_flight(overlaps=True, overlap=None) == in_flight(overlaps=False, overlap=True) == 1
    assert in_flight(overlaps=False, overlap=None) == in_flight(overlaps=True, overlap=False) == 0


def test_an_executor_that_cannot_overlap_serves_as_ever(kit: SimpleNamespace) -> None:
    request = kit.request(0)
    engine = Engine(kit.Executor(), Continuous(), Told([request]), VirtualClock(), overlap=True)
    assert engine.run().requests[0].output == kit.expected_output(request)
