"""Results made by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import strategy
from tunebatch.measure.limits import parse_slo
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult, from_json_dict, to_json_dict
from tunebatch.measure.slo import check
from tunebatch.report.rows import Row

MakeRow = Callable[..., Row]


class TinyExecutor:
    """Twelve blocks of 4 tokens; a step costs a while, and another for each token of a slice. It rejects
    every draft."""

    num_blocks, block_size, max_slots, max_context = 12, 4, 8, 64
    eos_token_ids: frozenset[int] = frozenset()
    drafter = None

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s

    def execute(self, plan: StepPlan) -> StepOutput:
        tokens = [[5] for _ in plan.slices]
        seconds = self._step_s * (1 + plan.num_slice_tokens)
        return StepOutput(tokens, [5] * plan.num_decodes if plan.num_decodes else None, seconds)

    def reset(self) -> None:
        pass


class Arrivals:
    """Requests as they come, all of them known beforehand."""

    def __init__(self, requests: list[Request]) -> None:
        self._left = sorted(requests, key=lambda request: request.arrival_s)

    def next_arrival_s(self) -> float | None:
        return self._left[0].arrival_s if self._left else None

    def take(self, now_s: float) -> list[Request]:
        due = [request for request in self._left if request.arrival_s <= now_s]
        self._left = self._left[len(due) :]
        return due

    def finished(self, record: RequestRecord, now_s: float) -> None:
        pass


@pytest.fixture(scope="session")
def serve() -> Callable[..., RunRecord]:
    """Serves requests of (prompt, max_tokens, arrival_s, cancel_at_s) by a strategy, in virtual time."""

    def run(
        name: str, shapes: list[tuple[int, int, float, float | None]], step_s: float = 1.0, **knobs: float
    ) -> RunRecord:
        requests = [
            Request(i, tuple(range(1, prompt + 1)), max_tokens, arrival_s, cancel_at_s, ignore_eos=True)
            for i, (prompt, max_tokens, arrival_s, cancel_at_s) in enumerate(shapes)
        ]
        chosen = strategy(name, knobs)
        return engine_for(chosen, TinyExecutor(step_s), Arrivals(requests), VirtualClock()).run()

    return run


@pytest.fixture
def make_row() -> MakeRow:
    """A row of n requests, a second apart, that wait and then get four tokens."""

    def make(
        name: str,
        rate: float | None,
        *,
        n: int = 70,
        wait_s: float = 0.1,
        slo: str = "p90_ttft<=500ms",
        **knobs: Any,
    ) -> Row:
        requests = [
            RequestRecord(
                id=i,
                arrival_s=float(i),
                num_prompt_tokens=8,
                max_tokens=4,
                first_scheduled_s=i + wait_s / 2,
                token_times_s=[i + wait_s + 0.02 * k for k in range(4)],
                output=[5] * 4,
                end_s=i + wait_s + 0.06,
                end_reason=EndReason.LENGTH,
            )
            for i in range(n)
        ]
        record = RunRecord(
            requests=requests,
            steps=StepLog(),
            occupancy=[(0, r.id, r.arrival_s, r.end_s, r.end_s + 0.5) for r in requests],
        )
        limits = parse_slo([slo])
        metrics = summarize(record, limits)
        result = RunResult(
            strategy=name,
            knobs=knobs,
            workload={},
            model={},
            environment={},
            slo=limits.texts(),
            metrics=metrics,
            verdict=check(metrics, limits),
            record=record,
        )
        return Row(result, rate)

    return make


@pytest.fixture
def stopped_row(make_row: MakeRow) -> MakeRow:
    """A row of a run that was ended, and kept on disk, when it was sure to miss the SLO."""

    def make(name: str, num_served: int, n: int = 70) -> Row:
        whole = make_row(name, None, n=n).result
        assert whole.record is not None
        requests = [
            request
            if request.id < num_served
            else RequestRecord(id=request.id, arrival_s=request.arrival_s, num_prompt_tokens=8, max_tokens=4)
            for request in whole.record.requests
        ]
        limits = parse_slo(whole.slo)
        metrics = summarize(RunRecord(requests, StepLog()), limits)
        verdict = check(metrics, limits, missed=next(iter(limits)))
        stopped = dataclasses.replace(whole, metrics=metrics, verdict=verdict, record=None)
        return Row(from_json_dict(to_json_dict(stopped)), None, beyond="p90_ttft over 500ms at 1.00 req/s")

    return make
