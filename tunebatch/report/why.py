"""Why it came out so: where requests spent their time, and what binds."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tunebatch.measure.limits import format_duration
from tunebatch.measure.slo import SloVerdict
from tunebatch.report.rows import Row, duration, percent

_REASONS = {
    "ttft": "requests wait too long before their first token",
    "tpot": "each token takes too long once a request runs",
    "itl": "running requests stall between tokens",
    "e2e": "requests take too long from arrival to last token",
}


# A part of the time split, and what its column is called. Those after the first four are shown where they are
# not 0 % for everybody.
_PARTS = {
    "queue": "queue",
    "prefill": "prefill",
    "decode": "decode",
    "stalled": "stalled",
    "stalled_in_mixed": "in mixed (est.)",
    "preempted": "preempted",
    "speculation_waste": "rejected drafts",
}
_ALWAYS = tuple(_PARTS)[:4]
_SHOWN = 0.005  # which is 1 %, rounded
_ROOM_TO_TELL = 35  # cells for what binds
_ENDLESS = 1000  # cells, in which nothing wraps
_MEANINGS = {
    "queue": "queue: before the first step",
    "stalled": "stalled: between tokens, while prompts of others were computed",
    "stalled_in_mixed": (
        "in mixed (est.): the same in steps that made a token too, by how much these were longer than the "
        "median step that only decodes as many"
    ),
    "preempted": "preempted: from losing the KV blocks until all was computed again",
    "speculation_waste": "rejected drafts: their share of the steps that verified them",
}
_EMPTY = "empty slots: held, but computing nothing in a step: ended, or waiting behind a prefill"


def why_tables(rows: Sequence[Row], console: Console) -> list[Table]:
    """Where requests spent their time, which slots were empty, and what binds; a line per strategy.

    What binds has a table of its own where the numbers leave it too little room.
    """
    shares = [row.result.metrics.where.shares() for row in rows]
    numbers = {_PARTS[part]: [percent(one[part]) for one in shares] for part in _shown_parts(rows)}
    numbers["empty slots"] = [percent(row.result.metrics.bubble) for row in rows]
    names, binds = [row.name for row in rows], {"what binds": [_binds(row) for row in rows]}
    endless = console.options.update_width(_ENDLESS)
    beside = console.measure(_table(names, numbers, {}), options=endless).maximum
    together = _table(names, numbers, binds)
    if min(beside + _ROOM_TO_TELL, console.measure(together, options=endless).maximum) <= console.width:
        return [together]
    return [_table(names, numbers, {}), _table(names, {}, binds)]


def _binds(row: Row) -> str:
    metrics = row.result.metrics
    told = row.beyond or binding_text(row.result.verdict) or "-"
    if metrics.num_preemptions:
        told += f"; {metrics.num_preemptions} preemptions"
    return told


def _table(names: list[str], numbers: dict[str, list[str]], texts: dict[str, list[str]]) -> Table:
    """A column for each header, numbers to the right of it, beside the strategies' names."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", no_wrap=True)
    for header in numbers:
        table.add_column(header, justify="right")
    for header in texts:
        table.add_column(header)
    for cells in zip(names, *numbers.values(), *texts.values(), strict=True):
        table.add_row(*cells)
    return table


def meanings(rows: Sequence[Row]) -> str:
    """What the columns of `why_tables` mean, where their names do not say it."""
    return "; ".join([*(_MEANINGS[part] for part in _shown_parts(rows) if part in _MEANINGS), _EMPTY])


def _shown_parts(rows: Sequence[Row]) -> list[str]:
    shares = [row.result.metrics.where.shares() for row in rows]
    return [part for part in _PARTS if part in _ALWAYS or any(one[part] >= _SHOWN for one in shares)]


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


def samples_problem(slo_needed: Sequence[tuple[str, int]], num_requests: int, at_once: bool) -> str | None:
    """Why a workload cannot answer its SLO: too few requests for a percentile; None when it can."""
    short = [(name, needed) for name, needed in slo_needed if needed > num_requests]
    if not short:
        return None
    name, needed = max(short, key=lambda one: one[1])
    return (
        f"{name} needs at least {needed} requests to be told{warmup_aside(at_once)}, the workload has "
        f"{num_requests}; use --requests {needed} or a lower percentile"
    )


def warmup_aside(at_once: bool) -> str:
    """What is left out of percentiles, in brackets, where something is."""
    return "" if at_once else " (of which the first 10 % are warm-up)"
