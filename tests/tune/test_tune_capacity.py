"""The search for a capacity finds a known one, cheaply, and says when it cannot."""

from __future__ import annotations

import pytest
import tune_fake

from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError, find_capacity

SEQUENTIAL = strategy("sequential")


def at(saturated: float, **options: object):  # type: ignore[no-untyped-def]
    def measure(rate: float) -> RunResult:
        return tune_fake.result(SEQUENTIAL, rate, 0, saturated=saturated, **options)  # type: ignore[arg-type]

    return measure


@pytest.mark.parametrize("saturated", [0.5, 3.0, 10.0, 47.0, 200.0])
@pytest.mark.parametrize("start", [2.0, 10.0, 30.0])
def test_the_capacity_is_found_within_the_tolerance(saturated: float, start: float) -> None:
    truth = tune_fake.HEADROOM * saturated
    found = find_capacity(at(saturated), start_rate=start, tolerance=0.05, max_runs=20)
    assert found.bracketed
    assert truth / 1.05 <= found.rate_per_s <= truth * (1 + 1e-9)
    assert found.passing is not None and found.passing.workload["rate_per_s"] == found.rate_per_s
    assert found.failing is not None and found.failing.workload["rate_per_s"] > found.rate_per_s


def test_a_warm_start_takes_fewer_runs() -> None:
    cold = find_capacity(at(10.0), start_rate=0.3, max_runs=30)
    warm = find_capacity(at(10.0), start_rate=7.9, first_step=1.25, max_runs=30)
    assert len(warm.runs) < len(cold.runs)


def test_max_runs_is_kept() -> None:
    found = find_capacity(at(10.0), start_rate=0.3, tolerance=1e-6, max_runs=6)
    assert len(found.runs) == 6
    assert 0.0 < found.rate_per_s <= 8.0


def test_a_hopeless_slo_gives_zero_and_the_limit_that_binds() -> None:
    found = find_capacity(at(10.0, slo=("p90_ttft<=50ms",)), start_rate=5.0)
    assert found.rate_per_s == 0.0
    assert found.passing is None and not found.bracketed
    assert found.failing is not None and found.failing.verdict is not None
    assert found.failing.verdict.limits[0].limit.name == "p90_ttft"
    assert min(rate for rate, _ in found.runs) < 0.05


def test_a_workload_that_never_misses_has_a_lower_bound() -> None:
    found = find_capacity(at(1e9), start_rate=1.0)
    assert found.rate_per_s == 128.0
    assert not found.bracketed and found.failing is None


def test_too_few_requests_are_an_error_that_says_how_many() -> None:
    with pytest.raises(NotEnoughEvidenceError, match=r"p99_ttft: 70 of 662 .* at least 662 requests"):
        find_capacity(at(10.0, slo=("p99_ttft<=500ms",)), start_rate=5.0)


def test_a_miss_needs_no_evidence_from_the_other_limits() -> None:
    found = find_capacity(at(10.0, slo=("p50_ttft<=50ms", "p99_tpot<=1s")), start_rate=5.0)
    assert found.rate_per_s == 0.0


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_an_impossible_start_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="start_rate"):
        find_capacity(at(10.0), start_rate=rate)
