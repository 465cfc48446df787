"""The sentences say what the numbers say."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from tunebatch.engine.records import SpeculationRecord
from tunebatch.engine.strategies import STRATEGIES, strategy
from tunebatch.measure.time_split import PARTS
from tunebatch.report.reasons import reasons
from tunebatch.report.rows import duration, number, short_knobs
from tunebatch.report.sentence import Gain, fastest_line, winner_line
from tunebatch.report.speculation import speculation_line
from tunebatch.report.why import meanings, samples_problem, why_tables


def test_short_knobs_are_words_that_fit_the_column_of_a_sweep() -> None:
    assert short_knobs(dict(strategy("chunked").knobs)) == "batch 32, 2048 tokens, chunk 256"
    assert short_knobs(dict(strategy("mixed").knobs)) == "batch 32, chunk 512, partial 2"
    assert short_knobs(dict(strategy("adaptive").knobs)) == "batch 4-32, target 0.9, partial 2"
    for name in STRATEGIES:
        said = short_knobs(dict(strategy(name).knobs))
        assert len(said) <= 38 and "_" not in said


def test_the_winner_in_one_line(make_row: Any) -> None:
    winner, static = make_row("continuous", 14.2, max_batch_size=48), make_row("static", 4.58)
    assert winner_line(winner, [winner, static], Gain(1.2, 1.1, 1.3)) == (
        "continuous, max_batch_size 48: 14.2 req/s inside the SLO, 3.1x static, "
        "1.20x the best default [1.10, 1.30]"
    )


@pytest.mark.parametrize(("low", "high", "helped"), [(0.9, 1.3, False), (1.1, 1.3, True), (0.7, 0.9, True)])
def test_tuning_did_not_help_when_the_interval_holds_1(
    make_row: Any, low: float, high: float, helped: bool
) -> None:
    winner = make_row("dynamic", 5.0)
    assert ("tuning did not help" in winner_line(winner, [winner], Gain(1.1, low, high))) is not helped


@pytest.mark.parametrize(("ratio", "told"), [(1.04, True), (1.06, False)])
def test_one_seed_cannot_tell_a_small_gain(make_row: Any, ratio: float, told: bool) -> None:
    winner = make_row("dynamic", 5.0)
    assert ("tuning hardly helped" in winner_line(winner, [winner], Gain(ratio))) is told


@pytest.mark.parametrize(("other", "told"), [(14.0, "; level with static"), (13.0, "")])
def test_what_one_run_cannot_tell_apart_is_level(make_row: Any, other: float, told: str) -> None:
    winner, static = make_row("continuous", 14.2), make_row("static", other)
    assert winner_line(winner, [winner, static]).endswith("x static" + told)


def test_nothing_feasible(make_row: Any) -> None:
    assert "no configuration keeps the SLO" in winner_line(None, [make_row("static", None)])


def test_static_is_no_multiple_of_itself(make_row: Any) -> None:
    row = make_row("static", 3.0)
    assert "x static" not in winner_line(row, [row]) and "x static" not in fastest_line([row], "req/s")


def test_slots_are_empty_behind_a_prefill_too() -> None:
    assert "held, but computing nothing in a step: ended, or waiting behind a prefill" in meanings([])


def why(row: Any) -> str:
    console = Console(width=200, file=io.StringIO())
    console.print(*why_tables([row], console))
    return " ".join(console.file.getvalue().split())


def test_why_names_the_limit_that_binds(make_row: Any) -> None:
    told = why(make_row("continuous", 1.0))
    assert "continuous 31 % 31 % 38 %" in told and "nearest to its limit: p90_ttft 100 ms of 500ms" in told
    told = why(make_row("continuous", 1.0, wait_s=0.7))
    assert "misses p90_ttft 700 ms of 500ms: requests wait too long" in told
    assert "p90_ttft not told: 20 samples, 64 needed" in why(make_row("continuous", 1.0, n=20))


@pytest.mark.parametrize(("width", "num_tables"), [(80, 2), (110, 1)])
def test_what_binds_is_told_where_it_has_room(make_row: Any, width: int, num_tables: int) -> None:
    row = make_row("continuous", 1.0, wait_s=0.7)
    tables = why_tables([row, row], Console(width=width))
    assert [table.columns[-1].header for table in tables][-1:] == ["what binds"]
    assert len(tables) == num_tables and all(table.row_count == 2 for table in tables)


def test_the_greatest_shortage_is_told() -> None:
    needed = [("p90_ttft", 64), ("p99_tpot", 662)]
    assert samples_problem(needed, 700, at_once=True) is None
    problem = "p99_tpot needs at least 662 requests to be told, the workload has 40; use --requests 662"
    assert str(samples_problem(needed, 40, at_once=True)).startswith(problem)
    assert "(of which the first 10 % are warm-up)" in str(samples_problem(needed, 40, at_once=False))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0.00"),
        (14.23, "14.2"),
        (123.4, "123"),
        (8.0, "8.00"),
        (999.9, "1,000"),
        (12345.6, "12,346"),
    ],
)
def test_numbers(value: float | None, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("value", "text"), [(2.5, "2.50 s"), (0.0303, "30.3 ms"), (4e-5, "40 us")])
def test_durations(value: float, text: str) -> None:
    assert duration(value) == text


def test_drafts_are_told_by_position_and_by_batch() -> None:
    record = SpeculationRecord([100, 80], [75, 20], 400, 700, [(1, 1, 5), (2, 7, 0)])
    assert speculation_line("mixed+ngram", record) == (
        "mixed+ngram: 95 of 180 drafts accepted; by position 75 %, 25 %; "
        "drafts by batch (from, to, drafts), as learnt: [[1, 1, 5], [2, 7, 0]]"
    )
    record = SpeculationRecord([4], [3], 4, 4, num_computed=1_250, num_reused=3_750)
    assert speculation_line("x+draft", record) == (
        "x+draft: 3 of 4 drafts accepted; by position 75 %; "
        "the draft model computed 1,250 tokens to draft from and shared 3,750 (75 %)"
    )
    record.num_reused = 0
    assert speculation_line("x+draft", record).endswith("the draft model computed 1,250 tokens to draft from")
    assert "nothing was drafted in 4 decodes" in speculation_line("x", SpeculationRecord(num_decodes=4))


def test_columns_that_say_something_are_shown_and_explained(make_row: Any) -> None:
    plain = make_row("continuous", 1.0)
    assert "mixed" not in why(plain) and "preempted" not in meanings([plain])
    assert "preempted" not in why(with_split(plain, preempted_s=0.05))  # 0 %, rounded
    row = with_split(plain, stalled_in_mixed_s=0.7, preempted_s=1.4, speculation_waste_s=2.1)
    told = why(row)
    assert "in mixed (est.) preempted rejected drafts empty slots" in told
    assert "25 % 25 % 20 % 0 % 5 % 10 % 15 %" in told
    assert all(word in meanings([row]) for word in ("in mixed (est.):", "preempted:", "rejected drafts:"))


def with_split(row: Any, **changed: float) -> Any:
    """The row, whose 70 requests spent 14 s, with other seconds in its time split, and in its metrics."""
    parts = {key: value for key, value in changed.items() if key in PARTS}
    metrics = dataclasses.replace(row.result.metrics, **{k: v for k, v in changed.items() if k not in parts})
    where = dataclasses.replace(metrics.where, **parts)
    rest_s = 14.0 - where.total_s + where.decode_s
    metrics = dataclasses.replace(metrics, where=dataclasses.replace(where, decode_s=rest_s))
    return dataclasses.replace(row, result=dataclasses.replace(row.result, metrics=metrics))


def test_the_winner_is_told_from_the_next_best_and_the_last(make_row: Any) -> None:
    zero = {"queue_s": 0.0, "prefill_s": 0.0}
    winner = with_split(
        make_row("mixed", 6.0), **zero, stalled_in_mixed_s=2.8, mean_batch=8.0, bubble=0.0, mean_step_s=0.02
    )
    second = with_split(
        make_row("chunked", 4.0), **zero, stalled_s=4.2, mean_batch=7.9, bubble=0.3, mean_step_s=0.01
    )
    middle = make_row("dynamic", 3.0)
    last = with_split(make_row("static", 2.0), **{**zero, "queue_s": 7.0}, mean_batch=2.0, bubble=0.0)
    missed = make_row("sequential", None)
    stalled = "a request behind prompts of others (in mixed steps estimated)"
    assert reasons(winner, [last, missed, middle, winner, second]) == [
        "mixed: a request spends 80 % of its time decoding, "
        "20 % behind prompts of others (in mixed steps estimated)",
        f"mixed over chunked, the next best (1.50x): 40.0 ms {stalled}, not 60.0 ms; "
        "0 % of the held slots empty, not 30 %; "
        "but 160 ms a request decoding, not 140 ms; steps of 20.0 ms, not 10.0 ms",
        "mixed over static, the last (3.00x): 0 us a request in the queue, not 100 ms; "
        "8.00 sequences a step, not 2.00; "
        f"but 160 ms a request decoding, not 100 ms; 40.0 ms {stalled}, not 0 us",
    ]


def test_nothing_is_made_up_where_nothing_differs(make_row: Any) -> None:
    winner, other = make_row("mixed", 2.0), make_row("static", 1.0)
    assert reasons(winner, [winner, other])[1:] == [
        "mixed over static, the next best (2.00x): nothing measured here is clearly better"
    ]
    assert len(reasons(winner, [winner])) == 1
