"""A whole answer on the screen: table, why, timelines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunebatch.report.rows import Row
from tunebatch.report.tables import strategy_table
from tunebatch.report.timeline import timeline
from tunebatch.report.why import why_lines


def print_rows(
    console: Console,
    rows: Sequence[Row],
    *,
    headline: str | None = None,
    rate_name: str = "req/s",
    ascii_only: bool = False,
    quiet: bool = False,
    ordered: bool = True,
) -> None:
    """The answer first, then the table; then, unless quiet, why, and who held which slot."""
    if headline is not None:
        console.print(Text(headline, style="bold"), soft_wrap=True)
        console.print()
    console.print(strategy_table(rows, rate_name, ordered))
    if quiet:
        return
    console.print()
    console.print(Text("where requests spent their time", style="bold"))
    for line in why_lines(rows):
        console.print(Text(f"  {line}"), soft_wrap=True)
    width = min(100, max(20, console.width - 6))
    for row in rows:
        if row.result.record is not None:
            console.print()
            console.print(Text(f"batch slots over time: {row.strategy}", style="bold"))
            console.print(timeline(row.result.record, width=width, ascii_only=ascii_only), soft_wrap=True)
