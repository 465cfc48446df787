"""Why it came out so: where requests spent their time, what binds, and what the winner did better."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.table import Table

from tunebatch.measure.limits import format_duration
from tunebatch.measure.slo import SloVerdict
from tunebatch.report.rows import Row, duration, number, percent

_REASONS = {
    "ttft": "requests wait too long before their first token",
    "tpot": "each token takes too long once a request runs",
    "itl": "running requests stall between tokens",
    "e2e": "requests take too long from arrival to last token",
}


def why_table(rows: Sequence[Row]) -> Table:
    """Where requests spent their time, which slots were empty, and what binds; a line per strategy."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", no_wrap=True)
    for name in ("queue", "prefill", "decode", "stalled", "empty slots"):
        table.add_column(name, justify="right")
    table.add_column("what binds")
    for row in rows:
        metrics = row.result.metrics
        told = row.beyond or binding_text(row.result.verdict) or "-"
        if metrics.num_preemptions:
            told += f"; {metrics.num_preemptions} preemptions"
        if metrics.saved_prefill_tokens is not None:
            told += f"; {metrics.saved_prefill_tokens:,} prompt tokens not computed"
        shares = [percent(share) for share in metrics.where.shares().values()]
        table.add_row(row.name, *shares, percent(metrics.bubble), told)
    return table


LEGEND = (
    "queue: before the first step; stalled: between tokens, while prompts of others were computed; "
    "empty slots: held, but computing nothing in a step: ended, or waiting behind a prefill"
)


def advantages(winner: Row, rows: Sequence[Row]) -> str | None:
    """What the winner did better than every other strategy, in numbers; None when nothing stands out."""
    others = [row for row in rows if row.strategy != winner.strategy]
    found = []
    for say, value, sign, show in _TRAITS:
        own = value(winner)
        theirs = [(row.strategy, value(row)) for row in others]
        known = [(name, other) for name, other in theirs if other is not None]
        if own is None or not known:
            continue
        worse = [(name, other) for name, other in known if sign * (own - other) > _clear(own, other)]
        if len(worse) == len(known):
            against = ", ".join(f"{name} {show(other)}" for name, other in worse)
            found.append(f"{say.format(show(own))} ({against})")
    return f"{winner.strategy} " + ", ".join(found) if found else None


def _clear(own: float, other: float) -> float:
    """How much of a difference is worth a word: a tenth, or two points of a share."""
    return max(0.1 * max(abs(own), abs(other)), 0.02)


# What is said, of which value, whether more is better (1) or less (-1), and how the value is written.
_TRAITS: tuple[tuple[str, Callable[[Row], float | None], int, Callable[[float], str]], ...] = (
    ("computes {} sequences a step", lambda row: row.result.metrics.mean_batch, 1, number),
    ("leaves {} of its slots empty", lambda row: row.result.metrics.bubble, -1, percent),
    ("keeps requests in the queue for {} of their time", lambda row: _share(row, "queue"), -1, percent),
    ("stalls decodes for {} of it", lambda row: _share(row, "stalled"), -1, percent),
)


def _share(row: Row, part: str) -> float | None:
    return row.result.metrics.where.shares()[part]


def binding_text(verdict: SloVerdict | None) -> str:
    """The limit with the least room, and how far off it is."""
    if verdict is None:
        return ""
    unseen = [one for one in verdict.limits if one.status == "miss" and one.observed_s is None]
    if unseen:
        limit = unseen[0].limit
        return f"misses {limit.name} over {format_duration(limit.limit_s)}: {reason(limit.name)}"
    missing = [one for one in verdict.limits if one.status == "not enough evidence"]
    if missing:
        one = missing[0]
        return f"{one.limit.name} not told: {one.count} samples, {one.needed} needed"
    binding = verdict.binding
    if verdict.lost and (binding is None or binding.status != "miss"):
        return f"misses the SLO: {verdict.lost} requests rejected, unfinished or given up by their clients"
    if binding is None:
        return ""
    said = f"{binding.limit.name} {duration(binding.observed_s)} of {format_duration(binding.limit.limit_s)}"
    if binding.status == "miss":
        return f"misses {said}: {reason(binding.limit.name)}"
    return f"nearest to its limit: {said}"


def hung_up_text(rows: Sequence[Row]) -> str | None:
    """Whose clients hung up, and how many; None when nobody did."""
    told = [
        f"{row.name} {metrics.cancelled} of {metrics.num_requests}"
        + (f" ({metrics.hung_up} before their first token)" if metrics.hung_up else "")
        for row in rows
        if (metrics := row.result.metrics).cancelled
    ]
    return f"clients hung up: {', '.join(told)}" if told else None


def reason(limit: str) -> str:
    """What a limit such as ``p90_ttft`` is missed for, in words; empty for what is no limit."""
    return _REASONS.get(limit.rpartition("_")[2], "")


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
