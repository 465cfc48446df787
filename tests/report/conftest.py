"""Results made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.measure.limits import parse_slo
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import check
from tunebatch.report.rows import Row

MakeRow = Callable[..., Row]


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
