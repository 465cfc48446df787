"""Which request held which batch slot, and when: rows are slots, time runs right, bubbles are dots."""

from __future__ import annotations

from collections.abc import Sequence

from rich.text import Text

from tunebatch.engine.records import RunRecord
from tunebatch.report.rows import duration

Stay = tuple[int, int, float, float, float]

_COLOURS = ("green", "cyan", "yellow", "magenta", "blue", "bright_green", "bright_cyan", "bright_yellow")
# Neighbours in time differ in shape too, so that the picture is readable without colour.
_FULL, _ASCII = "█▓", "#="
HELD, FREE = "·", " "


def timeline(record: RunRecord, width: int = 72, max_rows: int = 8, ascii_only: bool = False) -> Text:
    """The busiest window of a run, short enough that single requests can be seen."""
    stays = record.occupancy
    if not stays:
        return Text("(no step was run)", style="dim")
    slots = sorted({stay[0] for stay in stays})
    start, end = _window(stays)
    glyphs = _ASCII if ascii_only else _FULL
    text = Text()
    for slot in slots[:max_rows]:
        text.append(f"{slot:>3} ")
        _row(text, [stay for stay in stays if stay[0] == slot], start, end, width, glyphs)
        text.append("\n")
    hidden = len(slots) - max_rows
    more = f", {hidden} more slots not shown" if hidden > 0 else ""
    held = "." if ascii_only else HELD
    text.append(
        f"    {duration(start)} to {duration(end)}; {held} is held but empty{more}",
        style="dim",
    )
    return text


def _window(stays: Sequence[Stay]) -> tuple[float, float]:
    """From where a third of the stays have begun, for a dozen typical stays."""
    first = min(stay[2] for stay in stays)
    last = max(max(stay[3], stay[4]) for stay in stays)
    held = sorted(max(stay[3], stay[4]) - stay[2] for stay in stays)
    length = 12 * held[len(held) // 2]
    if length <= 0 or length >= last - first:
        return first, max(last, first + 1e-9)
    start = sorted(stay[2] for stay in stays)[len(stays) // 3]
    start = min(start, last - length)
    return start, start + length


def _row(text: Text, stays: Sequence[Stay], start: float, end: float, width: int, glyphs: str) -> None:
    """Each cell shows what its middle falls into."""
    ordered = sorted(stays, key=lambda stay: stay[2])
    cell = (end - start) / width
    index = 0
    for column in range(width):
        time = start + (column + 0.5) * cell
        while index < len(ordered) and max(ordered[index][3], ordered[index][4]) <= time:
            index += 1
        if index == len(ordered) or time < ordered[index][2]:
            text.append(FREE)
            continue
        _, request, _, until, _ = ordered[index]
        if time < until:
            text.append(glyphs[index % 2], style=_COLOURS[request % len(_COLOURS)])
        else:
            text.append("." if glyphs == _ASCII else HELD, style="dim")
