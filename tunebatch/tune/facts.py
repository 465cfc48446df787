"""What a sweep tells: about a trial, while it runs, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.space import config_hash

__all__ = [
    "MeasureFn",
    "Objective",
    "Origin",
    "Phase",
    "SweepEvent",
    "SweepOutcome",
    "TableRow",
    "TrialFacts",
]

Objective = Literal["capacity", "throughput"]
Origin = Literal["default", "search", "random"]
Phase = Literal["start", "search", "random", "confirm"]

# Serves the workload: strategy, rate in requests per second (None: all requests at once, or a workload
# without a rate), seed of the arrivals, whether to stop once the SLO is certainly missed.
MeasureFn = Callable[[Strategy, float | None, int, bool], RunResult]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFacts:
    """One configuration that was measured, in plain JSON types.

    Attributes:
        number: The trial's in its Optuna study; random trials are a study of their own.
        capacity: Requests per second inside the SLO, or output tokens per second for the throughput
            objective; 0 when the SLO cannot be met.
        met: The SLO was met at ``capacity``.
        objective: What the search maximises: the logarithm of the capacity, pessimistic where there is none.
        margins: Per limit ``log(observed / limit)`` at the capacity, or where even the lowest rate misses;
            clipped to [-1, 1.5].
        binding: What the first run above the capacity missed; None when nothing did.
        oom: A step did not fit on the device.
        rates: Every rate that was measured and whether it met the SLO.
        summary: The metrics at the capacity under the keys of ``vllm bench serve``, and some of ours.
        confirmed: Its capacity on each fresh seed.
    """

    number: int
    origin: Origin
    strategy: str
    knobs: dict[str, float | int]
    capacity: float
    met: bool
    objective: float
    margins: dict[str, float] = field(default_factory=dict)
    binding: str | None = None
    oom: bool = False
    rates: tuple[tuple[float, bool], ...] = ()
    summary: dict[str, float | None] = field(default_factory=dict)
    confirmed: tuple[float, ...] = ()

    @property
    def config(self) -> str:
        return config_hash(self.chosen)

    @property
    def chosen(self) -> Strategy:
        return strategy(self.strategy, self.knobs)

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialFacts:
        values = dict(data)
        values["rates"] = tuple((float(rate), bool(met)) for rate, met in values.get("rates", ()))
        values["confirmed"] = tuple(values.get("confirmed", ()))
        return cls(**values)


@dataclass(frozen=True, slots=True)
class TableRow:
    """The best configuration of one strategy.

    Attributes:
        result: The run at its capacity, from the confirmation where there was one; records are missing on
            what an earlier session measured. None when it met the SLO nowhere.
    """

    facts: TrialFacts
    result: RunResult | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """Progress, for whoever shows it.

    Attributes:
        trial: Number of the step in its phase, from 1.
        total: Steps of the phase; None when only time limits it.
        label: The strategy with its knobs.
        best: Best capacity so far, and ``best_label`` whose it is.
        done: The finished trial's facts; None when the event announces work.
        error: Why a trial failed, one line.
    """

    phase: Phase
    trial: int
    total: int | None
    label: str
    best: float | None
    best_label: str | None
    elapsed_s: float
    done: TrialFacts | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """What a sweep found.

    Attributes:
        trials: All that were measured, earlier sessions included; repeats of a configuration left out.
        best: The best of each strategy, best first; random trials left out.
        winner: Highest confirmed capacity; unconfirmed when interrupted; None when nothing is feasible.
        gain: Winner over best default, as a ratio of confirmed capacities.
        gain_interval: 90 % interval of ``gain`` from the repeats; None with fewer than two, or when the
            best default is the winner.
        binding: What the winner misses first above its capacity; of the best trial when there is no winner.
        best_random: Best of the random baseline; None without one.
        elapsed_s: Of this session.
    """

    trials: list[TrialFacts]
    best: list[TableRow]
    winner: TrialFacts | None
    best_default: TrialFacts | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    binding: str | None
    best_random: TrialFacts | None
    interrupted: bool
    elapsed_s: float
