"""A whole answer on the screen: table, why, timelines."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from tunebatch.report.reasons import reasons
from tunebatch.report.rows import Row
from tunebatch.report.tables import strategy_table
from tunebatch.report.timeline import timeline
from tunebatch.report.why import legend, why_table


def print_rows(
    console: Console,
    rows: Sequence[Row],
    *,
    headline: str | None = None,
    winner: Row | None = None,
    rate_name: str = "req/s",
    offered: bool = False,
    ascii_only: bool = False,
    quiet: bool = False,
    ordered: bool = True,
) -> None:
    """The answer first, then the table; then, unless quiet, who held which slot, and why.

    Args:
        offered: Tell the rate at which requests came, too.
        winner: Whose advantages over the others are told.
    """
    if ordered:
        rows = sorted(rows, key=lambda row: -(row.rate_per_s or 0.0))
    if headline is not None:
        console.print(Text(headline, style="bold"))
        console.print()
    console.print(strategy_table(rows, rate_name, marked=ordered, offered=offered))
    if any(row.unconfirmed for row in rows):
        console.print(Text("* measured in the search only, not again", style="dim"))
    if quiet:
        return
    width = min(100, max(20, console.width - 6))
    for row in rows:
        if row.result.record is not None:
            console.print()
            console.print(Text(f"batch slots over time: {row.strategy}", style="bold"))
            picture = timeline(row.result.record, width=width, ascii_only=ascii_only)
            console.print(picture, soft_wrap=True)
    console.print()
    console.print(Text("where a request's time went, and what kept more load out", style="bold"))
    console.print(why_table(rows))
    console.print(Text(legend(rows), style="dim"))
    if winner is not None:
        console.print()
        for line in reasons(winner, rows):
            console.print(Text(line))
