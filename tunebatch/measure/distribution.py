"""One latency over many samples, told only as far as the samples carry it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from tunebatch.measure.limits import QUANTILES, StatisticName
from tunebatch.measure.percentiles import (
    FloatArray,
    percentile_interval,
    percentile_of_sorted,
    samples_needed,
)


@dataclass(frozen=True, slots=True)
class Percentile:
    """A statistic that is only told when there is enough evidence for it.

    Attributes:
        value_s: Seconds, or None when ``count`` is below ``needed``.
        count: Samples that count as independent.
        lower_s: Bounds of a 95 % interval, see ``percentile_interval``; None without evidence for one.
    """

    value_s: float | None
    count: int
    needed: int
    lower_s: float | None = None
    upper_s: float | None = None


@dataclass(frozen=True, slots=True)
class Distribution:
    """One latency over all requests (or gaps), in seconds; None without a single sample.

    ``std_s`` is the population's, as ``vllm bench serve`` reports it.
    """

    count: int
    mean_s: float | None
    std_s: float | None
    min_s: float | None
    max_s: float | None
    p50: Percentile
    p90: Percentile
    p95: Percentile
    p99: Percentile

    def statistic(self, name: StatisticName) -> Percentile:
        """Any statistic with its evidence; mean and max describe the run itself and need one sample."""
        match name:
            case "mean":
                return Percentile(self.mean_s, self.count, 1)
            case "max":
                return Percentile(self.max_s, self.count, 1)
            case "p50":
                return self.p50
            case "p90":
                return self.p90
            case "p95":
                return self.p95
            case "p99":
                return self.p99


def distribution(values: FloatArray, clusters: int | None = None) -> Distribution:
    """Summarises values in seconds, in time order.

    Args:
        clusters: Groups of values that were made together, where they were. These are then the evidence for
            a percentile: at worst the values of a group are all alike and say no more than one of them
            (L. Kish, *Survey Sampling*, 1965, chapter 5: a design effect as large as the group).
    """
    count = values.size
    independent = count if clusters is None else clusters
    ordered = np.sort(values)

    def at(name: StatisticName) -> Percentile:
        needed = samples_needed(QUANTILES[name])
        if independent < needed:
            return Percentile(None, independent, needed)
        bounds = percentile_interval(values, QUANTILES[name], independent) or (None, None)
        return Percentile(percentile_of_sorted(ordered, QUANTILES[name]), independent, needed, *bounds)

    return Distribution(
        count=count,
        mean_s=float(values.mean()) if count else None,
        std_s=float(values.std()) if count else None,
        min_s=float(ordered[0]) if count else None,
        max_s=float(ordered[-1]) if count else None,
        p50=at("p50"),
        p90=at("p90"),
        p95=at("p95"),
        p99=at("p99"),
    )
