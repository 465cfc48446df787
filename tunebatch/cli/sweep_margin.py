"""How sure a sweep's winner is of its rate on other traffic, in words."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunebatch.measure.limits import format_duration
from tunebatch.report.rows import duration, number
from tunebatch.tune.margin import CONFIDENCE, Unsure, safe_rate, unsure_limits

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.tune.facts import SweepOutcome


def is_recorded(asked: Profile) -> bool:
    """The traffic is a trace with its own arrivals, which another seed leaves as they are."""
    return asked.workload.trace_file is not None and asked.workload.arrivals in (None, "trace")


def margin_rate(outcome: SweepOutcome, asked: Profile) -> float | None:
    """The rate that other traffic leaves the winner, requests per second; None where nothing tells it."""
    if outcome.winner is None or asked.search.objective != "capacity":
        return None
    return safe_rate(outcome.winner.confirmed)


def margin_lines(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """The rate to plan with, where it is known."""
    safe, winner = margin_rate(outcome, asked), outcome.winner
    if safe is None or winner is None:
        return []
    what = "another run of the trace is" if is_recorded(asked) else "another seed is"
    return [
        f"with a margin: {number(safe)} req/s, at which {what} sustained with {CONFIDENCE:.0%} confidence, "
        f"going by {len(winner.confirmed)}"
    ]


def unsure(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """Limits that the winner may only have kept by luck, where nothing says which rate to plan with."""
    winner = outcome.winner
    if winner is None or margin_rate(outcome, asked) is not None:
        return []
    shown = next((row.result for row in outcome.best if row.facts.config == winner.config), None)
    return [_unsure(one) for one in (unsure_limits(shown) if shown is not None else ())]


def _unsure(one: Unsure) -> str:
    limit = one.judged.limit
    said, most = f"{limit.name} {duration(one.judged.observed_s)}", format_duration(limit.limit_s)
    todo = "plan with less, or give more --time"
    if one.lower_s is None or one.upper_s is None:
        return f"how surely {said} is inside its limit of {most} is not known from so few requests: {todo}"
    bounds = f"[{duration(one.lower_s)}, {duration(one.upper_s)}]"
    return f"{said} {bounds} is nearer to its limit of {most} than it is known: {todo}"
