"""Student's t, for intervals of means: the few lines that are needed of it, exact, without scipy."""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=64)
def t_quantile(p: float, degrees: int) -> float:
    """The value below which a share ``p``, from a half to 1, of the distribution lies.

    Of whole degrees of freedom the distribution is a finite sum of powers of cosines (Abramowitz & Stegun,
    *Handbook of Mathematical Functions*, 26.7.3 and 26.7.4), which is inverted by bisection of the angle.

    Raises:
        ValueError: ``p`` is elsewhere, or there is no degree of freedom.
    """
    if not 0.5 <= p < 1.0 or degrees < 1:
        raise ValueError(f"no quantile {p} of Student's t with {degrees} degrees of freedom")
    low, high = 0.0, math.pi / 2.0
    while (middle := (low + high) / 2.0) not in (low, high):
        if _share_within(middle, degrees) < 2.0 * p - 1.0:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _share_within(angle: float, degrees: int) -> float:
    """Of the distribution between ``-t`` and ``t``, of ``t = sqrt(degrees) tan(angle)``."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for power in range(odd, degrees - 1, 2):
        total += term
        term *= cosine * cosine * (power + 1) / (power + 2)
    return 2.0 / math.pi * (angle + sine * total) if odd else sine * total
