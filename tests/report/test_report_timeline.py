"""The picture of the batch slots, cell by cell."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import pytest
from rich.console import Console

from tunebatch.engine.records import RequestRecord, RunRecord, StepLog
from tunebatch.report.phases import Phase
from tunebatch.report.screen import print_rows
from tunebatch.report.timeline import Picture, good_length_s, legend, timeline

STATIC: list[tuple[int, int, float, float | None]] = [
    (5, 3, 0.0, None),
    (3, 2, 0.0, None),
    (1, 3, 1.0, None),
    (2, 2, 1.0, None),
]


def static(serve: Any, **options: Any) -> Picture:
    """Two batches of two; the first prompts do not fit into one step. All of it lasts 18 seconds."""
    run = serve("static", STATIC, max_batch_size=2, max_batched_tokens=6)
    return timeline(run, **{"width": 18, "length_s": 18.0, **options})


def test_a_static_batch_second_by_second(serve: Any) -> None:
    picture = static(serve)
    assert picture.text.plain.splitlines() == [
        "  0 ▒▒▒▒▒▒░░░░██▏▒▒▒██",
        "  1       ▒▒▒▒█·▏▒▒▒█·",
        "    ╵0 s      ╵10 s",
    ]
    assert (picture.num_slots, picture.num_shown) == (2, 2)
    assert picture.phases == {Phase.PREFILL, Phase.WAIT, Phase.DECODE, Phase.EMPTY}
    assert static(serve, ascii_only=True).text.plain.splitlines() == [
        "  0 PPPPPP----==|PPP==",
        "  1       PPPP=.|PPP=.",
        "    '0 s      '10 s",
    ]


def test_colours_say_the_same_as_glyphs(serve: Any) -> None:
    coloured = static(serve).text
    console = Console()
    row = coloured.plain.splitlines()[0]
    styles = [coloured.get_style_at_offset(console, offset) for offset in range(len(row))]
    colours = {
        glyph: {s.bgcolor.name for s, g in zip(styles, row, strict=True) if g == glyph and s.bgcolor}
        for glyph in "▒░█"
    }
    assert all(len(found) == 1 for found in colours.values())
    assert len(set.union(*colours.values())) == 3
    # The next request begins with its prefill, behind a dark line.
    boundary = styles[row.index("▏")]
    assert {boundary.bgcolor and boundary.bgcolor.name} == colours["▒"]
    assert boundary.color is not None and boundary.color.name == "black"


def test_a_cell_shows_what_filled_most_of_it(serve: Any) -> None:
    rows = static(serve, width=6).text.plain.splitlines()
    # Three seconds a cell: of the fourth the sequence waits one and decodes two.
    assert rows[0] == "  0 ▒▒░█▏█" and rows[1].startswith("  1   ▒▒▏")


def test_a_cell_in_which_the_next_request_begins_shows_how_it_begins() -> None:
    log = StepLog(
        start_s=[0.0, 1.0, 7.8, 8.1],
        duration_s=[1.0, 6.8, 0.3, 7.9],
        num_decodes=[0, 1, 0, 1],
        num_draft_tokens=[0, 0, 0, 0],
        slices=[((0, 0, 0, 4),), (), ((1, 0, 0, 4),), ()],
        verifications=[(), (), (), ()],
    )
    requests = [
        RequestRecord(i, 0.0, 4, 2, token_times_s=times) for i, times in enumerate([[1.0, 7.8], [8.1, 16.0]])
    ]
    run = RunRecord(requests, log, [(0, 0, 0.0, 7.8, 7.8), (0, 1, 7.8, 16.0, 16.0)])
    text = timeline(run, width=16, length_s=16.0).text
    assert text.plain.splitlines()[0] == "  0 ▒██████▏████████"
    begins = text.get_style_at_offset(Console(), 4 + 7).bgcolor
    assert begins is not None and begins.name == "#e69f00"


def test_a_gap_needs_no_boundary() -> None:
    record = RunRecord([], StepLog(), [(0, 1, 0.0, 4.0, 4.0), (0, 2, 6.0, 8.0, 8.0), (0, 3, 8.0, 10.0, 10.0)])
    assert timeline(record, width=10, length_s=10.0).text.plain.splitlines()[0] == "  0 ░░░░  ░░▏░"


def test_the_busy_middle_is_shown() -> None:
    lone = [(0, i, 10.0 * i, 10.0 * i + 1.0, 10.0 * i + 1.0) for i in range(20)]
    busy = [(slot, 100 + slot, 150.0, 160.0, 160.0) for slot in range(1, 5)]
    first, *_, axis = timeline(
        RunRecord([], StepLog(), lone + busy), width=20, length_s=10.0
    ).text.plain.splitlines()
    assert "░░" in first and "╵155 s" in axis
    steady = RunRecord([], StepLog(), [(0, i, float(i), i + 1.0, i + 1.0) for i in range(100)])
    assert "╵50 s" in timeline(steady, width=40, length_s=4.0).text.plain
    assert good_length_s(steady, width=36) == 2.0


def test_a_run_without_steps_and_one_with_many_slots() -> None:
    assert "no step" in timeline(RunRecord([], StepLog())).text.plain
    record = RunRecord([], StepLog(), [(slot, slot, 0.0, 1.0, 1.0) for slot in range(40)])
    picture = timeline(record, max_slots=12)
    assert (picture.num_slots, picture.num_shown) == (40, 12)
    lines = picture.text.plain.splitlines()
    assert len(lines) == 13 and lines[0].startswith("   0 ░") and lines[11].startswith("  11 ░")


@pytest.mark.parametrize("width", [20, 33, 100])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 3600.0])
def test_the_axis_has_room_and_names_round_seconds(width: int, scale: float) -> None:
    record = RunRecord([], StepLog(), [(0, 0, 1.37 * scale, 9.81 * scale, 9.81 * scale)])
    row, axis = timeline(record, width=width).text.plain.splitlines()
    assert len(row) == width + 4 and len(axis) <= width + 4
    labels = axis.replace("s", "").split("╵")[1:]
    assert labels
    cell_s = 8.44 * scale / width
    column = axis.index("╵") - 4
    assert abs(float(labels[0]) - (1.37 * scale + column * cell_s)) <= 1.01 * cell_s


def test_the_legend_explains_what_is_to_be_seen() -> None:
    told = legend({Phase.DECODE, Phase.PREFILL}, ascii_only=True).plain
    assert told == "PP prefill   == decode   | next request"
    assert "recompute after preemption" in legend([Phase.RECOMPUTE]).plain


def shown(make_row: Any, serve: Any, count: int = 1, width: int = 80, **options: Any) -> str:
    record = serve("continuous", [(4, 4, 0.0, None)] * 5, max_batch_size=8)
    rows = []
    for index in range(count):
        row = make_row(f"policy{index}", 1.0)
        rows.append(dataclasses.replace(row, result=dataclasses.replace(row.result, record=record)))
    file = io.StringIO()
    console = Console(
        file=file, width=width, highlight=False, markup=False, color_system=options.pop("color")
    )
    console.no_color = options.pop("no_color", False)
    print_rows(console, rows, **options)
    return file.getvalue()


def test_every_strategy_has_its_picture_under_one_legend(make_row: Any, serve: Any) -> None:
    told = shown(make_row, serve, count=2, color=None)
    assert told.count("prefill   ██ decode") == 1
    assert told.count("  0 ▒") == 2


def test_colours_are_left_out_where_there_are_none(make_row: Any, serve: Any) -> None:
    assert "48;2;230;159;0" in shown(make_row, serve, color="truecolor")
    assert "48;2;" not in shown(make_row, serve, color="truecolor", no_color=True)
    assert shown(make_row, serve, color=None, ascii_only=True).isascii()


def test_pictures_fit_a_narrow_terminal(make_row: Any, serve: Any) -> None:
    rows = [line for line in shown(make_row, serve, color=None, width=40).splitlines() if "▒▒▒" in line]
    assert rows and all(len(line) <= 40 for line in rows)
