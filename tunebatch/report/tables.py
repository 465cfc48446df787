"""One table: a line per strategy."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tunebatch.measure.limits import MetricName, StatisticName
from tunebatch.report.device import device_columns
from tunebatch.report.rows import (
    Row,
    baseline,
    duration,
    lacking,
    number,
    percent,
    ratio_to,
    short_knobs,
    shown_statistic,
    slo_of,
)

_ENDLESS = 1000  # cells, in which nothing wraps
_LATENCIES: tuple[MetricName, ...] = ("ttft", "tpot")


def strategy_tables(
    console: Console,
    rows: Sequence[Row],
    rate_name: str = "req/s",
    marked: bool = True,
    offered: bool = False,
) -> list[Table]:
    """Strategy, knobs, rate and what it cost, in the order given; where any row has a prefix cache its hits
    and the prompt tokens that they saved; and what the device did and cost where any row tells it.

    Where a console has no room for all of it side by side, knobs have a table of their own.

    Args:
        rate_name: ``capacity req/s`` where the rate is one.
        marked: The first row is the best.
        offered: Requests came at different rates, which are told.
    """
    whole = _numbers(rows, rate_name, marked, offered, knobs=True, space=" ")
    if console.measure(whole, options=console.options.update_width(_ENDLESS)).maximum <= console.width:
        return [whole]
    return [_numbers(rows, rate_name, marked, offered, knobs=False, space="\n"), _knobs(rows)]


def _knobs(rows: Sequence[Row]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", no_wrap=True)
    table.add_column("knobs")
    for row in rows:
        table.add_row(row.name, short_knobs(row.result.knobs) or "-")
    return table


def _numbers(
    rows: Sequence[Row], rate_name: str, marked: bool, offered: bool, *, knobs: bool, space: str
) -> Table:
    """Multiples of static batching only where a row has one.

    Args:
        space: What stands between the words of a header.
    """
    slo, base = slo_of(rows), baseline(rows)
    statistics = {metric: shown_statistic(slo, metric) for metric in _LATENCIES}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy", no_wrap=True)
    if knobs:
        table.add_column("knobs")
    names = [f"{statistics[metric]} {metric.upper()}" for metric in _LATENCIES]
    hits = [row.result.metrics.hit_rate for row in rows]
    cached = ("hit", "saved tokens") if any(hit is not None for hit in hits) else ()
    rates = ("offered req/s",) if offered else ()
    device = device_columns(rows)
    multiples = ("x static",) if any(ratio_to(row, base) is not None for row in rows) else ()
    of_run = (*names, "tok/s", "batch", "bubble", "KV", *cached)
    for name in (*rates, rate_name, *multiples, *of_run, *device):
        table.add_column(name.replace(" ", space), justify="right")
    for index, row in enumerate(rows):
        metrics = row.result.metrics
        ratio = ratio_to(row, base)
        told = [_observed(row, metric, statistics[metric]) for metric in _LATENCIES]
        table.add_row(
            row.name,
            *([short_knobs(row.result.knobs) or "-"] if knobs else []),
            *(number(row.result.workload.get("rate_per_s")) for _ in rates),
            _rate(row),
            *("-" if ratio is None else f"{ratio:.2f}x" for _ in multiples),
            *told,
            number(metrics.output_throughput),
            number(metrics.mean_batch),
            percent(metrics.bubble),
            percent(metrics.mean_kv_use),
            *((percent(hits[index]), _counted(metrics.saved_prefill_tokens)) if cached else ()),
            *(cells[index] for cells in device.values()),
            style="bold green" if marked and index == 0 and row.rate_per_s else "",
        )
    return table


def _counted(tokens: int | None) -> str:
    return "-" if tokens is None else f"{tokens:,}"


def _rate(row: Row) -> str:
    if row.rate_per_s is None:
        return "misses the SLO"
    return (">= " if row.at_least else "") + number(row.rate_per_s) + ("*" if row.unconfirmed else "")


def _observed(row: Row, metric: MetricName, statistic: StatisticName) -> str:
    """As it was judged: a dash where the run was stopped because it could only exceed the limit, though those
    who were served by then may all have kept it."""
    for judged in row.result.verdict.limits if row.result.verdict is not None else ():
        if (judged.limit.metric, judged.limit.statistic) == (metric, statistic):
            if judged.status == "not enough evidence":
                return lacking(judged.count, judged.needed)
            return duration(judged.observed_s)
    found = row.result.metrics.distribution(metric).statistic(statistic)
    return lacking(found.count, found.needed) if found.value_s is None else duration(found.value_s)
