"""What a sweep says at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunebatch.cli.sweep_features import feature_lines
from tunebatch.cli.sweep_margin import is_recorded, margin_lines, unsure
from tunebatch.cli.sweep_words import found_text, missed_text, short_text, strategy_text, unit_of
from tunebatch.engine.knobs import MAX_BATCH_SIZE
from tunebatch.measure.telemetry.cautions import NOISY_SHARE
from tunebatch.report.conditions import common_conditions
from tunebatch.report.device import caution_lines
from tunebatch.report.rows import Row, clock_time, knobs_text, number, short_knobs
from tunebatch.report.screen import print_rows
from tunebatch.report.sentence import Gain, winner_line
from tunebatch.report.why import hung_up_text, reason
from tunebatch.tune.confirm import mean_capacity
from tunebatch.tune.space import Space
from tunebatch.tune.trial import HUNG_UP

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from tunebatch.profile import Profile
    from tunebatch.tune.facts import Miss, SweepOutcome, TrialFacts


def outcome_rows(outcome: SweepOutcome, asked: Profile) -> list[Row]:
    """A row for each strategy that has a run to show."""
    confirmed = any(best.facts.confirmed for best in outcome.best)
    return [
        Row(
            best.result,
            _rate(best.facts, asked),
            best.facts.origin != "default",
            beyond=missed_text(best.missed) if best.missed is not None else "",
            at_least=unbounded(best.facts, best.missed, asked),
            unconfirmed=confirmed and not best.facts.confirmed and best.facts.capacity > 0.0,
        )
        for best in outcome.best
        if best.result is not None
    ]


def winner_row(outcome: SweepOutcome, rows: Sequence[Row]) -> Row | None:
    """The winner's among the rows."""
    won = outcome.winner.strategy if outcome.winner is not None else None
    return next((row for row in rows if row.strategy == won), None)


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
        f"{strategy_text(best.facts.chosen, asked)}: no rate missed the SLO, so its capacity is at least "
        "what is shown: use more --time, more --requests or a tighter --slo"
        for best in outcome.best
        if unbounded(best.facts, best.missed, asked)
    ]
    if outcome.winner is not None:
        found += _unconfirmed(outcome, outcome.winner, asked)
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


def _unconfirmed(outcome: SweepOutcome, winner: TrialFacts, asked: Profile) -> list[str]:
    """The winner; or who came before it in the search, and may only have been lucky there."""
    done = "repeated on the same trace" if is_recorded(asked) else "confirmed on a fresh seed"
    if not winner.confirmed:
        return [f"the winner was not {done}: give it more --time"]
    lucky = [one for one in outcome.trials if not one.confirmed and one.origin != "random"]
    best = max(lucky, key=lambda one: one.capacity, default=winner)
    if best.capacity <= winner.capacity:
        return []
    rival = ", ".join(filter(None, [strategy_text(best.chosen, asked), short_knobs(best.chosen.shown_knobs)]))
    return [
        f"{rival} seemed better in the search, {number(best.capacity)} {unit_of(asked)} to the winner's "
        f"{number(winner.capacity)} there, but was not {done}: give it more --time"
    ]


def _on_the_edge(winner: TrialFacts, asked: Profile) -> list[str]:
    """Knobs that may be better still beyond what was searched; one sequence at a time is no such edge."""
    found = []
    slots = asked.device.max_slots
    for knob in Space([winner.strategy], slots, ranges=asked.search.knobs).knobs_of(winner.strategy):
        value = winner.knobs[knob.name]
        if knob.low == knob.high:
            continue  # pinned, not tried
        if value == knob.high:
            more = f"tunebatch run {winner.strategy} --set {knob.name}={2 * value:g} tries more"
            if knob.name == MAX_BATCH_SIZE.name and value == slots:
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
    base_of = Space(asked.search.strategies, features=asked.search.features).base_of
    measured = {base_of(best.facts.strategy) for best in outcome.best}
    spent = _trials_spent(outcome, asked)
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
        named = ", ".join(
            filter(None, [strategy_text(best.chosen, asked), knobs_text(best.chosen.shown_knobs)])
        )
        return f"{named}: {number(mean_capacity(best))} {unit_of(asked)}"
    default_won = outcome.best_default is not None and outcome.best_default.config == best.config
    gain = None
    if outcome.gain is not None and not default_won and not unbounded(best, outcome.binding, asked):
        gain = Gain(outcome.gain, *(outcome.gain_interval or (None, None)))
    row = rows[shown.index(best.config)]
    line = winner_line(row, rows, gain, inside_slo=len(asked.slo) > 0, unit=unit_of(asked))
    if default_won:
        line += default_told(best, outcome, asked)
    return line + _rivals(row, rows)


def default_told(best: TrialFacts, outcome: SweepOutcome, asked: Profile) -> str:
    """What it says about other knobs that the defaults won; nothing where none could be tried."""
    space = Space([best.strategy], asked.device.max_slots, ranges=asked.search.knobs)
    if all(knob.low == knob.high for knob in space.knobs_of(best.strategy)):
        return ""
    same = [trial for trial in outcome.trials if trial.chosen.policy == best.chosen.policy]
    if any(trial.knobs != best.knobs for trial in same):
        return "; tuning did not help: these are the default knobs"
    lacked = "were no trials left" if _trials_spent(outcome, asked) else "was no time"
    return f"; these are the default knobs, and there {lacked} to try others"


def _trials_spent(outcome: SweepOutcome, asked: Profile) -> bool:
    return sum(trial.origin != "random" for trial in outcome.trials) >= asked.search.trials


def _rivals(winner: Row, rows: Sequence[Row]) -> str:
    """Those that may serve more than the winner, as nobody saw how much they do."""
    open_ended = [f"{row.name} (at least {number(row.rate_per_s)})" for row in rows if row.at_least]
    if winner.at_least or not open_ended:
        return ""
    return f"; but the time was too short to see where {' and '.join(open_ended)} ends"


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
        print_rows(
            console,
            rows,
            headline=line,
            winner=winner_row(outcome, rows),
            rate_name=name,
            notes=common_conditions(row.result.conditions for row in rows),
            ascii_only=ascii_only,
            quiet=quiet,
        )
    else:
        console.print(line)
    for best in outcome.best:
        if best.result is None:
            console.print(f"{strategy_text(best.facts.chosen, asked)}: {found_text(best.facts, asked)}")
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
        who = (
            f"{strategy_text(winner.chosen, asked)} takes no more {because}"
            if winner is not None
            else "nothing passes:"
        )
        told.append(f"{who} {missed_text(miss)}{why}")
    told += margin_lines(outcome, asked)
    told += feature_lines(outcome, asked)
    best = outcome.best_random
    if best is not None:
        rate, chosen = number(mean_capacity(best)), short_text(best, asked)
        found = f"random search found {rate} {unit_of(asked)} with {chosen}"
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
    trials = "1 configuration" if len(outcome.trials) == 1 else f"{len(outcome.trials)} configurations"
    return [f"{trials}{slo} in {clock_time(outcome.elapsed_s)}{on}"]
