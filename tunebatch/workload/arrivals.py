"""When requests arrive: float64 arrays of n ascending times in seconds.

Every process is drawn at one request a second and then divided by the rate, so that one seed gives
the same arrivals at every rate, only closer together.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

# Beyond these all gaps of a run are 0 to a float, or all are equal.
LEAST_BURSTINESS, MOST_BURSTINESS = 1e-3, 1e6


def poisson(n: int, rate_per_s: float, rng: np.random.Generator) -> Times:
    """Independent users: exponential gaps of mean ``1 / rate_per_s``, before the first arrival too.

    Raises:
        ValueError: n is negative, or the rate is not positive and finite.
    """
    _check(n, rate_per_s=rate_per_s)
    return np.cumsum(rng.standard_exponential(n)) / rate_per_s


def gamma(n: int, rate_per_s: float, burstiness: float, rng: np.random.Generator) -> Times:
    """Gamma gaps whose shape is the burstiness, as in ``vllm bench serve --burstiness``.

    The coefficient of variation of the gaps is ``burstiness ** -0.5``: 1 has that of Poisson, less
    is burstier, more is smoother.

    Raises:
        ValueError: n is negative, the rate is not positive and finite, or the burstiness is beyond what
            floats can tell.
    """
    _check(n, rate_per_s=rate_per_s)
    check_burstiness(burstiness)
    return np.cumsum(rng.standard_gamma(burstiness, n) / burstiness) / rate_per_s


def constant(n: int, rate_per_s: float) -> Times:
    """Evenly spaced, the first at 0.

    Raises:
        ValueError: n is negative, or the rate is not positive and finite.
    """
    _check(n, rate_per_s=rate_per_s)
    return np.arange(n, dtype=np.float64) / rate_per_s


def burst(n: int, size: int, gap_s: float) -> Times:
    """Groups of ``size`` that arrive at once, ``gap_s`` apart, the first at 0; the last may be smaller.

    One burst of n is the saturated, offline case.

    Raises:
        ValueError: n is negative, the size is below 1, or the gap is negative or not finite.
    """
    _check(n)
    if size < 1:
        raise ValueError(f"burst size is {size}, must be at least 1")
    if not (np.isfinite(gap_s) and gap_s >= 0):
        raise ValueError(f"burst gap is {gap_s} s, must be 0 or more")
    return (np.arange(n) // size).astype(np.float64) * gap_s


def check_burstiness(burstiness: float) -> None:
    """Refuses one for which there are no gaps to draw, and names the nearest for which there are.

    Raises:
        ValueError: See there.
    """
    if not LEAST_BURSTINESS <= burstiness <= MOST_BURSTINESS:
        valid = MOST_BURSTINESS if burstiness > MOST_BURSTINESS else LEAST_BURSTINESS
        raise ValueError(f"burstiness is {burstiness}; the nearest valid value is {valid:g}")


def _check(n: int, **positive: float) -> None:
    if n < 0:
        raise ValueError(f"number of arrivals is {n}, must be 0 or more")
    for name, value in positive.items():
        if not (np.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}, must be above 0")
