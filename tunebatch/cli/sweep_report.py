"""What a sweep says while it runs and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.measure.result import to_json_dict
from tunebatch.report.rows import Row, duration, knobs_text, number
from tunebatch.report.screen import print_rows
from tunebatch.report.sentence import Gain, winner_line
from tunebatch.tune.confirm import mean_capacity

if TYPE_CHECKING:
    from rich.console import Console

    from tunebatch.measure.result import RunResult
    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.tune.facts import SweepEvent, SweepOutcome, TrialFacts

_MUCH_MORE = 1.5  # arrivals end before the last request does, so a little more is usual
SCHEMA = "tunebatch.sweep.v1"
_PHASES = {
    "start": "estimating rates",
    "search": "searching",
    "random": "random baseline",
    "confirm": "confirming",
}


class Watcher:
    """Turns the sweep's events into progress."""

    def __init__(self, progress: Progress, max_time_s: float) -> None:
        self._progress = progress
        self._max_time_s = max_time_s

    def __call__(self, event: SweepEvent) -> None:
        if event.error is not None:
            self._progress.note(f"  {event.label}: failed: {event.error}")
        elif event.done is not None:
            self._progress.note(f"  {event.label}: {_found(event.done)}")
        else:
            of = "" if event.total is None else f" of {event.total}"
            left = max(0.0, self._max_time_s - event.elapsed_s)
            best = "" if event.best is None else f"; best so far {number(event.best)} ({event.best_label})"
            self._progress.status(
                f"{_PHASES[event.phase]} {event.trial}{of}: {event.label}; {left:.0f} s left{best}"
            )


def _found(trial: TrialFacts) -> str:
    if trial.oom:
        return f"out of {trial.binding}"
    if not trial.met:
        return f"misses {trial.binding}"
    return number(trial.capacity)


def outcome_rows(outcome: SweepOutcome, asked: Profile) -> list[Row]:
    """A row for each strategy that has a run to show."""
    return [
        Row(row.result, _rate(row.facts, row.result, asked), row.facts.origin != "default")
        for row in outcome.best
        if row.result is not None
    ]


def unbounded(facts: TrialFacts, asked: Profile) -> bool:
    """No rate was too high: so few requests keep the SLO even all at once, and have no capacity."""
    if asked.search.objective != "capacity":
        return False
    return facts.met and bool(facts.rates) and all(met for _, met in facts.rates)


def _rate(facts: TrialFacts, result: RunResult, asked: Profile) -> float | None:
    """The capacity; what was really served where none was found."""
    if unbounded(facts, asked):
        return result.metrics.request_throughput
    return mean_capacity(facts) or None


def caveats(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """What keeps the answer from being believed, and what to do about it."""
    if asked.search.objective != "capacity":
        return []
    found = []
    for best in outcome.best:
        if best.result is None:
            continue
        served = best.result.metrics.request_throughput
        if unbounded(best.facts, asked):
            found.append(
                f"{best.facts.strategy}: no rate missed the SLO, so its capacity is not known and the rate "
                "served is shown: use more --requests or a tighter --slo"
            )
        elif mean_capacity(best.facts) > _MUCH_MORE * served > 0:
            found.append(
                f"{best.facts.strategy}: at its capacity only {number(served)} req/s were served, the queue "
                "still grew when the requests ended: use more --requests"
            )
    return found


def headline(outcome: SweepOutcome, asked: Profile) -> str:
    """The answer in one line."""
    rows = outcome_rows(outcome, asked)
    best = outcome.winner
    if best is None:
        return winner_line(None, rows)
    shown = [row.facts.config for row in outcome.best if row.result is not None]
    if best.config not in shown:
        named = ", ".join(filter(None, [best.strategy, knobs_text(best.knobs)]))
        return f"{named}: {number(mean_capacity(best))} {_unit(asked)}"
    default_won = outcome.best_default is not None and outcome.best_default.config == best.config
    gain = None
    if outcome.gain is not None and not default_won and not unbounded(best, asked):
        gain = Gain(outcome.gain, *(outcome.gain_interval or (None, None)))
    line = winner_line(
        rows[shown.index(best.config)], rows, gain, inside_slo=len(asked.slo) > 0, unit=_unit(asked)
    )
    return line + ("; tuning did not help: these are the default knobs" if default_won else "")


def _unit(asked: Profile) -> str:
    return "req/s" if asked.search.objective == "capacity" else "tok/s"


def print_outcome(
    outcome: SweepOutcome, asked: Profile, console: Console, quiet: bool, ascii_only: bool
) -> None:
    """The answer, the table, why, and what did not make it into the table."""
    line = headline(outcome, asked)
    if outcome.interrupted:
        line += " (interrupted; this is what was measured)"
    rows = outcome_rows(outcome, asked)
    name = "capacity req/s" if asked.search.objective == "capacity" else "max tok/s"
    if rows:
        print_rows(console, rows, headline=line, rate_name=name, ascii_only=ascii_only, quiet=quiet)
    else:
        console.print(line, soft_wrap=True)
    for row in outcome.best:
        if row.result is None:
            where = "" if row.facts.oom else " at every rate tried"
            console.print(f"{row.facts.strategy}: {_found(row.facts)}{where}", soft_wrap=True)
    for line in caveats(outcome, asked):
        console.print(f"caution: {line}", soft_wrap=True)
    if quiet:
        return
    console.print()
    if outcome.binding:
        beyond = "more load is kept out by" if outcome.winner is not None else "nothing passes because of"
        console.print(f"binding constraint: {beyond} {outcome.binding}", soft_wrap=True)
    if outcome.best_random is not None:
        found, label = number(outcome.best_random.capacity), outcome.best_random.chosen.label
        console.print(f"random search found {found} with {label}", soft_wrap=True)
    console.print(f"{len(outcome.trials)} trials in {duration(outcome.elapsed_s)}", soft_wrap=True)


def outcome_json(outcome: SweepOutcome, asked: Profile) -> dict[str, Any]:
    """Everything, in plain JSON types."""

    def trial(facts: TrialFacts | None) -> dict[str, Any] | None:
        return None if facts is None else facts.to_json()

    return {
        "schema": SCHEMA,
        "headline": headline(outcome, asked),
        "objective": asked.search.objective,
        "slo": asked.slo.texts(),
        "winner": trial(outcome.winner),
        "best_default": trial(outcome.best_default),
        "best_random": trial(outcome.best_random),
        "gain": outcome.gain,
        "gain_interval": list(outcome.gain_interval) if outcome.gain_interval else None,
        "binding": outcome.binding,
        "caveats": caveats(outcome, asked),
        "interrupted": outcome.interrupted,
        "elapsed_s": outcome.elapsed_s,
        "best": [
            {
                "facts": trial(row.facts),
                "result": None if row.result is None else to_json_dict(row.result),
            }
            for row in outcome.best
        ],
        "trials": [facts.to_json() for facts in outcome.trials],
    }
