"""What a sweep says while it runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunebatch.cli.sweep_words import found_text, short_text, strategy_text, unit_of
from tunebatch.report.rows import clock_time, number, short_knobs
from tunebatch.tune.confirm import mean_capacity
from tunebatch.tune.space import Space

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.tune.facts import SweepEvent

_PHASES = {
    "start": "saturate",
    "search": "search",
    "random": "random",
    "confirm": "confirm",
}
_NAME_WIDTH = 11  # of what has no features


class Watcher:
    """Turns the sweep's events into progress: a line per finished trial, and on a terminal what goes on."""

    def __init__(self, progress: Progress, asked: Profile) -> None:
        self._progress = progress
        self._asked = asked
        self._unit = unit_of(asked)
        self._phase = ""
        names = Space(asked.search.strategies, features=asked.search.features).variants_of_all
        self._name_width = max(_NAME_WIDTH, *map(len, names))

    def __call__(self, event: SweepEvent) -> None:
        if event.phase != self._phase:
            self._phase = event.phase
            if not self._progress.live:
                self._progress.note(f"{_PHASES[event.phase]}{self._left(event)}")
        if event.error is not None:
            self._progress.note(f"{self._trial(event)}failed: {event.error}")
        elif event.done is not None:
            self._progress.note(f"{self._trial(event)}{found_text(event.done, self._asked)}")
        elif self._progress.live:
            self._progress.status(*self._lines(event))

    def _lines(self, event: SweepEvent) -> list[str]:
        of = "" if event.total is None else f" of {event.total}"
        best = "none yet"
        if event.best is not None:
            best = f"{number(mean_capacity(event.best))} {self._unit}  {short_text(event.best, self._asked)}"
        return [
            f"{_PHASES[event.phase]:<8} {event.trial}{of}{self._left(event)}",
            f"now      {strategy_text(event.chosen, self._asked)}  {short_knobs(event.chosen.shown_knobs)}",
            f"best     {best}",
        ]

    def _left(self, event: SweepEvent) -> str:
        left = "" if event.left_s is None else f", about {clock_time(event.left_s)} left"
        return f"  {clock_time(event.elapsed_s)}{left}"

    def _trial(self, event: SweepEvent) -> str:
        number_ = "" if event.phase == "confirm" else f"{event.trial:>3}"
        name, knobs = strategy_text(event.chosen, self._asked), short_knobs(event.chosen.shown_knobs)
        return f"{number_:<3}  {name:<{self._name_width}} {knobs:<38} "
