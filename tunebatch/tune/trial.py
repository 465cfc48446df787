"""Measures one configuration: its capacity, its margins, and what binds it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.metrics import Metrics, to_vllm_keys
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import find_capacity, is_sustained
from tunebatch.tune.facts import MeasureFn, Miss, Origin, TrialFacts

__all__ = [
    "Measured",
    "facts_of",
    "margins",
    "measure_capacity",
    "measure_throughput",
    "miss_of",
    "out_of_memory",
    "summary",
]

_LEAST_MARGIN, _MOST_MARGIN = -1.0, 1.5
_MISSED = 0.01  # the least margin of a run that missed, so that it cannot pass for feasible
GROWING, HUNG_UP = "queue growth", "clients hung up"


@dataclass(frozen=True, slots=True)
class Measured:
    """One configuration's measurement.

    Attributes:
        value: Capacity (requests/s) or saturated output throughput (tokens/s); 0 when the SLO is missed.
        objective: Logarithm of the value, or of what stands for it when it is known coarsely or 0.
        result: The run that shows the value; None when there is none.
        failing: The first run above it that missed; None when none did.
        resolution: ``log(failing rate / passing rate)``; 0 for a throughput.
        finished: Not cut short by the budget.
        coarse: Not looked at closely, see ``good_enough``.
    """

    value: float
    objective: float
    result: RunResult | None
    failing: RunResult | None
    rates: tuple[tuple[float, bool], ...] = ()
    resolution: float = 0.0
    finished: bool = True
    coarse: bool = False


def measure_capacity(
    measure_at: Callable[[float], RunResult],
    start_rate: float,
    *,
    step: float,
    tolerance: float,
    good_enough: float = 0.0,
    ceiling: float = math.inf,
    may_go_on: Callable[[float], bool] = lambda rate: True,
) -> Measured:
    """The capacity of a configuration; arguments as of ``find_capacity``, which see."""
    found = find_capacity(
        measure_at,
        start_rate=start_rate,
        step=step,
        tolerance=tolerance,
        good_enough=good_enough,
        ceiling=ceiling,
        may_go_on=may_go_on,
    )
    value = found.rate_per_s
    above = min((rate for rate, met in found.runs if not met and rate > value), default=None)
    if value == 0.0:
        # Below the lowest rate that was tried, which half of it stands for.
        objective = math.log(min(rate for rate, _ in found.runs) / 2.0)
    else:
        objective = math.log(value if above is None else math.sqrt(value * above))
    resolution = math.log(above / value) if value and above else 0.0
    return Measured(
        value, objective, found.passing, found.failing, found.runs, resolution, found.finished, found.coarse
    )


def measure_throughput(
    measure: MeasureFn, chosen: Strategy, offered_rate: float | None, seed: int
) -> Measured:
    """The saturated output throughput.

    Args:
        offered_rate: The rate at which the SLO is judged; None judges the saturated run itself.

    Raises:
        NotEnoughEvidenceError: Too few requests for the SLO.
    """
    saturated = measure(chosen, None, seed)
    value = saturated.metrics.output_throughput
    judged = saturated if offered_rate is None else measure(chosen, offered_rate, seed)
    met = judged.verdict is None or is_sustained(judged)
    rates = () if offered_rate is None else ((offered_rate, met),)
    objective = math.log(max(value, 1e-9))
    if not met:
        return Measured(0.0, objective, None, judged, rates)
    return Measured(value, objective, saturated if offered_rate is None else judged, None, rates)


def facts_of(measured: Measured, number: int, origin: Origin, chosen: Strategy) -> TrialFacts:
    """A measurement as the journal keeps it."""
    shown = measured.result or measured.failing
    met = measured.value > 0.0
    missed = miss_of(measured.failing) if measured.failing is not None else None
    return TrialFacts(
        number=number,
        origin=origin,
        strategy=chosen.name,
        knobs=dict(chosen.knobs),
        capacity=measured.value,
        met=met,
        objective=measured.objective,
        coarse=measured.coarse,
        margins=margins(shown, met) if shown else {},
        binding=missed.limit if missed is not None else None,
        missed=missed,
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

    In a run that was stopped the limit that it certainly missed may have no value, and others no evidence.
    """
    if result.verdict is None:
        return {}
    values = {}
    for limit in result.verdict.limits:
        margin = limit.margin
        if margin is None:
            margin = _MISSED if limit.status == "miss" else _LEAST_MARGIN if met else 0.0
        values[limit.limit.name] = min(max(margin, _LEAST_MARGIN), _MOST_MARGIN)
    if not met and values and max(values.values()) <= 0.0:
        values[max(values, key=lambda name: values[name])] = _MISSED
    return values


def miss_of(result: RunResult) -> Miss:
    """What a run that was not sustained missed: the limit by most, its clients, or that the queue grew."""
    rate, verdict = result.workload.get("rate_per_s"), result.verdict
    hung_up = result.metrics.hung_up
    if verdict is None:
        return Miss("no SLO", None, None, rate)
    missed = [limit for limit in verdict.limits if limit.status == "miss"]
    if missed:
        worst = max(missed, key=lambda limit: limit.margin or 0.0)
        return Miss(worst.limit.name, worst.limit.limit_s, worst.observed_s, rate, hung_up)
    if result.metrics.rejected or result.metrics.unfinished:
        return Miss("requests rejected or left unfinished", None, None, rate)
    # Evidence that is lacking for another reason has ended the search before.
    if verdict.lost or not verdict.enough:
        return Miss(HUNG_UP, None, None, rate, hung_up)
    return Miss(GROWING, None, None, rate)


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
        "hit_rate": metrics.hit_rate,
        "saved_prefill_tokens": metrics.saved_prefill_tokens,
    }
    return {
        name: value if value is not None and math.isfinite(value) else None for name, value in values.items()
    }
