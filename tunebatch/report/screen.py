"""A whole answer on the screen: table, why, timelines."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from rich.console import Console
from rich.text import Text

from tunebatch.report.prose import print_prose
from tunebatch.report.reasons import reasons
from tunebatch.report.rows import Row
from tunebatch.report.tables import strategy_tables
from tunebatch.report.timeline import good_length_s, legend, timeline
from tunebatch.report.why import meanings, why_tables


def print_rows(
    console: Console,
    rows: Sequence[Row],
    *,
    headline: str | None = None,
    winner: Row | None = None,
    rate_name: str = "req/s",
    offered: bool = False,
    notes: Sequence[str] = (),
    ascii_only: bool = False,
    quiet: bool = False,
    ordered: bool = True,
) -> None:
    """The answer first, then the table; then, unless quiet, who held which slot, and why.

    Args:
        offered: Tell the rate at which requests came, too.
        notes: Lines beneath the table.
        winner: Whose advantages over the others are told.
    """
    if ordered:
        rows = sorted(rows, key=lambda row: -(row.rate_per_s or 0.0))
    if headline is not None:
        print_prose(console, headline, "bold")
        console.print()
    for table in strategy_tables(console, rows, rate_name, marked=ordered, offered=offered):
        console.print(table)
    starred = ["* measured in the search only, not again"] if any(row.unconfirmed for row in rows) else []
    for note in (*starred, *notes):
        print_prose(console, note, "dim")
    if quiet:
        return
    drawn = [row for row in rows if row.result.record is not None]
    if drawn:
        _print_timelines(console, drawn, ascii_only)
    console.print()
    console.print(Text("where a request's time went, and what kept more load out", style="bold"))
    for table in why_tables(rows, console):
        console.print(table)
    print_prose(console, meanings(rows), "dim")
    if winner is not None:
        console.print()
        for line in reasons(winner, rows):
            print_prose(console, line)


def _print_timelines(console: Console, rows: Sequence[Row], ascii_only: bool) -> None:
    """One picture for each, all on one scale: as many seconds from left to right."""
    records = [row.result.record for row in rows if row.result.record is not None]
    width = min(100, max(20, console.width - 8))
    max_slots = 12 if len(rows) == 1 else 8 if len(rows) <= 3 else 6
    length_s = median(good_length_s(record, width) for record in records)
    pictures = [timeline(record, width, max_slots, length_s, ascii_only) for record in records]
    console.print()
    console.print(Text("batch slots over time", style="bold"))
    console.print(legend(frozenset().union(*(picture.phases for picture in pictures)), ascii_only))
    for row, picture in zip(rows, pictures, strict=True):
        hidden = picture.num_slots > picture.num_shown
        shown = f"{picture.num_shown} of {picture.num_slots} slots" if hidden else ""
        console.print()
        console.print(Text.assemble((row.name, "bold"), "  ", (shown, "dim")))
        console.print(picture.text, soft_wrap=True)
