"""The highest request rate that a configuration sustains inside the SLO.

Bracketing, then bisection on the logarithm of the rate. A fixed rate below the knee would make every
configuration look the same, because throughput then equals the offered load.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import LimitVerdict

__all__ = ["Capacity", "NotEnoughEvidenceError", "find_capacity", "is_met"]

# A bracket grows faster the further it is from where it started; the product is 128.
_GROWTH = (2.0, 2.0, 4.0, 8.0)


class NotEnoughEvidenceError(ValueError):
    """The workload has too few requests for a limit's percentile; one line for the user."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search for the capacity found.

    Attributes:
        rate_per_s: The highest rate that met the SLO, requests per second; 0 when none did.
        passing: The run at that rate.
        failing: The run at the lowest rate that missed; its verdict tells which limit binds. None when no
            rate missed.
        runs: Every run in order: its rate, and whether it met the SLO.
        bracketed: Both a passing and a failing rate are known. Otherwise ``rate_per_s`` is only a lower
            bound, or 0.
    """

    rate_per_s: float
    passing: RunResult | None
    failing: RunResult | None
    runs: tuple[tuple[float, bool], ...]
    bracketed: bool


def find_capacity(
    measure_at: Callable[[float], RunResult],
    *,
    start_rate: float,
    tolerance: float = 0.05,
    max_runs: int = 10,
    first_step: float = 2.0,
) -> Capacity:
    """Searches the capacity, assuming that a higher rate is never easier.

    Args:
        measure_at: Serves the workload at a rate (requests per second); its verdict decides.
        start_rate: Where to begin; the nearer to the capacity, the fewer runs.
        tolerance: Stop when the lowest failing rate is at most this share above the highest passing one.
        max_runs: Stop after so many runs, whatever is known by then.
        first_step: Factor from the start to the second rate; a good start deserves a small one.

    Raises:
        NotEnoughEvidenceError: A run's verdict has neither passed nor missed.
        ValueError: An impossible argument, or a run without a verdict.
    """
    if not (start_rate > 0.0 and math.isfinite(start_rate)):
        raise ValueError(f"start_rate = {start_rate}: must be a positive number of requests per second")
    if not (tolerance > 0.0 and first_step > 1.0 and max_runs >= 1):
        raise ValueError("tolerance must be above 0, first_step above 1 and max_runs at least 1")
    search = _Search(measure_at, max_runs)
    search.bracket(start_rate, first_step)
    search.bisect(tolerance)
    return Capacity(
        search.low or 0.0,
        search.passing,
        search.failing,
        tuple(search.runs),
        search.low is not None and search.high is not None,
    )


class _Search:
    """``low`` is the highest passing rate, ``high`` the lowest failing one."""

    def __init__(self, measure_at: Callable[[float], RunResult], max_runs: int) -> None:
        self._measure_at = measure_at
        self._max_runs = max_runs
        self.runs: list[tuple[float, bool]] = []
        self.low: float | None = None
        self.high: float | None = None
        self.passing: RunResult | None = None
        self.failing: RunResult | None = None

    def bracket(self, start_rate: float, first_step: float) -> None:
        rate = start_rate
        upward = self._run(rate)
        growth = _GROWTH if first_step == _GROWTH[0] else (first_step, *_GROWTH)
        for factor in growth:
            if len(self.runs) >= self._max_runs:
                return
            rate = rate * factor if upward else rate / factor
            if self._run(rate) != upward:
                return

    def bisect(self, tolerance: float) -> None:
        while (
            self.low is not None
            and self.high is not None
            and self.high / self.low > 1.0 + tolerance
            and len(self.runs) < self._max_runs
        ):
            self._run(math.sqrt(self.low * self.high))

    def _run(self, rate: float) -> bool:
        result = self._measure_at(rate)
        met = is_met(result)
        self.runs.append((rate, met))
        if met:
            self.low, self.passing = rate, result
        else:
            self.high, self.failing = rate, result
        return met


def is_met(result: RunResult) -> bool:
    """Whether a run met its SLO. A miss on one limit is a miss, whatever evidence the others lack.

    Raises:
        NotEnoughEvidenceError: Nothing missed, but a percentile has too few samples.
        ValueError: The run was not judged.
    """
    verdict = result.verdict
    if verdict is None:
        raise ValueError("a capacity needs an SLO, and this run was measured without one")
    if verdict.met:
        return True
    if verdict.lost or any(limit.status == "miss" for limit in verdict.limits):
        return False
    lacking = [limit for limit in verdict.limits if limit.status == "not enough evidence"]
    raise NotEnoughEvidenceError(_say_needed(result, lacking))


def _say_needed(result: RunResult, lacking: list[LimitVerdict]) -> str:
    have = result.metrics.num_requests
    # Not every request gives a sample (a single token has no TPOT), so the shortage scales the workload.
    worst = max(lacking, key=lambda limit: limit.needed / max(limit.count, 1))
    needed = math.ceil(have * worst.needed / worst.count) if worst.count else worst.needed
    return (
        f"not enough evidence for {worst.limit.name}: {worst.count} of {worst.needed} samples; "
        f"the workload needs at least {needed} requests and has {have}, or judge by a lower percentile"
    )
