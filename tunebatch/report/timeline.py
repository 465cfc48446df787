"""What the batch slots were doing over time: rows are slots, time runs right, every cell is coloured by what
filled most of it. The picture that explains batching, from a run's own steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from rich.text import Text

from tunebatch.engine.records import RunRecord
from tunebatch.measure.percentiles import FloatArray
from tunebatch.report.phases import Phase, SlotPhases, Stay

_CELLS_PER_REQUEST = 18  # enough to tell its phases
_LABEL_GAP = 4  # cells at least between one label of the axis and the next
_BUSY = 0.9  # of the busiest stretch, which is busy enough to be shown


@dataclass(frozen=True, slots=True)
class _Look:
    """A phase's glyph, which has the colour of its background, so that it shows where colours do not."""

    glyph: str
    ascii: str
    colour: str
    words: str


# Colours that stay apart for the colour-blind (after Okabe and Ito, 2008), on dark and light terminals, and
# where only sixteen are to be had.
_LOOKS = {
    Phase.PREFILL: _Look("▒", "P", "#e69f00", "prefill"),
    Phase.DECODE: _Look("█", "=", "#2b83ba", "decode"),
    Phase.VERIFY: _Look("▓", "V", "#10a050", "decode with drafts"),
    Phase.WAIT: _Look("░", "-", "#8c8c8c", "waits for others"),
    Phase.RECOMPUTE: _Look("▚", "R", "#ee3377", "recompute after preemption"),
    Phase.EMPTY: _Look("·", ".", "", "held, but empty"),
}
_PHASES = list(_LOOKS)
_BOUNDARY, _ASCII_BOUNDARY = "▏", "|"
_TICK, _ASCII_TICK = "╵", "'"


@dataclass(frozen=True, slots=True)
class Picture:
    """The slots of one run, drawn.

    Attributes:
        text: A line per slot and one of seconds.
        num_slots, num_shown: Slots that the run used, and those of them that are drawn.
        phases: What is to be seen.
    """

    text: Text
    num_slots: int
    num_shown: int
    phases: frozenset[Phase]


def timeline(
    record: RunRecord,
    width: int = 72,
    max_slots: int = 8,
    length_s: float | None = None,
    ascii_only: bool = False,
) -> Picture:
    """Draws a busy stretch of a run.

    Args:
        width: Cells of a row, without its label.
        length_s: Seconds from left to right; by default so many that single requests can be seen.
    """
    slots = sorted({stay[0] for stay in record.occupancy})
    if not slots:
        return Picture(Text("(no step was run)", style="dim"), 0, 0, frozenset())
    start_s, end_s = _window(record, slots[:max_slots], length_s or good_length_s(record, width))
    label = len(str(slots[:max_slots][-1]))
    text, seen = Text(), set()
    stays = list(SlotPhases(record).stays(max_slots, start_s, end_s))
    for slot in slots[:max_slots]:
        text.append(f"{slot:>{label + 2}} ", style="dim")
        seen |= _row(text, [stay for stay in stays if stay.slot == slot], start_s, end_s, width, ascii_only)
        text.append("\n")
    text.append(" " * (label + 3))
    text.append(_axis(start_s, end_s, width, _ASCII_TICK if ascii_only else _TICK), style="dim")
    return Picture(text, len(slots), min(len(slots), max_slots), frozenset(seen))


def legend(phases: Iterable[Phase], ascii_only: bool = False) -> Text:
    """A swatch for each phase that is to be seen, and how a request's end shows."""
    text = Text()
    seen = set(phases)
    for phase, look in _LOOKS.items():
        if phase in seen:
            glyph, style = _cell(phase, ascii_only)
            text.append(glyph * 2, style=style)
            text.append(f" {look.words}   ", style="dim")
    text.append(f"{_ASCII_BOUNDARY if ascii_only else _BOUNDARY} next request", style="dim")
    return text


def good_length_s(record: RunRecord, width: int) -> float:
    """Seconds to show so that a typical request is some eighteen cells long."""
    held = [end_s - start_s for _, _, start_s, end_s, _ in record.occupancy]
    return width / _CELLS_PER_REQUEST * median(held) if held else 0.0


