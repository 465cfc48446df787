"""What a sweep says while it runs and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.cli.sweep_margin import is_recorded, margin_lines, margin_rate, unsure
from tunebatch.engine.knobs import MAX_BATCH_SIZE
from tunebatch.measure.limits import format_duration
from tunebatch.measure.result import to_json_dict
from tunebatch.measure.telemetry.cautions import NOISY_SHARE
from tunebatch.report.device import caution_lines
from tunebatch.report.rows import Row, clock_time, duration, knobs_text, number, short_knobs
from tunebatch.report.screen import print_rows
from tunebatch.report.sentence import Gain, winner_line
from tunebatch.report.why import hung_up_text, reason
from tunebatch.tune.confirm import mean_capacity
from tunebatch.tune.space import Space
from tunebatch.tune.trial import HUNG_UP

if TYPE_CHECKING:
    from rich.console import Console

    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.tune.facts import Miss, SweepEvent, SweepOutcome, TrialFacts

SCHEMA = "tunebatch.sweep.v1"
_PHASES = {
    "start": "saturate",
    "search": "search",
    "random": "random",
    "confirm": "confirm",
}


class Watcher:
    """Turns the sweep's events into progress: a line per finished trial, and on a terminal what goes on."""

    def __init__(self, progress: Progress, asked: Profile) -> None:
        self._progress = progress
        self._asked = asked
        self._unit = _unit(asked)
        self._phase = ""

    def __call__(self, event: SweepEvent) -> None:
        if event.phase != self._phase:
            self._phase = event.phase
            if not self._progress.live:
                self._progress.note(f"{_PHASES[event.phase]}{self._left(event)}")
        if event.error is not None:
            self._progress.note(f"{_trial(event)}failed: {event.error}")
        elif event.done is not None:
            self._progress.note(f"{_trial(event)}{_found(event.done, self._asked)}")
        elif self._progress.live:
            self._progress.status(*self._lines(event))

    def _lines(self, event: SweepEvent) -> list[str]:
        of = "" if event.total is None else f" of {event.total}"
        best = "none yet"
        if event.best is not None:
            best = f"{number(mean_capacity(event.best))} {self._unit}  {_short(event.best)}"
        return [
            f"{_PHASES[event.phase]:<8} {event.trial}{of}{self._left(event)}",
            f"now      {event.chosen.name}  {short_knobs(event.chosen.shown_knobs)}",
            f"best     {best}",
        ]

    def _left(self, event: SweepEvent) -> str:
        left = "" if event.left_s is None else f", about {clock_time(event.left_s)} left"
        return f"  {clock_time(event.elapsed_s)}{left}"


def _trial(event: SweepEvent) -> str:
    number_ = "" if event.phase == "confirm" else f"{event.trial:>3}"
    return f"{number_:<3}  {event.chosen.name:<11} {short_knobs(event.chosen.shown_knobs):<34} "


def _short(trial: TrialFacts) -> str:
    return f"{trial.strategy}  {short_knobs(trial.chosen.shown_knobs)}".rstrip()


def _found(trial: TrialFacts, asked: Profile) -> str:
    unit = _unit(asked)
    if trial.oom:
        return f"out of {trial.binding}"
    if trial.confirmed:
        again = "repeated on the same trace" if is_recorded(asked) else "on fresh seed"
        return f"{number(trial.confirmed[-1])} {unit} {again} {len(trial.confirmed)}"
    if not trial.met:
        return _missed(trial.missed)
    if trial.coarse:
        return f"{number(trial.capacity)} {unit} or a little more"
    return f"{number(trial.capacity)} {unit}"


