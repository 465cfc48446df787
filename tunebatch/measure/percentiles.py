"""Percentiles, how many samples they need, and intervals for them and for means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]


def percentile(values: ArrayLike, q: float) -> float:
    """The value at quantile ``q`` (0 to 1), interpolated linearly between order statistics.

    The definition is numpy's default one: position ``(n - 1) q`` in the sorted values.

    Raises:
        ValueError: No values, or ``q`` outside 0 to 1.
    """
    return percentile_of_sorted(np.sort(np.asarray(values, dtype=np.float64)), q)


def percentile_of_sorted(values: FloatArray, q: float) -> float:
    """As ``percentile``, for values that are already in ascending order."""
    if not 0.0 <= q <= 1.0:
        raise ValueError(f"quantile {q} is not between 0 and 1")
    if values.size == 0:
        raise ValueError("no values, so no percentile")
    position = (values.size - 1) * q
    below = math.floor(position)
    above = min(below + 1, values.size - 1)
    low, high = float(values[below]), float(values[above])
    # At least x[below] whatever the rounding: an early stop relies on it.
    return low + (high - low) * (position - below)


@lru_cache(maxsize=64)
def samples_needed(q: float, confidence: float = 0.99) -> int:
    """How many independent samples a reported quantile ``q`` (0 to 1, exclusive) needs.

    The smallest n at which the *second* largest of n values lies above the true quantile with
    the given confidence, that is, at most ``1 - confidence`` probability that fewer than two
    values exceed it: ``q^n + n (1 - q) q^(n - 1) <= 1 - confidence``. So the estimate never rests
    on the extreme value alone. Below the median the same holds from the other end.

    At 99 %: p50 11, p90 64, p95 130, p99 662; the floors of MLPerf's early stopping
    (``loadgen/early_stopping.cc``; mlcommons/endpoints pull request 417).
    """
    if not (0.0 < q < 1.0 and 0.0 < confidence < 1.0):
        raise ValueError(f"quantile {q} and confidence {confidence} must lie strictly between 0 and 1")
    q = max(q, 1.0 - q)

    def enough(n: int) -> bool:
        return q**n + n * (1.0 - q) * q ** (n - 1) <= 1.0 - confidence

    high = 1
    while not enough(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def interval(values: ArrayLike, q: float, confidence: float = 0.99) -> tuple[float, float] | None:
    """Two-sided, distribution-free bounds of the true quantile ``q``, or None with too few values.

    Order statistics with equal tails (David and Nagaraja, *Order Statistics*, section 7.1). The
    values must be independent: right for runs, and for requests only where none waits for another.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    n = ordered.size
    if n == 0 or not 0.0 < q < 1.0:
        return None
    tail = (1.0 - confidence) / 2.0
    mass = _binomial(n, q)
    lower_rank = int(np.searchsorted(np.cumsum(mass), tail, side="right"))
    upper_rank = n + 1 - int(np.searchsorted(np.cumsum(mass[::-1]), tail, side="right"))
    if lower_rank < 1 or upper_rank > n:
        return None
    return float(ordered[lower_rank - 1]), float(ordered[upper_rank - 1])


def _binomial(n: int, p: float) -> FloatArray:
    """Probabilities of 0 to n successes; logarithms, so that large n do not underflow."""
    log_factorial = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1, n + 1, dtype=np.float64)))))
    k = np.arange(n + 1, dtype=np.float64)
    log_choose = log_factorial[n] - log_factorial - log_factorial[::-1]
    return np.asarray(np.exp(log_choose + k * math.log(p) + (n - k) * math.log1p(-p)), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its confidence interval.

    Attributes:
        std_error: Standard error of the mean, in the unit of the values.
        num_groups: Batches or repeats that it rests on.
    """

    mean: float
    lower: float
    upper: float
    std_error: float
    num_groups: int


def batch_means(values: ArrayLike, num_batches: int = 20, confidence: float = 0.95) -> Estimate | None:
    """Interval for the mean of correlated values, given in time order.

    Consecutive values are cut into equal batches (a remainder at the front is left out, where
    warm-up would be); batch means are nearly independent when a batch is longer than the
    correlation, and a t interval of them is honest where one of the single values is not. 10 to 30
    batches serve well: B. Schmeiser, "Batch size effects in the analysis of simulation output",
    Operations Research 30 (1982). None with fewer than two values per batch.
    """
    series = np.asarray(values, dtype=np.float64)
    if num_batches < 2:
        raise ValueError(f"num_batches is {num_batches}, must be at least 2")
    size = series.size // num_batches
    if size < 2:
        return None
    means = series[series.size - size * num_batches :].reshape(num_batches, size).mean(axis=1)
    return _t_interval(means, confidence)


def combine_repeats(repeats: Sequence[Estimate | float], confidence: float = 0.95) -> Estimate | None:
    """One interval from several runs of the same configuration.

    The run is the unit: the spread between runs already holds what varies within one (method of
    replications; Law, *Simulation Modeling and Analysis*, chapter 9). Two or three runs can agree
    by luck, so the interval is never narrower than the runs' own batch means allow. A single run
    keeps its own interval; None when nothing at all says how far it may be off.
    """
    if not repeats:
        return None
    within = [repeat for repeat in repeats if isinstance(repeat, Estimate)]
    if len(repeats) == 1:
        return within[0] if within else None
    means = np.array([r.mean if isinstance(r, Estimate) else r for r in repeats], dtype=np.float64)
    between = _t_interval(means, confidence)
    if len(within) < len(repeats):
        return between
    half_widths = np.array([(estimate.upper - estimate.lower) / 2.0 for estimate in within])
    half = max((between.upper - between.lower) / 2.0, float(np.sqrt((half_widths**2).sum())) / len(within))
    own_error = math.sqrt(sum(estimate.std_error**2 for estimate in within)) / len(within)
    error = max(between.std_error, own_error)
    return Estimate(between.mean, between.mean - half, between.mean + half, error, len(repeats))


def _t_interval(means: FloatArray, confidence: float) -> Estimate:
    mean = float(means.mean())
    error = float(means.std(ddof=1)) / math.sqrt(means.size)
    half = _t_quantile(0.5 + confidence / 2.0, means.size - 1) * error
    return Estimate(mean, mean - half, mean + half, error, means.size)


@lru_cache(maxsize=64)
def _t_quantile(p: float, degrees: int) -> float:
    # scipy.special alone loads several times faster than scipy.stats.
    from scipy.special import stdtrit

    quantile: Any = stdtrit(degrees, p)
    return float(quantile)
