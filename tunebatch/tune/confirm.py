"""Re-measures the best configurations, interleaved, on fresh seeds.

The best of many noisy measurements is partly luck, and sits on the edge of the SLO: it breaks the SLO in
2 to 10 % of searches when nobody looks again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

from tunebatch.measure.percentiles import combine_repeats
from tunebatch.measure.result import RunResult
from tunebatch.tune.facts import Miss, TrialFacts

__all__ = [
    "LEAST_FINALISTS",
    "Confirmation",
    "affordable",
    "best_of_each",
    "finalists",
    "gain_over",
    "mean_capacity",
]

LEAST_FINALISTS = 2
_CONFIDENCE = 0.90
_LUCK = 1.25  # who is further behind does not come first on another seed


@dataclasses.dataclass(frozen=True, slots=True)
class Confirmation:
    """One configuration on one fresh seed.

    Attributes:
        repeat: Which fresh seed, from 0.
        value: Its capacity there; 0 when it misses the SLO.
        resolution: ``log(failing rate / passing rate)`` of the search for it.
        missed: What kept more load out.
        result: The run at the capacity; the one that ``missed`` tells about when there is none.
    """

    repeat: int
    value: float
    resolution: float
    missed: Miss | None = None
    result: RunResult | None = None


def finalists(facts: Sequence[TrialFacts], top: int) -> list[TrialFacts]:
    """Who can win: the best trials, and the best default, which the winner is compared with.

    Args:
        facts: Trials of the search, in any order. Those without a capacity are passed over, and those
            known coarsely: the best of their strategy is no worse.
        top: How many at most, of those who come near the best; the best default comes on top when it is
            not among them.
    """
    ranked = sorted(
        (trial for trial in facts if trial.capacity > 0.0 and not trial.coarse),
        key=lambda trial: -trial.capacity,
    )
    chosen = [trial for trial in ranked[: max(top, 1)] if trial.capacity * _LUCK >= ranked[0].capacity]
    default = next((trial for trial in ranked if trial.origin == "default"), None)
    if default is not None and default not in chosen:
        chosen.append(default)
    return chosen


def affordable(top: int, others: int, repeats: int, took_s: float, left_s: float) -> int:
    """How many finalists there is time for.

    Args:
        top: As many as were asked for.
        others: Configurations to be measured on one seed beside them.
        repeats: Fresh seeds for each.
        took_s: Of the first finalist on the first seed, which is done.
        left_s: Until the time is up; may be infinite.

    Returns:
        From two, without whom there is nothing to choose, to ``top``.
    """
    if not math.isfinite(left_s) or took_s <= 0.0:
        return top
    measured = 1 + (left_s / took_s - others)
    return max(min(LEAST_FINALISTS, top), min(top, int(measured / repeats)))


def best_of_each(facts: Sequence[TrialFacts], base_of: Callable[[str], str]) -> list[TrialFacts]:
    """The best trial of each strategy that was asked for, the best strategy first; without a capacity, the
    most promising.

    Args:
        base_of: See ``Space.base_of``.
    """
    first: dict[str, TrialFacts] = {}
    for trial in sorted(facts, key=lambda trial: (-trial.capacity, trial.oom, -trial.objective)):
        first.setdefault(base_of(trial.strategy), trial)
    return list(first.values())


def mean_capacity(trial: TrialFacts) -> float:
    """The confirmed capacity, the geometric mean over seeds and 0 if any has none; else the search's."""
    if not trial.confirmed:
        return trial.capacity
    if min(trial.confirmed) <= 0.0:
        return 0.0
    return math.exp(sum(math.log(value) for value in trial.confirmed) / len(trial.confirmed))


def gain_over(
    winner: TrialFacts, base: TrialFacts, resolution: float
) -> tuple[float | None, tuple[float, float] | None]:
    """Winner over base as a ratio, with its 90 % interval.

    Student's t on the logarithms of the ratios, paired by seed; never narrower than what the search for a
    capacity resolves.

    Args:
        resolution: ``log(failing rate / passing rate)`` of the coarsest search involved.

    Returns:
        The ratio, None without a capacity to compare with; the interval, None with fewer than two pairs.
    """
    if winner.config == base.config:
        return 1.0, None
    top, bottom = mean_capacity(winner), mean_capacity(base)
    if top <= 0.0 or bottom <= 0.0:
        return None, None
    pairs = list(zip(winner.confirmed, base.confirmed, strict=False))
    told = combine_repeats([math.log(one / other) for one, other in pairs], _CONFIDENCE)
    if told is None:
        return top / bottom, None
    half = max(told.upper - told.mean, resolution)
    return math.exp(told.mean), (math.exp(told.mean - half), math.exp(told.mean + half))