def _missed(miss: Miss | None) -> str:
    """``p90_ttft over 500ms at 24.1 req/s``, or with the value where the run went to its end."""
    if miss is None:
        return "misses the SLO"
    at = "" if miss.rate_per_s is None else f" at {number(miss.rate_per_s)} req/s"
    if miss.hung_up and miss.limit_s is not None:
        at += f", where {miss.hung_up} client{'s' if miss.hung_up != 1 else ''} hung up"
    if miss.limit_s is None:
        return f"{miss.limit}{at}"
    limit = format_duration(miss.limit_s)
    if miss.observed_s is None or miss.observed_s <= miss.limit_s:
        return f"{miss.limit} over {limit}{at}"
    return f"{miss.limit} {duration(miss.observed_s)} of {limit}{at}"


def outcome_rows(outcome: SweepOutcome, asked: Profile) -> list[Row]:
    """A row for each strategy that has a run to show."""
    confirmed = any(best.facts.confirmed for best in outcome.best)
    return [
        Row(
            best.result,
            _rate(best.facts, asked),
            best.facts.origin != "default",
            beyond=_missed(best.missed) if best.missed is not None else "",
            unconfirmed=confirmed and not best.facts.confirmed and best.facts.capacity > 0.0,
        )
        for best in outcome.best
        if best.result is not None
    ]


def unbounded(facts: TrialFacts, missed: Miss | None, asked: Profile) -> bool:
    """No rate was too high, neither for the search nor for the confirmation, which ``missed`` tells of."""
    if asked.search.objective != "capacity" or missed is not None:
        return False
    return facts.met and bool(facts.rates) and all(met for _, met in facts.rates)


def _rate(facts: TrialFacts, asked: Profile) -> float | None:
    return mean_capacity(facts) or None


