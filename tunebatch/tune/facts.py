"""What a sweep tells: about a trial, while it runs, and at the end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.space import config_hash

__all__ = [
    "MeasureFn",
    "Miss",
    "Objective",
    "Origin",
    "Phase",
    "Sampler",
    "SweepEvent",
    "SweepOutcome",
    "TableRow",
    "TrialFacts",
]

Objective = Literal["capacity", "throughput"]
Origin = Literal["default", "search", "random"]
Sampler = Literal["auto", "gp", "tpe", "random"]
Phase = Literal["start", "search", "random", "confirm"]


class MeasureFn(Protocol):
    """Serves the workload once.

    Args:
        chosen: The strategy with its knobs.
        rate: Requests per second; None: all at once, or a workload without a rate.
        seed: Of arrivals, lengths and prompts.
        stop_early: End the run once the SLO is certainly missed.
        least_s: Let requests arrive for so long at least, with more of the same traffic where need be.
        glimpse_s: End the run after about so many seconds; only its throughput is looked at.
    """

    def __call__(
        self,
        chosen: Strategy,
        rate: float | None,
        seed: int,
        *,
        stop_early: bool = False,
        least_s: float = 0.0,
        glimpse_s: float | None = None,
    ) -> RunResult: ...


@dataclass(frozen=True, slots=True)
class Miss:
    """Why a rate was not sustained.

    Attributes:
        limit: The limit that was missed by most, such as ``p90_ttft``; or other words.
        limit_s: What it allows, in seconds.
        observed_s: What was measured; None when the run ended as soon as it could only exceed the limit,
            or exceeded it because clients hung up.
        hung_up: Clients that hung up in that run before their first token.
    """

    limit: str
    limit_s: float | None = None
    observed_s: float | None = None
    rate_per_s: float | None = None
    hung_up: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialFacts:
    """One configuration that was measured, in plain JSON types.

    Attributes:
        number: The trial's in its Optuna study; random trials are a study of their own.
        capacity: Requests per second inside the SLO, or output tokens per second for the throughput
            objective; 0 when the SLO cannot be met.
        met: The SLO was met at ``capacity``.
        coarse: The capacity is only a lower bound: the configuration did not reach the best of its strategy.
        objective: What the search maximises: the logarithm of the capacity, pessimistic where there is none.
        margins: Per limit ``log(observed / limit)`` at the capacity, or where even the lowest rate misses;
            clipped to [-1, 1.5].
        binding: What the first run above the capacity missed; None when nothing did.
        missed: The same, with numbers.
        oom: A step did not fit on the device.
        rates: Every rate that was measured and whether it was sustained.
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
    coarse: bool = False
    margins: dict[str, float] = field(default_factory=dict)
    binding: str | None = None
    missed: Miss | None = None
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
        return {**dataclasses.asdict(self), "knobs": self.chosen.shown_knobs}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> TrialFacts:
        values = dict(data)
        values["knobs"] = dict(strategy(values["strategy"], values["knobs"]).knobs)
        values["rates"] = tuple((float(rate), bool(met)) for rate, met in values.get("rates", ()))
        values["confirmed"] = tuple(values.get("confirmed", ()))
        missed = values.get("missed")
        values["missed"] = None if missed is None else Miss(**missed)
        return cls(**values)


@dataclass(frozen=True, slots=True)
class FeatureGain:
    """What a feature that was searched is worth: the same settings with it and without.

    Attributes:
        kept: The winner has it.
        with_it: Confirmed on as many fresh seeds as ``without``, the same ones; maybe on none.
        without: With no feature of its group.
        ratio: Capacity with it over capacity without it, on those fresh seeds, or in the search if there are
            none; 0 where nothing keeps the SLO with it, None where nothing does without it.
        interval: 90 % interval of ``ratio``; None with fewer than two seeds.
    """

    feature: str
    kept: bool
    with_it: TrialFacts
    without: TrialFacts
    ratio: float | None
    interval: tuple[float, float] | None = None

    @property
    def confirmed(self) -> bool:
        """On fresh seeds."""
        return bool(self.without.confirmed)


@dataclass(frozen=True, slots=True)
class TableRow:
    """The best configuration of one strategy that was asked for, with the features that the search gave it.

    Attributes:
        result: The run at its capacity, from the confirmation if there was one; at another rate if it met
            the SLO nowhere, and perhaps a run that was stopped as soon as it had missed. Records are
            missing on what an earlier session measured and on a stopped run; None when out of memory.
        missed: What kept more load out.
    """

    facts: TrialFacts
    result: RunResult | None
    missed: Miss | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepEvent:
    """Progress, for whoever shows it.

    Attributes:
        trial: Number of the step in its phase, from 1.
        total: Steps of the phase at most.
        chosen: The strategy with its knobs that is measured, or was.
        best: The best trial so far.
        left_s: Until the time is up; without a limit estimated from the steps so far, None before any.
        done: The finished trial's facts; None when the event announces work.
        error: Why a trial failed, one line.
    """

    phase: Phase
    trial: int
    total: int | None
    chosen: Strategy
    best: TrialFacts | None
    elapsed_s: float
    left_s: float | None
    done: TrialFacts | None = None
    error: str | None = None

    @property
    def label(self) -> str:
        return self.chosen.label


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepOutcome:
    """What a sweep found.

    Attributes:
        trials: All that were measured, earlier sessions included; repeats of a configuration left out.
        best: The best of each strategy that was asked for, best first; random trials left out.
        winner: Highest confirmed capacity, of an earlier session, too; unconfirmed where there was no time to
            confirm any; None when nothing is feasible.
        gain: Winner over best default, as a ratio of confirmed capacities.
        gain_interval: 90 % interval of ``gain`` from the repeats; None with fewer than two, or when the
            best default is the winner.
        binding: What the winner misses first above its capacity; of the best trial when there is no winner.
        best_random: Best of the random baseline; None without one.
        random_gain: Winner over best of the random baseline, both confirmed; None when one of them is not.
        elapsed_s: Of this session.
        foreign_cpu_share: The largest share of the processor that other programs took during a run of
            this session; None when it could not be told.
        features: What each feature is worth that was searched for the winner's strategy, as far as it was
            measured both with it and without.
        kept: The highest rate at which a run kept the SLO, and the configuration that did, of a trial that
            was not finished, too.
    """

    trials: list[TrialFacts]
    best: list[TableRow]
    winner: TrialFacts | None
    best_default: TrialFacts | None
    gain: float | None
    gain_interval: tuple[float, float] | None
    binding: Miss | None
    best_random: TrialFacts | None
    random_gain: float | None
    interrupted: bool
    elapsed_s: float
    foreign_cpu_share: float | None
    features: list[FeatureGain] = field(default_factory=list)
    kept: tuple[Strategy, float] | None = None
