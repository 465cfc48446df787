"""The highest request rate that a configuration sustains inside the SLO.

A fixed rate below the knee would make every configuration look the same, because throughput then equals
the offered load. So the rate is searched: coming from above, then by bisection of its logarithm. From
above, because a run that misses ends as soon as that is certain, while one that passes has to serve
everybody: most searches pay for one or two such runs.

A higher rate is not always harder. A static batch waits until it is full, so a request may wait too long
because too *few* others come: such a configuration meets the SLO in an interval of rates. The descent stops
at the first rate that passes, which is the upper end of the interval, to within a step; when none passes on
the way down, higher rates than the first are tried too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import LimitVerdict
from tunebatch.tune.sustained import is_growing

__all__ = ["Capacity", "NotEnoughEvidenceError", "find_capacity", "is_sustained"]

# Exponents of the step, one per run. Downward they add up to 34 steps, a factor of 116 at a step of 1.15;
# upward from a rate that passed to twice as many; upward from misses to 5, a factor of 2.
_DOWN = (1, 1, 1, 1, 2, 4, 8, 16)
_UP = (1, 2, 4, 8, 16, 32)
_UP_FROM_MISSES = (1, 1, 1, 2)
_COARSE_STEP = 1.5


class NotEnoughEvidenceError(ValueError):
    """The workload has too few requests for a limit's percentile; one line for the user."""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search for the capacity found.

    Attributes:
        rate_per_s: The highest rate that was sustained, requests per second; 0 when none was.
        passing: The run at that rate.
        failing: The run at the lowest rate above it that was not, or at the lowest rate of all when nothing
            passed; its verdict tells which limit binds. None when every rate was sustained.
        runs: Every run in order: its rate, and whether it was sustained.
        finished: The search ended by itself, not by ``max_runs`` or ``may_go_on``. Otherwise ``rate_per_s``
            is only a lower bound, or 0 because nothing is known.
        coarse: The configuration is not better than ``good_enough``, and ``rate_per_s`` a lower bound.
    """

    rate_per_s: float
    passing: RunResult | None
    failing: RunResult | None
    runs: tuple[tuple[float, bool], ...]
    finished: bool
    coarse: bool


def find_capacity(
    measure_at: Callable[[float], RunResult],
    *,
    start_rate: float,
    step: float = 1.15,
    tolerance: float = 0.05,
    good_enough: float = 0.0,
    ceiling: float = math.inf,
    max_runs: int = 20,
    may_go_on: Callable[[float], bool] = lambda rate: True,
) -> Capacity:
    """Searches the capacity.

    Args:
        measure_at: Serves the workload at a rate (requests per second); its verdict decides.
        start_rate: Where to begin; best a little above the capacity.
        step: Ratio of the first two rates; the descent gets faster from there.
        tolerance: Stop when the lowest failing rate is at most this share above the highest passing one.
        good_enough: A rate to beat. When the start is not above it and fails, the capacity is told
            coarsely: by the first rate of a steep descent that passes.
        ceiling: A rate that cannot be sustained: when every lower one misses, none above it is tried.
        max_runs: Stop after so many runs, whatever is known by then.
        may_go_on: Asked before every run but the first, with its rate.

    Raises:
        NotEnoughEvidenceError: A run's verdict has neither passed nor missed.
        ValueError: An impossible argument, or a run without a verdict.
    """
    if not (start_rate > 0.0 and math.isfinite(start_rate)):
        raise ValueError(f"start_rate = {start_rate}: must be a positive number of requests per second")
    if not (tolerance > 0.0 and step > 1.0 and max_runs >= 1):
        raise ValueError("tolerance must be above 0, step above 1 and max_runs at least 1")
    search = _Search(measure_at, max_runs, may_go_on)
    coarse = False
    try:
        passed: float | None = start_rate if search.sustains(start_rate) else None
        coarse = passed is None and start_rate <= good_enough
        if passed is None and not search.descend(start_rate, _COARSE_STEP if coarse else step):
            passed = search.climb(start_rate, step, _UP_FROM_MISSES, until=True, ceiling=ceiling)
        if passed is not None:
            search.climb(passed, step, _UP, until=False)
        if not coarse:
            search.bisect(tolerance)
        finished = True
    except _OutOfBudgetError:
        finished = False
    return search.found(finished, coarse)


class _OutOfBudgetError(Exception):
    pass


class _Search:
    def __init__(
        self, measure_at: Callable[[float], RunResult], max_runs: int, may_go_on: Callable[[float], bool]
    ) -> None:
        self._measure_at = measure_at
        self._max_runs = max_runs
        self._may_go_on = may_go_on
        self._runs: list[tuple[float, bool, RunResult]] = []

    def descend(self, rate: float, step: float) -> bool:
        """Lower rates until one passes; whether one did."""
        for exponent in _DOWN:
            rate /= step**exponent
            if self.sustains(rate):
                return True
        return False

    def climb(
        self, rate: float, step: float, exponents: tuple[int, ...], until: bool, ceiling: float = math.inf
    ) -> float | None:
        """Higher rates until one passes, or until one does not; that one."""
        for exponent in exponents:
            rate *= step**exponent
            if rate > ceiling:
                return None
            if self.sustains(rate) == until:
                return rate
        return None

    def bisect(self, tolerance: float) -> None:
        while (low := self._low()) is not None and (high := self._high(low[0])) is not None:
            if high[0] <= low[0] * (1.0 + tolerance):
                return
            self.sustains(math.sqrt(low[0] * high[0]))

    def sustains(self, rate: float) -> bool:
        if len(self._runs) >= self._max_runs or (self._runs and not self._may_go_on(rate)):
            raise _OutOfBudgetError
        result = self._measure_at(rate)
        self._runs.append((rate, is_sustained(result), result))
        return self._runs[-1][1]

    def found(self, finished: bool, coarse: bool) -> Capacity:
        low = self._low()
        high = self._high(low[0] if low is not None else 0.0)
        return Capacity(
            rate_per_s=low[0] if low is not None else 0.0,
            passing=low[1] if low is not None else None,
            failing=high[1] if high is not None else None,
            runs=tuple((rate, passed) for rate, passed, _ in self._runs),
            finished=finished,
            coarse=coarse,
        )

    def _low(self) -> tuple[float, RunResult] | None:
        passed = [(rate, result) for rate, met, result in self._runs if met]
        return max(passed, key=lambda run: run[0], default=None)

    def _high(self, above: float) -> tuple[float, RunResult] | None:
        missed = [(rate, result) for rate, met, result in self._runs if not met and rate > above]
        return min(missed, key=lambda run: run[0], default=None)


def is_sustained(result: RunResult) -> bool:
    """Whether a run met its SLO and could have gone on.

    A miss on one limit is a miss, whatever evidence the others lack; and so is evidence that is lacking
    because clients hung up.

    Raises:
        NotEnoughEvidenceError: Nothing missed, but a percentile has too few samples.
        ValueError: The run was not judged.
    """
    verdict = result.verdict
    if verdict is None:
        raise ValueError("a capacity needs an SLO, and this run was measured without one")
    if verdict.lost or any(limit.status == "miss" for limit in verdict.limits):
        return False
    lacking = [limit for limit in verdict.limits if limit.status == "not enough evidence"]
    if any(_would_be_enough(result, limit) for limit in lacking):
        return False
    if lacking:
        raise NotEnoughEvidenceError(_say_needed(result, lacking))
    return not is_growing(result)


def _would_be_enough(result: RunResult, limit: LimitVerdict) -> bool:
    """Had nobody hung up."""
    metrics = result.metrics
    return metrics.num_counted >= limit.needed and limit.count + metrics.cancelled >= limit.needed


def _say_needed(result: RunResult, lacking: list[LimitVerdict]) -> str:
    have = result.metrics.num_requests
    # Not every request gives a sample (a single token has no TPOT), so the shortage scales the workload.
    worst = max(lacking, key=lambda limit: limit.needed / max(limit.count, 1))
    needed = math.ceil(have * worst.needed / worst.count) if worst.count else worst.needed
    return (
        f"not enough evidence for {worst.limit.name}: {worst.count} of {worst.needed} samples; "
        f"the workload needs at least {needed} requests and has {have}, or judge by a lower percentile"
    )