def caveats(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """What keeps the answer from being believed, and what to do about it."""
    found = _unmeasured(outcome, asked)
    found += [
        f"{best.facts.strategy}: no rate missed the SLO, so its capacity is at least what is shown: "
        "use more --time, more --requests or a tighter --slo"
        for best in outcome.best
        if unbounded(best.facts, best.missed, asked)
    ]
    if outcome.winner is not None and not outcome.winner.confirmed:
        done = "repeated on the same trace" if is_recorded(asked) else "confirmed on a fresh seed"
        found.append(f"the winner was not {done}: give it more --time")
    if outcome.winner is not None:
        found += unsure(outcome, asked)
        found += _on_the_edge(outcome.winner, asked)
    if (gone := hung_up_text(outcome_rows(outcome, asked))) is not None:
        found.append(gone)
    found += caution_lines(outcome_rows(outcome, asked), of_gpu_only=True)
    share = outcome.foreign_cpu_share
    if share is not None and share > NOISY_SHARE:
        found.append(
            f"other programs took up to {100 * share:.0f} % of the processor during a run, so capacities may "
            "be too low: repeat it on a quiet machine"
        )
    return found


def _on_the_edge(winner: TrialFacts, asked: Profile) -> list[str]:
    """Knobs that may be better still beyond what was searched; one sequence at a time is no such edge."""
    found = []
    for knob in Space([winner.strategy], asked.device.max_slots).knobs_of(winner.strategy):
        value = winner.knobs[knob.name]
        if value == knob.high:
            more = f"tunebatch run {winner.strategy} --set {knob.name}={2 * value:g} tries more"
            if knob.name == MAX_BATCH_SIZE.name:
                more = (
                    f"more batch slots, as with TUNEBATCH_DEVICE_MAX_SLOTS={2 * value:g}, let more be tried"
                )
            found.append(f"{knob.name} {value:g} is the largest that was tried: {more}")
        elif value == knob.low > 1 or (value == knob.low and not knob.integer):
            less = f"tunebatch run {winner.strategy} --set {knob.name}={value / 2:g} tries less"
            found.append(f"{knob.name} {value:g} is the least that was tried: {less}")
    return found


def _unmeasured(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """Strategies without a finished trial, which nothing else on the screen would name."""
    if outcome.interrupted:  # the answer says that it is not the whole one
        return []
    measured = {best.facts.strategy for best in outcome.best}
    spent = sum(trial.origin != "random" for trial in outcome.trials) >= asked.search.trials
    ended, more = ("the trials were used up", "--trials") if spent else ("the time was up", "--time")
    return [
        f"{name}: {ended} before it was measured: give it more {more}"
        for name in asked.search.strategies
        if name not in measured
    ]


def headline(outcome: SweepOutcome, asked: Profile) -> str:
    """The answer in one line."""
    rows = outcome_rows(outcome, asked)
    best = outcome.winner
    if best is None:
        return winner_line(None, rows, rates_tried=asked.search.objective == "capacity")
    shown = [row.facts.config for row in outcome.best if row.result is not None]
    if best.config not in shown:
        named = ", ".join(filter(None, [best.strategy, knobs_text(best.chosen.shown_knobs)]))
        return f"{named}: {number(mean_capacity(best))} {_unit(asked)}"
    default_won = outcome.best_default is not None and outcome.best_default.config == best.config
    gain = None
    if outcome.gain is not None and not default_won and not unbounded(best, outcome.binding, asked):
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
        won = outcome.winner.strategy if outcome.winner is not None else None
        print_rows(
            console,
            rows,
            headline=line,
            winner=next((row for row in rows if row.strategy == won), None),
            rate_name=name,
            ascii_only=ascii_only,
            quiet=quiet,
        )
    else:
        console.print(line)
    for best in outcome.best:
        if best.result is None:
            console.print(f"{best.facts.strategy}: {_found(best.facts, asked)}")
    if not quiet:
        console.print()
        for told in (*conclusions(outcome, asked), *_effort(outcome, asked)):
            console.print(told)
    for told in caveats(outcome, asked):
        console.print(f"caution: {told}")


def conclusions(outcome: SweepOutcome, asked: Profile) -> list[str]:
    """What binds, and what searching was worth, in words."""
    told = []
    miss, winner = outcome.binding, outcome.winner
    if miss is not None:
        why = f": {reason(miss.limit)}" if reason(miss.limit) else ""
        because = "because" if miss.limit == HUNG_UP else "because of"
        who = f"{winner.strategy} takes no more {because}" if winner is not None else "nothing passes:"
        told.append(f"{who} {_missed(miss)}{why}")
    told += margin_lines(outcome, asked)
    best = outcome.best_random
    if best is not None:
        found = f"random search found {number(mean_capacity(best))} {_unit(asked)} with {_short(best)}"
        if outcome.random_gain is not None:
            found += f"; the winner has {number(outcome.random_gain)}x that"
        told.append(found)
    return told


def _effort(outcome: SweepOutcome, asked: Profile) -> list[str]:
    repeats = len(outcome.winner.confirmed) if outcome.winner is not None else 0
    many = "s" if repeats != 1 else ""
    how = f"confirmed on {repeats} fresh seed{many}"
    if is_recorded(asked):
        how = f"repeated on the same trace {repeats} time{many}"
    on = f", the winner {how}" if repeats else ""
    slo = f" inside {', '.join(asked.slo.texts())}" if len(asked.slo) else ""
    return [f"{len(outcome.trials)} configurations{slo} in {clock_time(outcome.elapsed_s)}{on}"]


def outcome_json(outcome: SweepOutcome, asked: Profile) -> dict[str, Any]:
    """Everything, in plain JSON types."""

    def trial(facts: TrialFacts | None) -> dict[str, Any] | None:
        return None if facts is None else facts.to_json()

    miss = outcome.binding
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
        "random_gain": outcome.random_gain,
        "margin_rate_per_s": margin_rate(outcome, asked),
        "binding": None if miss is None else miss.limit,
        "why": conclusions(outcome, asked),
        "caveats": caveats(outcome, asked),
        "interrupted": outcome.interrupted,
        "elapsed_s": outcome.elapsed_s,
        "foreign_cpu_share": outcome.foreign_cpu_share,
        "best": [
            {
                "facts": trial(row.facts),
                "confirmed": bool(row.facts.confirmed),
                "result": None if row.result is None else to_json_dict(row.result),
            }
            for row in outcome.best
        ],
        "trials": [facts.to_json() for facts in outcome.trials],
    }
