"""The search for a capacity finds a known one, cheaply, and says when it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import tune_fake
import tune_queue

from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError, find_capacity, is_sustained

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
    assert found.finished and not found.coarse
    assert truth / 1.05 <= found.rate_per_s <= truth * (1 + 1e-9)
    assert found.passing is not None and found.passing.workload["rate_per_s"] == found.rate_per_s
    assert found.failing is not None and found.failing.workload["rate_per_s"] > found.rate_per_s


def test_coming_from_above_at_most_three_runs_have_to_serve_everybody() -> None:
    for share in (0.5, 0.6, 0.7, 0.8, 0.9, 0.99):
        found = find_capacity(at(10.0 * share / tune_fake.HEADROOM), start_rate=10.0, tolerance=0.08)
        assert sum(passed for _, passed in found.runs) <= 3


def test_above_the_ceiling_nothing_is_tried_when_all_below_it_misses() -> None:
    asked: list[float] = []

    def hopeless(rate: float) -> RunResult:
        asked.append(rate)
        return at(1e-6)(rate)

    find_capacity(hopeless, start_rate=10.0, ceiling=12.0)
    assert max(asked) == pytest.approx(10.0 * 1.15)
    assert find_capacity(at(100.0), start_rate=10.0, ceiling=12.0).rate_per_s > 50.0


def test_max_runs_is_kept() -> None:
    found = find_capacity(at(10.0), start_rate=0.3, tolerance=1e-6, max_runs=6)
    assert len(found.runs) == 6 and not found.finished
    assert 0.0 < found.rate_per_s <= 8.0


def test_a_search_out_of_time_tells_what_it_knows() -> None:
    asked = iter([True, True, False])
    found = find_capacity(at(10.0), start_rate=10.0, may_go_on=lambda rate: next(asked))
    assert [passed for _, passed in found.runs] == [False, False, True]
    assert not found.finished and found.rate_per_s == pytest.approx(10.0 / 1.15**2)
    assert not find_capacity(at(10.0), start_rate=10.0, may_go_on=lambda rate: False).finished


def test_who_cannot_beat_the_best_is_looked_at_coarsely() -> None:
    found = find_capacity(at(10.0), start_rate=12.0, good_enough=12.0)
    assert found.finished and found.coarse
    assert [passed for _, passed in found.runs] == [False, True]
    assert found.rate_per_s == pytest.approx(8.0)
    better = find_capacity(at(20.0), start_rate=12.0, good_enough=12.0)
    assert not better.coarse and 16.0 / 1.05 <= better.rate_per_s <= 16.0


def test_a_hopeless_slo_gives_zero_and_the_limit_that_binds() -> None:
    found = find_capacity(at(10.0, slo=("p90_ttft<=50ms",)), start_rate=5.0)
    assert found.rate_per_s == 0.0
    assert found.passing is None and found.finished
    assert found.failing is not None and found.failing.verdict is not None
    assert found.failing.verdict.limits[0].limit.name == "p90_ttft"
    assert min(rate for rate, _ in found.runs) < 0.1


def test_a_workload_that_never_misses_has_a_lower_bound() -> None:
    found = find_capacity(at(1e9), start_rate=1.0)
    assert found.rate_per_s > 50.0
    assert found.failing is None


def batches(rate: float) -> RunResult:
    """Full batches of 16, half a second each: 32 a second at most, and below 24 they fill too slowly."""
    arrived = np.arange(320) / rate
    started = tune_queue.full_batches(arrived, 16, 0.5)
    return tune_queue.result(arrived, started + 0.01, rate, ("p90_ttft<=575ms",))


@pytest.mark.parametrize("start", [18.0, 21.0, 24.0, 30.0, 34.0, 40.0, 60.0])
def test_a_static_batch_has_an_interval_of_rates_and_its_upper_end_is_found(start: float) -> None:
    assert [is_sustained(batches(rate)) for rate in (22.0, 26.0, 32.0, 36.0)] == [False, True, True, False]
    found = find_capacity(batches, start_rate=start, tolerance=0.03)
    assert 31.0 <= found.rate_per_s <= 33.0
    assert found.failing is not None and found.failing.workload["rate_per_s"] > found.rate_per_s


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
