"""Why it came out so: the limit that binds, and where each strategy's time went."""

from __future__ import annotations

from collections.abc import Sequence

from tunebatch.measure.limits import format_duration
from tunebatch.measure.slo import SloVerdict
from tunebatch.report.rows import Row, duration, percent

_REASONS = {
    "ttft": "requests wait too long before their first token",
    "tpot": "each token takes too long once a request runs",
    "itl": "running requests stall between tokens",
    "e2e": "requests take too long from arrival to last token",
}


def why_lines(rows: Sequence[Row]) -> list[str]:
    """One line per strategy: what binds it and where its requests' time went."""
    lines = []
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        metrics = row.result.metrics
        shares = ", ".join(f"{name} {percent(share)}" for name, share in metrics.where.shares().items())
        line = f"{row.name:<{width}}  {shares}; bubble {percent(metrics.bubble)}"
        if metrics.num_preemptions:
            line += f"; {metrics.num_preemptions} preemptions"
        if binds := binding_text(row.result.verdict):
            line += f"; {binds}"
        lines.append(line)
    return lines


def binding_text(verdict: SloVerdict | None) -> str:
    """The limit with the least room, and how far off it is."""
    if verdict is None:
        return ""
    missing = [one for one in verdict.limits if one.status == "not enough evidence"]
    if missing:
        one = missing[0]
        return f"{one.limit.name} not told: {one.count} samples, {one.needed} needed"
    binding = verdict.binding
    if binding is None:
        return ""
    said = f"{binding.limit.name} {duration(binding.observed_s)} of {format_duration(binding.limit.limit_s)}"
    if binding.status == "miss":
        return f"misses {said}: {_REASONS[binding.limit.metric]}"
    if verdict.lost:
        return f"misses the SLO: {verdict.lost} requests rejected or unfinished"
    return f"bound by {said}"


def samples_problem(slo_needed: Sequence[tuple[str, int]], num_requests: int) -> str | None:
    """Why a workload cannot answer its SLO: too few requests for a percentile; None when it can."""
    short = [(name, needed) for name, needed in slo_needed if needed > num_requests]
    if not short:
        return None
    name, needed = max(short, key=lambda one: one[1])
    return (
        f"{name} needs at least {needed} requests to be told, the workload has {num_requests}; "
        f"use --requests {needed} or a lower percentile"
    )