def _window(record: RunRecord, slots: Sequence[int], length_s: float) -> tuple[float, float]:
    """Of the stretches in which the slots are nearly as taken as ever, the one nearest to the middle."""
    stays = [stay for stay in record.occupancy if stay[0] in slots]
    since, until = np.sort([stay[2] for stay in stays]), np.sort([stay[4] for stay in stays])
    first, last = float(since[0]), float(until[-1])
    if length_s <= 0.0 or length_s >= last - first:
        return first, max(last, first + 1e-9)
    edges = np.unique(np.concatenate((since, until)))
    taken = np.searchsorted(since, edges, side="right") - np.searchsorted(until, edges, side="right")
    so_far = np.concatenate(([0.0], np.cumsum(taken[:-1] * np.diff(edges))))
    starts = np.linspace(first, last - length_s, 200)
    busy = np.interp(starts + length_s, edges, so_far) - np.interp(starts, edges, so_far)
    good = starts[busy >= _BUSY * busy.max()]
    start_s = float(good[np.argmin(np.abs(good - (first + last - length_s) / 2))])
    return start_s, start_s + length_s


def _row(
    text: Text, stays: Sequence[Stay], start_s: float, end_s: float, width: int, ascii_only: bool
) -> set[Phase]:
    """Draws one slot; returns the phases that are to be seen."""
    cell_s = (end_s - start_s) / width
    spent, taken = np.zeros((width, len(_PHASES))), np.zeros(width)
    boundaries, free_from_s = set(), -math.inf
    for stay in stays:
        column = math.floor((stay.start_s - start_s) / cell_s)
        if stay.start_s - free_from_s < cell_s and 0 <= column < width:
            boundaries.add(column)
            spent[column] = 0.0  # shows what begins, such as a short prefill
        free_from_s = stay.held_until_s
        for span in stay.spans:
            place = (span.start_s - start_s) / cell_s, (span.end_s - start_s) / cell_s
            _fill(spent[:, _PHASES.index(span.phase)], *place)
            _fill(taken, *place)
    seen = set()
    for column in range(width):
        if taken[column] < 0.5:
            text.append(" ")
            continue
        phase = _PHASES[int(spent[column].argmax())]
        seen.add(phase)
        glyph, style = _cell(phase, ascii_only, column in boundaries)
        text.append(glyph, style=style)
    return seen


def _fill(cells: FloatArray, since: float, until: float) -> None:
    """Adds to each cell the part of it that lies between two places, in cells."""
    since, until = max(since, 0.0), min(until, float(cells.size))
    if until <= since:
        return
    first, last = int(since), min(int(until), cells.size - 1)
    cells[first:last] += 1.0
    cells[first] -= since - first
    cells[last] += until - last


def _cell(phase: Phase, ascii_only: bool, boundary: bool = False) -> tuple[str, str]:
    """A cell's glyph and style."""
    look = _LOOKS[phase]
    if boundary:
        return _ASCII_BOUNDARY if ascii_only else _BOUNDARY, f"black on {look.colour}" if look.colour else ""
    style = f"{look.colour} on {look.colour}" if look.colour else "dim"
    return look.ascii if ascii_only else look.glyph, style


def _axis(start_s: float, end_s: float, width: int, tick: str) -> str:
    """Round seconds, as many as have room, under the cells that they fall into."""
    scale = 10.0 ** math.floor(math.log10((end_s - start_s) / width))
    labels: list[tuple[int, str]] = []
    for every in (scale * nice * decade for decade in (1, 10, 100) for nice in (1, 2, 5)):
        digits = max(0, -math.floor(math.log10(every) + 1e-9))
        numbers = range(math.ceil(start_s / every), math.floor(end_s / every) + 1)
        if not numbers:
            break
        columns = [int((number * every - start_s) / (end_s - start_s) * width) for number in numbers]
        texts = [f"{tick}{number * every:.{digits}f} s" for number in numbers]
        labels = list(zip(columns, texts, strict=True))
        if every / (end_s - start_s) * width >= len(texts[-1]) + _LABEL_GAP:
            break
    line = ""
    for column, label in labels:
        if column + len(label) <= width and (not line or len(line) < column):
            line = line.ljust(column) + label
    return line
