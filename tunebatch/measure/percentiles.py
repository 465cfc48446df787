"""Percentiles, how many samples they need, and intervals for them and for means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tunebatch.measure.student import t_quantile

FloatArray = NDArray[np.float64]

_BATCHES = 10  # of a run: as few as serve well, so that each is long beside what a queue remembers


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


def percentile_interval(
    series: ArrayLike, q: float, independent: int | None = None, confidence: float = 0.95
) -> tuple[float, float] | None:
    """Bounds of the true quantile ``q`` of correlated values, given in time order.

    Whether a value is at most the estimate is a 0 or 1 whose mean is ``q``: batch means of these tell how far
    that share may be off, and the sorted values at both ends of the share's interval are the bounds (the
    indirect method: A. Seila, "A batching approach to quantile estimation in regenerative simulations",
    Management Science 28 (1982); P. Heidelberger and P. Lewis, "Quantile estimation in dependent sequences",
    Operations Research 32 (1984)). Batches can agree by luck, so the share is never taken to be surer than
    that many independent values would make it.

    Args:
        independent: Values that may count as such; by default all.

    Returns:
        None with fewer than two values a batch, or where the share's interval reaches past the values.
    """
    values = np.asarray(series, dtype=np.float64)
    count = values.size if independent is None else independent
    if count < 2 * _BATCHES:
        return None
    ordered = np.sort(values)
    shares = batch_means(values <= percentile_of_sorted(ordered, q), _BATCHES, confidence)
    if shares is None:
        return None
    error = max(shares.std_error, math.sqrt(q * (1.0 - q) / count))
    half = t_quantile(0.5 + confidence / 2.0, _BATCHES - 1) * error
    if q - half < 0.0 or q + half > 1.0:
        return None
    return percentile_of_sorted(ordered, q - half), percentile_of_sorted(ordered, q + half)


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


def combine_repeats(repeats: Sequence[float], confidence: float = 0.95) -> Estimate | None:
    """One interval from several runs of the same configuration; None with fewer than two.

    The run is the unit: the spread between runs already holds what varies within one (method of
    replications; Law, *Simulation Modeling and Analysis*, chapter 9).
    """
    if len(repeats) < 2:
        return None
    return _t_interval(np.asarray(repeats, dtype=np.float64), confidence)


def _t_interval(means: FloatArray, confidence: float) -> Estimate:
    mean = float(means.mean())
    error = float(means.std(ddof=1)) / math.sqrt(means.size)
    half = t_quantile(0.5 + confidence / 2.0, means.size - 1) * error
    return Estimate(mean, mean - half, mean + half, error, means.size)
