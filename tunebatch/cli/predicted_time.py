"""How long a sweep takes at least, predicted from the pace of each strategy."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunebatch.cli.session import Session
    from tunebatch.profile_sections import SearchSection

# Whole runs that a search amounts to: for a default about five rates, most of which end early because they
# miss; for a candidate of the confirmation about four on each of two seeds. There are more candidates where
# the time is left.
_RUNS_OF_A_DEFAULT, _RUNS_OF_A_CANDIDATE = 3, 6


def runs_at(
    pace: Mapping[str, float], session: Session, search: SearchSection, least_run_s: float
) -> tuple[dict[str, int], dict[str, float]]:
    """How many requests one run of each strategy serves, and the seconds that it takes.

    Args:
        pace: Requests per second of each.
        least_run_s: How long requests arrive in a run that tells a capacity, however few would do.
    """
    # More of the same is drawn for a run that would be too short; a trace is as long as it is.
    drawn = search.objective == "capacity" and session.spec.trace_file is None
    few = len(session.workload().requests)
    served = {name: max(few, math.ceil(rate * least_run_s)) if drawn else few for name, rate in pace.items()}
    return served, {name: served[name] / pace[name] for name in pace}


def least_time_s(run_s: list[float], search: SearchSection) -> float:
    """Seconds for all defaults and the confirmation of a few."""
    from tunebatch.tune.confirm import LEAST_FINALISTS

    confirm = min(search.confirm, LEAST_FINALISTS)
    if search.objective == "throughput":
        return sum(run_s) + 2 * confirm * min(run_s)
    return _RUNS_OF_A_DEFAULT * sum(run_s) + _RUNS_OF_A_CANDIDATE * confirm * min(run_s)


def about(seconds: float) -> str:
    """``42 s``, ``12 min`` or ``1.5 h``"""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def time_flag(least_s: float) -> str:
    """A ``--time`` with room to spare."""
    return f"--time {max(1, round(1.5 * least_s / 60))}m"


def too_short(least_s: float, time_s: float, spare: bool) -> str:
    """What to give when the time is too short, or nothing.

    Args:
        spare: With fewer requests a run would be shorter, and the percentiles could still be told.
    """
    if least_s <= time_s:
        return ""
    fewer = ", or fewer --requests" if spare else ""
    return f", more than there is: give {time_flag(least_s)}{fewer}"
