"""Queues whose capacity is known: one server, and a server of full batches. Arrivals are Poisson."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import check, parse_slo

Floats = NDArray[np.float64]


def arrivals(n: int, rate: float, seed: int) -> Floats:
    """Poisson arrivals with exactly the mean rate, as a workload has them."""
    times = np.cumsum(np.random.default_rng(seed).standard_exponential(n))
    return times * (n / rate / times[-1])


def one_server(arrived: Floats, service_s: float) -> Floats:
    """When each request is done: M/D/1, by Lindley's recursion."""
    walk = np.concatenate(([0.0], np.cumsum(service_s - np.diff(arrived))))
    waits = walk - np.minimum.accumulate(walk)
    return arrived + waits + service_s


def full_batches(arrived: Floats, size: int, service_s: float) -> Floats:
    """When each request is started: a batch waits until it is full and the server free."""
    started, free = np.empty_like(arrived), 0.0
    for first in range(0, arrived.size, size):
        members = slice(first, min(first + size, arrived.size))
        free = max(free, arrived[members][-1])
        started[members] = free
        free += service_s
    return started


def result(arrived: Floats, first_token: Floats, rate: float, slo: Sequence[str]) -> RunResult:
    """A run in which each request gets two tokens."""
    records = [
        RequestRecord(
            id=i,
            arrival_s=at,
            num_prompt_tokens=1,
            max_tokens=2,
            first_scheduled_s=at,
            token_times_s=[first, first + 0.001],
            output=[1, 2],
            end_s=first + 0.001,
            end_reason=EndReason.LENGTH,
        )
        for i, (at, first) in enumerate(zip(arrived.tolist(), first_token.tolist(), strict=True))
    ]
    limits = parse_slo(slo)
    metrics = summarize(RunRecord(records, StepLog()), limits)
    return RunResult(
        strategy="sequential",
        knobs={},
        workload={"rate_per_s": rate, "num_requests": len(records)},
        model={},
        environment={},
        slo=list(slo),
        metrics=metrics,
        verdict=check(metrics, limits),
    )


def true_capacity(service_s: float, limit_s: float, q: float = 0.9) -> float:
    """The rate at which the stationary quantile of waiting and service is the limit, from a long run."""
    low, high = 0.01 / service_s, 1.0 / service_s
    for _ in range(14):
        rate = math.sqrt(low * high)
        arrived = arrivals(100_000, rate, seed=99)
        late = np.quantile(one_server(arrived, service_s)[10_000:] - arrived[10_000:], q) > limit_s
        low, high = (low, rate) if late else (rate, high)
    return low
