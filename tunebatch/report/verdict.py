"""Whether one run kept its SLO, in one line that names every limit."""

from __future__ import annotations

from tunebatch.measure.limits import format_duration
from tunebatch.measure.slo import LimitVerdict, SloVerdict
from tunebatch.report.rows import duration, lacking

_TOLD = {"miss": "missed", "not enough evidence": "not told", "pass": "kept"}


def is_missed(verdict: SloVerdict) -> bool:
    """A limit, or by requests that were lost; what lacks samples is not missed yet."""
    return verdict.lost > 0 or any(one.status == "miss" for one in verdict.limits)


def slo_line(verdict: SloVerdict) -> str:
    """``SLO missed: missed p90_ttft 612 ms of 400ms; kept p90_tpot 9.10 ms of 20ms``"""
    parts = [
        f"{told} {', '.join(_limit(one) for one in judged)}"
        for status, told in _TOLD.items()
        if (judged := [one for one in verdict.limits if one.status == status])
    ]
    if verdict.lost:
        parts.insert(0, f"{verdict.lost} requests rejected, unfinished or given up by their clients")
    whole = "missed" if is_missed(verdict) else "kept" if verdict.met else "not told"
    return f"SLO {whole}: {'; '.join(parts)}"


def _limit(judged: LimitVerdict) -> str:
    limit = judged.limit
    allowed = format_duration(limit.limit_s)
    if judged.observed_s is not None:
        return f"{limit.name} {duration(judged.observed_s)} of {allowed}"
    if judged.status == "miss":
        return f"{limit.name} over {allowed}"
    return f"{limit.name} {lacking(judged.count, judged.needed)} of {allowed}"
