"""How far below a confirmed capacity a rate has to stay, so that other traffic of the kind keeps the SLO.

A capacity is where the SLO is just kept, on the traffic that was measured: its statistics lie nearer to their
limits than they are known, and about every second seed would break one. Design rule: report the margin, do
not leave it to the reader.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from tunebatch.measure.limits import QUANTILES
from tunebatch.measure.percentiles import combine_repeats
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import LimitVerdict

__all__ = ["CONFIDENCE", "Unsure", "safe_rate", "unsure_limits"]

CONFIDENCE = 0.95
_LEAST_SEEDS = 3  # two say next to nothing of their spread: t is 6.3


@dataclass(frozen=True, slots=True)
class Unsure:
    """A limit that was kept by less than its statistic is known to; see ``percentile_interval``.

    Attributes:
        lower_s: Bounds of the statistic; None where the run is too short for any.
    """

    judged: LimitVerdict
    lower_s: float | None
    upper_s: float | None


def safe_rate(confirmed: Sequence[float]) -> float | None:
    """The rate that another seed sustains with 95 % confidence, in the unit of the capacities.

    The lower one-sided prediction bound for one more value (Hahn and Meeker, *Statistical Intervals*, 1991,
    section 4.8), on logarithms, and never more than the least that was confirmed.

    Args:
        confirmed: Capacities on fresh seeds.

    Returns:
        None with fewer than three, or when one of them is 0.
    """
    if len(confirmed) < _LEAST_SEEDS or min(confirmed) <= 0.0:
        return None
    # Twice the error probability, two-sided, is once of it at the lower side.
    told = combine_repeats([math.log(value) for value in confirmed], 2.0 * CONFIDENCE - 1.0)
    if told is None:
        return None
    half = (told.mean - told.lower) * math.sqrt(len(confirmed) + 1.0)
    return min(math.exp(told.mean - half), *confirmed)


def unsure_limits(result: RunResult) -> list[Unsure]:
    """The limits that a run kept, and might not have: of those without bounds the one with the least room."""
    verdict = result.verdict
    if verdict is None:
        return []
    found = []
    for judged in verdict.limits:
        limit = judged.limit
        told = result.metrics.distribution(limit.metric).statistic(limit.statistic)
        near = judged == verdict.binding if told.upper_s is None else told.upper_s > limit.limit_s
        if judged.status == "pass" and limit.statistic in QUANTILES and near:
            found.append(Unsure(judged, told.lower_s, told.upper_s))
    return found
