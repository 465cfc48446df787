"""Tables, timelines and progress, as they look without colour."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from tunebatch.report.latencies import latency_table
from tunebatch.report.progress import Progress
from tunebatch.report.screen import print_rows
from tunebatch.report.tables import strategy_tables
from tunebatch.report.why import why_tables


def _console(**options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=150, highlight=False, markup=False, **options), file


def test_the_table_shows_what_the_slo_limits_in_the_order_given(make_row: Any) -> None:
    console, file = _console()
    slo = "p95_ttft<=1s"
    rows = [make_row("continuous", 6.0, n=140, slo=slo), make_row("static", 2.0, n=140, slo=slo)]
    console.print(
        *strategy_tables(console, [*rows, make_row("sequential", None, n=140, slo=slo)], "capacity req/s")
    )
    header, first, second, third = file.getvalue().splitlines()
    assert "p95 TTFT" in header and "p90 TPOT" in header and "capacity req/s" in header
    assert first.startswith("continuous") and "3.00x" in first
    assert second.startswith("static") and "1.00x" in second
    assert "misses the SLO" in third


def test_hits_are_a_column_where_any_row_has_a_prefix_cache(make_row: Any) -> None:
    console, file = _console()
    plain, cached = make_row("static", 2.0), make_row("static+prefix", 3.0)
    metrics = replace(cached.result.metrics, hit_rate=0.625, saved_prefill_tokens=12345)
    cached = replace(cached, result=replace(cached.result, metrics=metrics))
    console.print(*strategy_tables(console, [cached, plain]))
    header, first, second = file.getvalue().splitlines()
    assert header.endswith(" hit  saved tokens") and first.split()[-3:] == ["62", "%", "12,345"]
    assert second.split()[-2:] == ["-", "-"]
    file.seek(0)
    file.truncate()
    console.print(*strategy_tables(console, [plain]))
    console.print(*why_tables([cached], console))
    assert " hit" not in file.getvalue() and "12,345" not in file.getvalue()


def test_hits_leave_the_table_within_120_columns(make_row: Any) -> None:
    knobs = {"max_batch_size": 32, "max_batched_tokens": 2048, "chunk_size": 512, "max_partial_prefills": 2}
    rows = []
    for name in ("adaptive+prefix+ngram", "static"):
        row = make_row(name, 77.7, n=20, **knobs)
        metrics = replace(row.result.metrics, hit_rate=0.44, saved_prefill_tokens=1234567, mean_batch=23.0)
        rows.append(replace(row, result=replace(row.result, metrics=metrics)))
    file = io.StringIO()
    print_rows(Console(file=file, width=120), rows, rate_name="capacity req/s", quiet=True, offered=True)
    text = file.getvalue()
    assert max(map(len, text.splitlines())) <= 120 and "…" not in text
    assert text.count(" 44 % ") == text.count(" 1,234,567") == 2


def test_a_capacity_that_no_rate_bounds_is_at_least_that(make_row: Any) -> None:
    console, file = _console()
    console.print(*strategy_tables(console, [replace(make_row("static", 2.0), at_least=True)]))
    assert ">= 2.00 " in file.getvalue()


def test_multiples_are_a_column_where_any_row_is_of_static_batching(make_row: Any) -> None:
    for name, told in (("static", True), ("static+prefix", True), ("mixed", False)):
        console, file = _console()
        console.print(*strategy_tables(console, [make_row("continuous", 6.0), make_row(name, 2.0)]))
        header, first, _ = file.getvalue().splitlines()
        assert ("x static" in header) is told and ("3.00x" in first) is told


def test_multiples_of_static_are_a_column_where_a_row_has_one(make_row: Any) -> None:
    for rows, told in (
        ([make_row("static", 2.0)], True),
        ([make_row("continuous", 6.0)], False),
        ([make_row("continuous", 6.0), make_row("static", None)], False),
    ):
        console, file = _console()
        console.print(*strategy_tables(console, rows))
        assert ("x static" in file.getvalue()) is told


def test_a_narrow_screen_cuts_no_number(make_row: Any) -> None:
    knobs = {"max_batch_size": 32, "max_batched_tokens": 2048}
    rows = [replace(make_row("continuous", 6.0, **knobs), source=mark) for mark in "AB"]
    file = io.StringIO()
    print_rows(Console(file=file, width=70), rows, rate_name="goodput req/s")
    text = file.getvalue()
    assert "…" not in text and max(map(len, text.splitlines())) <= 70
    assert "strategy      knobs" in text and "goodput req/s" not in text
    wide = io.StringIO()
    print_rows(Console(file=wide, width=150), rows, rate_name="goodput req/s")
    assert "strategy      knobs" in wide.getvalue() and "goodput req/s" in wide.getvalue()
    numbers = [line.split() for line in text.splitlines() if line.startswith("continuous ")]
    whole = [line.split() for line in wide.getvalue().splitlines() if line.startswith("continuous ")]
    assert all(set(cells) <= set(told) for cells, told in zip(numbers[:2], whole[:2], strict=True))


def test_a_percentile_without_evidence_says_what_it_lacks(make_row: Any) -> None:
    console, file = _console()
    console.print(*strategy_tables(console, [make_row("static", 2.0, n=70, slo="p99_ttft<=1s")]))
    assert "n/a (70 of 662)" in file.getvalue() and "20.0 ms" in file.getvalue()
    console, file = _console()
    console.print(*strategy_tables(console, [make_row("static", 2.0, n=12, slo="p50_ttft<=1s")]))
    assert "100 ms  n/a (12 of 64)" in file.getvalue()


def test_percentiles_stand_with_their_intervals(make_row: Any) -> None:
    console, file = _console()
    console.print(latency_table(make_row("static", 2.0, n=70).result.metrics))
    ttft = next(line for line in file.getvalue().splitlines() if line.startswith("TTFT"))
    assert ttft.split(maxsplit=1)[1].startswith("100 ms [100 ms, 100 ms]")
    assert ttft.endswith("n/a (70 of 662)")
    console, file = _console()
    console.print(latency_table(make_row("static", 2.0, n=12).result.metrics))
    assert "[" not in file.getvalue() and "TTFT     100 ms   n/a (12 of 64)" in file.getvalue()


def test_a_terminal_gets_colour_and_a_pipe_none(make_row: Any) -> None:
    for terminal in (True, False):
        console, file = _console(force_terminal=terminal, color_system="standard" if terminal else "auto")
        print_rows(console, [make_row("static", 2.0)])
        assert ("\x1b[" in file.getvalue()) is terminal


def test_progress_is_lines_without_a_terminal_and_nothing_when_quiet() -> None:
    console, file = _console()
    with Progress(console) as progress:
        progress.status("measuring 1 of 2")
        progress.note("done [1]")
    assert file.getvalue() == "measuring 1 of 2\ndone [1]\n"
    console, file = _console(force_terminal=True)
    with Progress(console, quiet=True) as progress:
        progress.status("measuring")
        progress.note("done")
    assert file.getvalue() == ""


@pytest.mark.parametrize("num_served", [0, 20, 66])
def test_a_run_that_was_stopped_has_dashes_for_what_it_cannot_tell(
    make_row: Any, stopped_row: Any, num_served: int
) -> None:
    console, file = _console()
    rows = [make_row("continuous", 6.0), stopped_row("static", num_served)]
    # Those who were served kept the limit that the run was stopped for.
    known = rows[1].result.metrics.ttft.p90.value_s
    assert (known is not None) is (num_served == 66)
    print_rows(console, rows, winner=rows[0])
    lines = [line for line in file.getvalue().splitlines() if line.startswith("static")]
    table, why = (" ".join(line.split()) for line in lines)
    tpot = "20.0 ms" if num_served == 66 else f"n/a ({num_served} of 64)"
    assert table.startswith(f"static - misses the SLO - {tpot} ")
    assert why.endswith("- p90_ttft over 500ms at 1.00 req/s")
    assert "nan" not in file.getvalue() and "None" not in file.getvalue()
