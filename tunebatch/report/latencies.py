"""The latencies of one run: percentiles with what is known of them."""

from __future__ import annotations

from rich.table import Table

from tunebatch.measure.distribution import Percentile
from tunebatch.measure.limits import METRICS, StatisticName
from tunebatch.measure.metrics import Metrics
from tunebatch.report.rows import duration, lacking

_SHOWN: tuple[StatisticName, ...] = ("p50", "p90", "p99")
NOTE = "in brackets: 95 % intervals from batch means over the run; another seed may differ by more"


def latency_table(metrics: Metrics) -> Table:
    """p50, p90 and p99 of each latency, each with its interval where there is evidence for one."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("latency", no_wrap=True)
    for name in _SHOWN:
        table.add_column(name)
    for metric in METRICS:
        found = metrics.distribution(metric)
        table.add_row(metric.upper(), *(_told(found.statistic(name)) for name in _SHOWN))
    return table


def _told(found: Percentile) -> str:
    if found.value_s is None:
        return lacking(found.count, found.needed)
    if found.lower_s is None or found.upper_s is None:
        return duration(found.value_s)
    return f"{duration(found.value_s)} [{duration(found.lower_s)}, {duration(found.upper_s)}]"
