"""Measures one configuration: closely enough for the search, and more closely for the confirmation."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

from tunebatch.engine.strategies import Strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.facts import Objective, Sampler
from tunebatch.tune.runs import Runs
from tunebatch.tune.space import Space
from tunebatch.tune.sustained import is_growing
from tunebatch.tune.trial import Measured, measure_capacity, measure_throughput

__all__ = ["CONFIRM_STEP", "GLIMPSE_S", "STEP", "Gauge", "Settings", "saturated_rate"]

GLIMPSE_S = 2.0
STEP, CONFIRM_STEP = 1.15, 1.06
_GLIMPSE_ERROR = 1.2  # how far the saturated rate may be from what a glimpse says
_SEARCH_TOLERANCE = 0.08  # the confirmation looks closer


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; see ``run_sweep``. ``began`` and ``end`` are on the monotonic clock, seconds."""

    strategies: tuple[str, ...]
    objective: Objective
    start_rate: float | None
    least_s: float
    max_trials: int | None
    seed: int
    tolerance: float
    max_slots: int | None
    began: float
    end: float
    identity: Mapping[str, Any]
    features: tuple[str, ...] = ()
    ranges: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    sampler: Sampler = "auto"


def saturated_rate(glimpse: RunResult) -> float:
    """Requests per second that a saturated run of any length would serve, told from its tokens."""
    metrics = glimpse.metrics
    if metrics.completed == metrics.num_requests:
        return metrics.request_throughput
    return metrics.output_throughput / float(glimpse.workload["mean_output_tokens"])


class Gauge:
    """Knows where to begin with a strategy, and how long its runs take. What holds for a strategy is taken to
    hold for its variants.

    Attributes:
        kept: The highest rate at which a run of this session kept the SLO, and which configuration did.
    """

    def __init__(self, runs: Runs, settings: Settings, space: Space) -> None:
        self._runs = runs
        self._settings = settings
        self._space = space
        self.kept: tuple[Strategy, float] | None = None
        self._saturated: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}

    def glimpse(self, chosen: Strategy) -> None:
        """A short saturated run.

        Raises:
            OutOfDeviceMemoryError: A step did not fit.
        """
        seen = self._runs(chosen, None, self._settings.seed, glimpse_s=GLIMPSE_S)
        self._saturated[chosen.name] = saturated_rate(seen)

    @property
    def saturated(self) -> dict[str, float]:
        """Requests per second of each strategy that was glimpsed, the fastest first: it has the shortest runs
        and the best prospects, so it comes first where there is not time for all."""
        return dict(sorted(self._saturated.items(), key=lambda item: -item[1]))

    def search(self, chosen: Strategy, best: float, until: float, closely: bool) -> Measured:
        """On the seed of the search.

        Args:
            best: The highest capacity of its strategy so far; 0: none is known.
            closely: Even if it is no better than that, and beginning where its own saturated rate says: a
                feature may change it by a multiple.

        Raises:
            OutOfDeviceMemoryError: A step did not fit.
        """
        settings = self._settings
        if settings.objective == "throughput":
            return measure_throughput(self._runs, chosen, settings.start_rate, settings.seed)
        if closely and settings.start_rate is None and chosen.name not in self._saturated:
            self.glimpse(chosen)
        return measure_capacity(
            lambda rate: self._judge(chosen, rate, settings.seed),
            self._start(chosen, 0.0 if closely else best),
            step=STEP,
            tolerance=max(settings.tolerance, _SEARCH_TOLERANCE),
            good_enough=0.0 if closely else best * CONFIRM_STEP,
            ceiling=_GLIMPSE_ERROR * self._saturated.get(chosen.name, math.inf),
            may_go_on=lambda rate: self._may_judge(chosen, rate, settings.seed, until),
        )

    def confirm(self, chosen: Strategy, capacity: float, seed: int, until: float) -> Measured:
        """On another seed, beginning at the capacity that the search found.

        Raises:
            OutOfDeviceMemoryError: A step did not fit.
        """
        settings = self._settings
        if settings.objective == "throughput":
            return measure_throughput(self._runs, chosen, settings.start_rate, seed)
        return measure_capacity(
            lambda rate: self._judge(chosen, rate, seed),
            capacity * CONFIRM_STEP,
            step=CONFIRM_STEP,
            tolerance=settings.tolerance,
            may_go_on=lambda rate: self._may_judge(chosen, rate, seed, until),
        )

    def is_begun(self, chosen: Strategy, capacity: float, seed: int) -> bool:
        """A confirmation whose first run is kept, of whichever session; every run, of a throughput."""
        rate = self._settings.start_rate
        if self._settings.objective == "throughput":
            return all(self._runs.recall(chosen, one, seed) is not None for one in {None, rate})
        return self._is_kept(chosen, capacity * CONFIRM_STEP, seed)

    def has_time(self, chosen: Strategy, until: float) -> bool:
        """For one more run, going by the longest that the strategy has needed."""
        longest_s = self._longest_s.get(self._space.base_of(chosen.name), 0.0)
        return time.monotonic() + longest_s <= until

    def _may_judge(self, chosen: Strategy, rate: float, seed: int, until: float) -> bool:
        """A run that is kept takes no time."""
        return self.has_time(chosen, until) or self._is_kept(chosen, rate, seed)

    def _is_kept(self, chosen: Strategy, rate: float, seed: int) -> bool:
        return self._runs.recall(chosen, rate, seed, stop_early=True) is not None

    def _judge(self, chosen: Strategy, rate: float, seed: int) -> RunResult:
        began = time.monotonic()
        result = self._runs(chosen, rate, seed, stop_early=True, least_s=self._settings.least_s)
        took, base = time.monotonic() - began, self._space.base_of(chosen.name)
        self._longest_s[base] = max(self._longest_s.get(base, 0.0), took)
        kept = result.verdict is not None and result.verdict.met and not is_growing(result)
        if kept and (self.kept is None or rate > self.kept[1]):
            self.kept = chosen, rate
        return result

    def _start(self, chosen: Strategy, best: float) -> float:
        """A little above the capacity: above the best of the strategy, which most of its configurations do
        not reach; else the saturated rate, which none exceeds for long."""
        if best > 0.0:
            return best * CONFIRM_STEP
        base = self._space.base_of(chosen.name)
        known = self._saturated.get(chosen.name) or self._saturated.get(base)
        return self._settings.start_rate or known or max(self._saturated.values(), default=0.0) or 1.0
