"""What a capacity is worth: it must be a rate that could have gone on."""

from __future__ import annotations

import math
from functools import partial
from statistics import mean

import numpy as np
import pytest
import tune_queue

from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import parse_slo
from tunebatch.tune.capacity import find_capacity, is_sustained
from tunebatch.tune.sustained import is_growing, least_duration_s

SLO = ("p90_ttft<=500ms", "p90_tpot<=40ms")
LEAST_S = least_duration_s(parse_slo(SLO), mean_output_tokens=2)


def capacities(service_s: float, least_s: float, slo: tuple[str, ...] = SLO) -> list[float]:
    def measure(rate: float, seed: int) -> RunResult:
        arrived = tune_queue.arrivals(max(96, math.ceil(rate * least_s)), rate, seed)
        return tune_queue.result(arrived, tune_queue.one_server(arrived, service_s), rate, slo)

    return [
        find_capacity(partial(measure, seed=seed), start_rate=1.0 / service_s).rate_per_s for seed in range(8)
    ]


@pytest.mark.parametrize(("service_s", "bias"), [(0.1, 0.15), (1 / 30, 0.10), (0.01, 0.07)])
def test_the_capacity_of_an_m_d_1_queue_is_found(service_s: float, bias: float) -> None:
    truth = tune_queue.true_capacity(service_s, 0.5)
    found = capacities(service_s, LEAST_S)
    assert mean(found) == pytest.approx(truth, rel=bias)
    assert max(found) < 1.07 / service_s, "more than the server can ever serve"


def test_a_short_run_would_promise_more_than_the_server_can_do() -> None:
    assert max(capacities(0.01, least_s=0.0)) > 1.07 / 0.01


def test_an_slo_without_a_limit_on_the_ttft_is_held_back_by_growth() -> None:
    """Nothing ever misses a TPOT of a millisecond here, so only the growing queue bounds the rate."""
    found = capacities(0.01, LEAST_S, ("p90_tpot<=40ms",))
    assert all(0.9 / 0.01 < rate < 1.12 / 0.01 for rate in found)


@pytest.mark.parametrize(("overload", "growing"), [(0.7, False), (1.0, False), (1.1, True), (2.0, True)])
def test_growth_is_seen_from_a_tenth_of_overload_on(overload: float, growing: bool) -> None:
    rate = overload * 50.0
    arrived = np.arange(600) / rate
    run = tune_queue.result(arrived, tune_queue.one_server(arrived, 0.02), rate, ("p90_ttft<=60s",))
    assert is_growing(run) is growing
    assert is_sustained(run) is not growing


def test_requests_that_come_all_at_once_do_not_grow() -> None:
    run = tune_queue.result(np.zeros(100), np.arange(100) * 0.1, 1.0, ("p90_ttft<=60s",))
    run.workload["rate_per_s"] = None
    assert not is_growing(run)


@pytest.mark.parametrize(
    ("slo", "tokens", "seconds"),
    [
        (["p90_ttft<=500ms", "p90_tpot<=10ms"], 30, 10.0),
        (["p90_ttft<=500ms", "p90_tpot<=100ms"], 30, 5 * 3.5),
        (["p50_ttft<=100ms", "p99_ttft<=2s"], 30, 40.0),
        (["p90_e2e<=4s"], 30, 20.0),
        (["p90_tpot<=100ms"], 100, 50.0),
        ([], 30, 0.0),
    ],
)
def test_the_least_duration(slo: list[str], tokens: float, seconds: float) -> None:
    assert least_duration_s(parse_slo(slo), tokens) == pytest.approx(seconds)
