"""What a sweep's screen says of one trial, while it runs and at its end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tunebatch.cli.sweep_margin import is_recorded
from tunebatch.measure.limits import format_duration
from tunebatch.profile_knobs import range_text
from tunebatch.report.rows import duration, number, short_knobs
from tunebatch.report.speculation import marked

if TYPE_CHECKING:
    from tunebatch.engine.strategies import Strategy
    from tunebatch.profile import Profile
    from tunebatch.profile_sections import SearchSection
    from tunebatch.tune.facts import Miss, TrialFacts


def unit_of(asked: Profile) -> str:
    return "req/s" if asked.search.objective == "capacity" else "tok/s"


def search_lines(search: SearchSection) -> list[str]:
    """The ranges that were chosen, and the sampler, where it was; a line each."""
    lines = [
        f"knob {name}: {range_text(name, low, high)}{' only' if low == high else ''}"
        for name, (low, high) in search.knobs.items()
    ]
    return lines if search.sampler == "auto" else [*lines, f"sampler: {search.sampler}"]


def strategy_text(chosen: Strategy, asked: Profile) -> str:
    """The strategy, marked where its acceptance is drawn."""
    return marked(chosen.name, chosen.drafter is not None and bool(asked.model.acceptance))


def short_text(trial: TrialFacts, asked: Profile) -> str:
    return f"{strategy_text(trial.chosen, asked)}  {short_knobs(trial.chosen.shown_knobs)}".rstrip()


def found_text(trial: TrialFacts, asked: Profile) -> str:
    unit = unit_of(asked)
    if trial.oom:
        return f"out of {trial.binding}"
    if trial.confirmed:
        again = "repeated on the same trace" if is_recorded(asked) else "on fresh seed"
        return f"{number(trial.confirmed[-1])} {unit} {again} {len(trial.confirmed)}"
    if not trial.met:
        return missed_text(trial.missed)
    if trial.coarse:
        return f"{number(trial.capacity)} {unit} or a little more"
    return f"{number(trial.capacity)} {unit}"


def missed_text(miss: Miss | None) -> str:
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
