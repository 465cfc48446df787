"""Measures one configuration: its capacity, its margins, and what binds it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.metrics import Metrics, to_vllm_keys
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import find_capacity, is_met
from tunebatch.tune.facts import MeasureFn, Objective, Origin, TrialFacts

__all__ = ["Measured", "binding_limit", "facts_of", "margins", "measure_config", "out_of_memory", "summary"]

_LEAST_MARGIN, _MOST_MARGIN = -1.0, 1.5
_MISSED = 0.01  # the least margin of a run that missed, so that it cannot pass for feasible


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration's measurement.

    Attributes:
        value: Capacity (requests/s) or saturated output throughput (tokens/s); 0 when the SLO is missed.
        objective: Logarithm of the value, or of an upper bound of it when it is 0.
        result: The run that shows the value; None when there is none.
        failing: The first run above it that missed; None when none did.
        resolution: ``log(failing rate / passing rate)``; 0 for a throughput.
    """

    value: float
    objective: float
    result: RunResult | None
    failing: RunResult | None
    rates: tuple[tuple[float, bool], ...] = ()
    resolution: float = 0.0


def measure_config(
    measure: MeasureFn,
    chosen: Strategy,
    *,
    objective: Objective,
    rate: float | None,
    seed: int,
    tolerance: float,
    max_runs: int,
    first_step: float = 2.0,
) -> Measured:
    """Measures a configuration.

    Args:
        rate: Where the search for the capacity begins; for the throughput objective the offered rate at
            which the SLO is judged, or None to judge the saturated run itself.

    Raises:
        NotEnoughEvidenceError: Too few requests for the SLO.
        OutOfDeviceMemoryError: A step did not fit.
    """
    if objective == "throughput":
        return _throughput(measure, chosen, rate, seed)
    if rate is None:
        raise ValueError("the capacity objective needs a rate to start from")
    found = find_capacity(
        lambda at: measure(chosen, at, seed, True),
        start_rate=rate,
        tolerance=tolerance,
        max_runs=max_runs,
        first_step=first_step,
    )
    lowest_miss = min((at for at, met in found.runs if not met), default=None)
    value = found.rate_per_s
    resolution = math.log(lowest_miss / value) if value and lowest_miss else 0.0
    # Nothing passed: the capacity is below the lowest rate tried, which half of it stands for.
    bound = value or (lowest_miss or rate) / 2.0
    return Measured(value, math.log(bound), found.passing, found.failing, found.runs, resolution)


def _throughput(measure: MeasureFn, chosen: Strategy, rate: float | None, seed: int) -> Measured:
    saturated = measure(chosen, None, seed, False)
    value = saturated.metrics.output_throughput
    judged = saturated if rate is None else measure(chosen, rate, seed, False)
    met = judged.verdict is None or is_met(judged)
    rates = () if rate is None else ((rate, met),)
    objective = math.log(max(value, 1e-9))
    if not met:
        return Measured(0.0, objective, None, judged, rates)
    return Measured(value, objective, saturated if rate is None else judged, None, rates)


def facts_of(measured: Measured, number: int, origin: Origin, chosen: Strategy) -> TrialFacts:
    """A measurement as the journal keeps it."""
    shown = measured.result or measured.failing
    met = measured.value > 0.0
    return TrialFacts(
        number=number,
        origin=origin,
        strategy=chosen.name,
        knobs=dict(chosen.knobs),
        capacity=measured.value,
        met=met,
        objective=measured.objective,
        margins=margins(shown, met) if shown else {},
        binding=binding_limit(measured.failing) if measured.failing else None,
        rates=measured.rates,
        summary=summary(shown.metrics) if shown else {},
    )


def out_of_memory(
    number: int, origin: Origin, chosen: Strategy, objective: float, error: OutOfDeviceMemoryError
) -> TrialFacts:
    """A configuration that the device has no room for, and in which step: infeasible, not an error."""
    return TrialFacts(
        number=number,
        origin=origin,
        strategy=chosen.name,
        knobs=dict(chosen.knobs),
        capacity=0.0,
        met=False,
        objective=objective,
        binding=str(error).removeprefix("out of ") or "device memory",
        oom=True,
    )


def margins(result: RunResult, met: bool) -> dict[str, float]:
    """Per limit ``log(observed / limit)``, clipped to [-1, 1.5]; at most 0 everywhere only if met.

    A limit without evidence, in a run that was stopped as a certain miss, counts as missed.
    """
    if result.verdict is None:
        return {}
    values = {}
    for limit in result.verdict.limits:
        margin = limit.margin
        if margin is None:
            margin = _LEAST_MARGIN if met else _MISSED
        values[limit.limit.name] = min(max(margin, _LEAST_MARGIN), _MOST_MARGIN)
    if not met and values and max(values.values()) <= 0.0:
        values[max(values, key=lambda name: values[name])] = _MISSED
    return values


def binding_limit(result: RunResult) -> str:
    """Which limit a run missed by most; the one without evidence when a stopped run shows no other."""
    verdict = result.verdict
    if verdict is None:
        return "no SLO"
    missed = [limit for limit in verdict.limits if limit.status == "miss"]
    if missed:
        return max(missed, key=lambda limit: limit.margin or 0.0).limit.name
    lacking = [limit.limit.name for limit in verdict.limits if limit.status == "not enough evidence"]
    return " or ".join(lacking) or "requests rejected or left unfinished"


def summary(metrics: Metrics) -> dict[str, float | None]:
    """A run in one flat dict of finite numbers, for the journal."""
    values: dict[str, float | None] = {
        **to_vllm_keys(metrics),
        "bubble": metrics.bubble,
        "mean_batch": metrics.mean_batch,
        "mean_kv_use": metrics.mean_kv_use,
        "peak_kv_use": metrics.peak_kv_use,
        "num_preemptions": metrics.num_preemptions,
        "acceptance": metrics.acceptance,
    }
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
