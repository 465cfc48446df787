"""Distributions of how long prompts and outputs are, in tokens."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]

# Standard normal quantile of 0.9: a log-normal's p90 is p50 * exp(Z90 * sigma).
Z90 = 1.2815515655446004
# Beyond any context; keeps the tail of a very wide law inside an int64.
LONGEST = 2**40
# Lengths of which each takes its own slice of the law.
STRATA = 32


class LengthLaw(Protocol):
    """A distribution of token counts. ``str(law)`` is one short line."""

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        """n token counts, each at least 1, of which every 32 span the law; see `evenly`."""

    def scaled(self, factor: float) -> LengthLaw:
        """The same law with every length multiplied, never below 1."""


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same length."""

    length: int

    def __post_init__(self) -> None:
        _check_length("length", self.length)

    def __str__(self) -> str:
        return str(self.length)

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        return np.full(n, self.length, np.int64)

    def scaled(self, factor: float) -> Fixed:
        return Fixed(_scale(self.length, factor))


@dataclass(frozen=True, slots=True)
class Uniform:
    """Any whole length from low to high, both included, equally likely."""

    low: int
    high: int

    def __post_init__(self) -> None:
        _ordered(self.low, self.high)

    def __str__(self) -> str:
        return f"uniform:{self.low}-{self.high}"

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        return self.low + (evenly(n, rng) * (self.high - self.low + 1)).astype(np.int64)

    def scaled(self, factor: float) -> Uniform:
        return Uniform(_scale(self.low, factor), _scale(self.high, factor))


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Log-normal around a median, rounded to whole tokens.

    Samples outside the bounds are moved to the bound, not drawn again: percentiles inside the
    bounds stay where they were asked for.

    Attributes:
        p50: Median, tokens.
        sigma: Standard deviation of the logarithm; 0 is a fixed length.
        low: Shortest length.
        high: Longest length, or None.
    """

    p50: float
    sigma: float
    low: int = 1
    high: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.p50) and self.p50 > 0):
            raise ValueError(f"p50 is {self.p50}, must be above 0")
        if not (math.isfinite(self.sigma) and self.sigma >= 0):
            raise ValueError(f"sigma is {self.sigma}, must be 0 or more")
        _ordered(self.low, LONGEST if self.high is None else self.high)

    @classmethod
    def fit(cls, p50: float, p90: float, low: int = 1, high: int | None = None) -> LogNormal:
        """The law with these two percentiles.

        Raises:
            ValueError: p50 is not positive, or p90 is below it.
        """
        if not 0 < p50 <= p90 < math.inf:
            raise ValueError(f"p50 is {p50:g} and p90 is {p90:g}, must be 0 < p50 <= p90")
        return cls(p50, math.log(p90 / p50) / Z90, low, high)

    @property
    def p90(self) -> float:
        return self.p50 * math.exp(Z90 * self.sigma)

    def __str__(self) -> str:
        high = "" if self.high is None else f",high={self.high}"
        low = "" if self.low == 1 else f",low={self.low}"
        return f"lognormal:p50={self.p50!r},sigma={self.sigma!r}{low}{high}"

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        # Clipped as a logarithm, so that no sigma overflows.
        normal = np.fromiter(map(NormalDist().inv_cdf, evenly(n, rng)), np.float64, n)
        log_length = math.log(self.p50) + self.sigma * normal
        rounded = np.rint(np.exp(np.minimum(log_length, math.log(LONGEST)))).astype(np.int64)
        return np.clip(rounded, self.low, LONGEST if self.high is None else self.high)

    def scaled(self, factor: float) -> LogNormal:
        high = None if self.high is None else _scale(self.high, factor)
        return LogNormal(self.p50 * factor, self.sigma, _scale(self.low, factor), high)


@dataclass(frozen=True, slots=True)
class Empirical:
    """Drawn from observed lengths, some more than once.

    Attributes:
        values: Lengths in tokens.
        weights: How often each occurs, in any unit; None: equally often.
    """

    values: tuple[int, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.values:
            raise ValueError("an empirical law needs at least one length")
        _check_length("shortest length", min(self.values))
        _check_length("longest length", max(self.values))
        if self.weights is None:
            return
        if len(self.weights) != len(self.values):
            raise ValueError(f"{len(self.weights)} weights for {len(self.values)} lengths")
        if min(self.weights) < 0 or not 0 < sum(self.weights) < math.inf:
            raise ValueError("weights must be 0 or more, and one of them above 0")

    def __str__(self) -> str:
        return f"empirical, {len(self.values)} values from {min(self.values)} to {max(self.values)}"

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        # Ascending, so that what spans the numbers from 0 to 1 spans the lengths.
        order = np.argsort(self.values, kind="stable")
        weights = np.ones(len(order)) if self.weights is None else np.asarray(self.weights)[order]
        # Of the last the sum, by rounding, may be below 1; and what has no weight is never drawn.
        ends = np.cumsum(weights) / weights.sum()
        last = int(np.flatnonzero(weights)[-1])
        places = np.minimum(np.searchsorted(ends, evenly(n, rng), side="right"), last)
        return np.asarray(self.values, np.int64)[order][places]

    def scaled(self, factor: float) -> Empirical:
        return Empirical(tuple(_scale(value, factor) for value in self.values), self.weights)


@dataclass(frozen=True, slots=True)
class Interleaved:
    """One law, but for every so many-th length, which follows another."""

    usual: LengthLaw
    rare: LengthLaw
    every: int

    def __post_init__(self) -> None:
        if self.every < 2:
            raise ValueError(f"every is {self.every}, must be at least 2")

    def __str__(self) -> str:
        return f"{self.usual}, one of {self.every} {self.rare}"

    def sample(self, n: int, rng: np.random.Generator) -> Lengths:
        usual_rng, rare_rng = rng.spawn(2)
        lengths = self.usual.sample(n, usual_rng)
        rare = slice(self.every - 1, None, self.every)
        lengths[rare] = self.rare.sample(n // self.every, rare_rng)
        return lengths

    def scaled(self, factor: float) -> Interleaved:
        return Interleaved(self.usual.scaled(factor), self.rare.scaled(factor), self.every)


def evenly(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """n numbers between 0 and 1, uniform, of which every 32 in a row have one in each 32nd.

    Runs of unlike numbers of requests, or of unlike seeds, then bring nearly the same work a request; drawn
    independently, 70 requests with log-normal lengths differ by a tenth and more, which would be taken for a
    difference of what serves them. (Stratified sampling; Cochran, Sampling Techniques, 1977.)
    """
    # Block by block, so that more numbers begin with the same ones.
    order, within = rng.random((-(-n // STRATA), 2, STRATA)).swapaxes(0, 1)
    drawn: NDArray[np.float64] = ((order.argsort(1) + within) / STRATA).ravel()[:n]
    # Neither 0 nor, by rounding, 1: a normal distribution has no quantile there.
    return drawn.clip(2.0**-53, 1 - 2.0**-53)


def _check_length(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} is {value}, must be at least 1")
    if value > LONGEST:
        raise ValueError(f"{name} is {value}, must be at most {LONGEST}")


def _ordered(low: int, high: int) -> None:
    _check_length("low", low)
    _check_length("high", high)
    if high < low:
        raise ValueError(f"low is {low} and high is {high}, must be low <= high")


def _scale(length: int, factor: float) -> int:
    return max(1, round(length * factor))
