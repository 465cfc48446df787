"""The search over strategies and their knobs, from the first run to the answer."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunebatch.measure.result import RunResult
from tunebatch.tune.confirm import affordable, best_of_each, finalists, gain_over, mean_capacity
from tunebatch.tune.facts import MeasureFn, Objective, Sampler, SweepEvent, SweepOutcome, TableRow, TrialFacts
from tunebatch.tune.feature_gain import feature_gains
from tunebatch.tune.gauge import Settings
from tunebatch.tune.sweep import Sweep
from tunebatch.tune.trial import miss_of

__all__ = ["run_sweep"]

_SEARCH_SHARE = 0.6  # of the time; the rest is for the confirmation
_FALLBACKS = 3
_MOST_REPEATS = 5


def run_sweep(
    measure: MeasureFn,
    *,
    strategies: Sequence[str],
    features: Sequence[str] = (),
    ranges: Mapping[str, tuple[float, float]] | None = None,
    sampler: Sampler = "auto",
    directory: Path,
    objective: Objective = "capacity",
    start_rate: float | None = None,
    least_s: float = 0.0,
    max_trials: int | None = None,
    max_time_s: float | None = None,
    seed: int = 0,
    baseline_random: bool = False,
    confirm_top: int = 5,
    confirm_repeats: int = 2,
    tolerance: float = 0.05,
    max_slots: int | None = None,
    identity: Mapping[str, Any] | None = None,
    on_begin: Callable[[], None] = lambda: None,
    on_paced: Callable[[Mapping[str, float]], None] = lambda saturated: None,
    on_event: Callable[[SweepEvent], None] = lambda event: None,
    write_winner: Callable[[RunResult], None] | None = None,
) -> SweepOutcome:
    """Searches the configuration that serves the most.

    Defaults of every strategy are measured first, the fastest strategy's before the others, then smaller
    batches where a default met the SLO at no rate, then single features, then suggestions while the budget
    lasts, then the best are confirmed on fresh seeds. The directory holds everything that was measured:
    called again with it, the search goes on and measures nothing twice. Ctrl-C ends it and returns what there
    is.

    Args:
        measure: Serves the workload once.
        features: Searched with every strategy that is named with none of their group.
        ranges: The lowest and highest value of knobs, in place of the table's, see ``Space``.
        sampler: Who suggests the next trial, see ``sampler_of``.
        start_rate: Where to look for a capacity, requests per second; None estimates it from a short
            saturated run per strategy. For the throughput objective the rate at which the SLO is judged,
            or None.
        least_s: How long requests have to arrive in a run that tells a capacity, see ``least_duration_s``.
        max_trials: Configurations to measure, defaults included, earlier sessions included; the random
            baseline has as many again.
        max_time_s: Seconds for this session, confirmation included. No run is begun that would not end in
            time, going by the strategy's longest so far.
        confirm_top: How many of the best can win, as far as the time allows; the best of every strategy is
            measured on one fresh seed.
        confirm_repeats: Fresh seeds for those that can win; up to 5 while the time lasts, if it is limited.
        tolerance: How closely a capacity is confirmed, as a share.
        max_slots: Batch slots of the executor: no larger batch limit is tried, nor reported.
        identity: What else must not change between sessions, in JSON types.
        on_begin: Called once the directory is known to hold this sweep or none, before anything is measured.
        on_paced: Given the saturated rate of each strategy, requests per second, before any is searched;
            empty where the search does not begin there.
        write_winner: Given the winner's run; with its records if this session measured it.

    Raises:
        ValueError: No budget, or an impossible one.
        StrategyError: An unknown strategy or feature.
        SweepMismatchError: The directory holds a sweep with other settings.
        SweepInUseError: Another process is at work in the directory.
        ResultError, OSError: What was measured cannot be written; what was written before is intact.
        NotEnoughEvidenceError: The workload has too few requests for its SLO.
        DoesNotFitError: A request of the workload can never be served.
    """
    _check_budget(max_trials, max_time_s)
    from tunebatch.tune.journal_file import only_writer  # imports optuna

    began = time.monotonic()
    length = math.inf if max_time_s is None else max_time_s
    settings = Settings(
        strategies=tuple(dict.fromkeys(strategies)),
        objective=objective,
        start_rate=start_rate,
        least_s=least_s,
        max_trials=max_trials,
        seed=seed,
        tolerance=tolerance,
        max_slots=max_slots,
        began=began,
        end=began + length,
        identity=identity or {},
        features=tuple(features),
        ranges=dict(ranges or {}),
        sampler=sampler,
    )
    with only_writer(directory):
        sweep = Sweep(measure, directory, settings, on_event)
        on_begin()
        interrupted = False
        try:
            on_paced(sweep.glimpse())
            _search(sweep, began + length * _SEARCH_SHARE, baseline_random)
            _confirm(sweep, confirm_top, confirm_repeats)
        except KeyboardInterrupt:
            interrupted = True
        return _outcome(sweep, interrupted, write_winner)


def _check_budget(max_trials: int | None, max_time_s: float | None) -> None:
    if max_trials is None and max_time_s is None:
        raise ValueError("a sweep needs a budget: max_trials or max_time_s")
    if (max_trials is not None and max_trials < 1) or (max_time_s is not None and not max_time_s > 0.0):
        raise ValueError("a sweep's budget must be at least one trial and more than 0 seconds")


def _search(sweep: Sweep, until: float, baseline_random: bool) -> None:
    """The search, and the random one if it is wanted, in equal shares of the time."""
    began = sweep.settings.began
    sweep.search(began + (until - began) / (2.0 if baseline_random else 1.0))
    if not sweep.search_facts:  # an answer that nothing confirms is better than none
        sweep.search(sweep.settings.end)
    if baseline_random:
        sweep.random_baseline(until)


def _confirm(sweep: Sweep, top: int, repeats: int) -> None:
    """The finalists on several fresh seeds; the best of each strategy, and of the baseline, on the first."""
    end = sweep.settings.end
    left = list(sweep.search_facts)
    base_of = sweep.space.base_of
    rest = [*best_of_each(left, base_of), *best_of_each(sweep.random_facts, base_of)[:1]]
    for _ in range(_FALLBACKS):
        chosen = finalists(left, top)
        began = time.monotonic()
        if not sweep.confirm(chosen[:1], 0, end):
            return
        now = time.monotonic()
        others = {trial.config for trial in (*rest, *_feature_pairs(sweep))}
        others -= {trial.config for trial in chosen}
        chosen = finalists(left, affordable(top, len(others), repeats, now - began, end - now))
        if not sweep.confirm(chosen, 0, end):
            return
        if any(mean_capacity(sweep.with_confirmation(trial)) > 0.0 for trial in chosen):
            break
        left = [trial for trial in left if trial not in chosen]  # luck, all of them: the next best
    if not sweep.confirm([trial for trial in rest if trial.capacity > 0.0], 0, end):
        return
    for trial in rest:
        if trial.capacity == 0.0:
            sweep.show(trial)
    pairs = [trial for trial in _feature_pairs(sweep) if trial not in chosen]
    if sweep.confirm(pairs, 0, end):
        _confirm_again(sweep, chosen, pairs, repeats)


def _confirm_again(sweep: Sweep, chosen: list[TrialFacts], pairs: list[TrialFacts], repeats: int) -> None:
    """On further seeds, first who can win, then who tells what a feature is worth."""
    end, took = sweep.settings.end, 0.0
    many = len(chosen) + len(pairs) > 1 and not math.isinf(end)
    for repeat in range(1, max(repeats, _MOST_REPEATS) if many else repeats):
        began = time.monotonic()
        if repeat >= repeats and began + took > end:
            return
        if not sweep.confirm([*_turned(chosen, repeat), *_turned(pairs, repeat)], repeat, end):
            return
        took = time.monotonic() - began


def _turned(chosen: list[TrialFacts], repeat: int) -> list[TrialFacts]:
    """In turns from the first and from the last, so that a machine that slows down treats all alike."""
    return chosen if repeat % 2 == 0 else chosen[::-1]


def _feature_pairs(sweep: Sweep) -> list[TrialFacts]:
    """The trials that tell what features are worth to the winner so far, and serve anything."""
    winner = _winner([sweep.with_confirmation(trial) for trial in sweep.search_facts])
    told = feature_gains(winner, sweep.search_facts, sweep.space) if winner is not None else []
    pairs = {trial.config: trial for gain in told for trial in (gain.with_it, gain.without)}
    return [trial for trial in pairs.values() if trial.capacity > 0.0]


def _outcome(
    sweep: Sweep, interrupted: bool, write_winner: Callable[[RunResult], None] | None
) -> SweepOutcome:
    facts = [sweep.with_confirmation(trial) for trial in sweep.search_facts]
    random_facts = [sweep.with_confirmation(trial) for trial in sweep.random_facts]
    winner = _winner(facts, interrupted)
    # A default that was confirmed is compared before one that was not.
    defaults = [trial for trial in facts if trial.origin == "default"]
    sure = [trial for trial in defaults if trial.confirmed] or defaults
    best_default = min(sure, key=_rank, default=None)
    if best_default is not None and mean_capacity(best_default) <= 0.0:
        best_default = None
    gain, interval = None, None
    if winner is not None and best_default is not None:
        gain, interval = gain_over(winner, best_default, sweep.resolution(winner, best_default))
    best_random = max(random_facts, key=lambda trial: trial.capacity, default=None)
    random_gain = None
    if winner is not None and best_random is not None and best_random.confirmed:
        random_gain, _ = gain_over(winner, best_random, 0.0)
    first: dict[str, TrialFacts] = {}
    for trial in sorted(facts, key=_row_rank):
        first.setdefault(sweep.space.base_of(trial.strategy), trial)
    rows = [_row(sweep, trial) for trial in first.values()]
    told = winner or min(facts, key=_rank, default=None)
    if winner is not None and write_winner is not None:
        result = sweep.result_of(winner)
        if result is not None:
            write_winner(result)
    return SweepOutcome(
        trials=facts + random_facts,
        best=sorted(rows, key=lambda row: _rank(row.facts)),
        winner=winner,
        best_default=best_default,
        gain=gain,
        gain_interval=interval,
        binding=None if told is None else sweep.missed_by(told),
        best_random=best_random,
        random_gain=random_gain,
        interrupted=interrupted,
        kept=sweep.kept,
        elapsed_s=time.monotonic() - sweep.settings.began,
        foreign_cpu_share=sweep.runs.foreign_cpu_share,
        features=[] if winner is None else feature_gains(winner, facts, sweep.space, sweep.resolution),
    )


def _winner(facts: Sequence[TrialFacts], interrupted: bool = False) -> TrialFacts | None:
    """Only what a confirmation covered can win, of whichever session; where none was begun, or it was
    interrupted before it found any that serves, the best seen."""
    confirmed = [trial for trial in facts if trial.confirmed]
    if interrupted and all(mean_capacity(trial) <= 0.0 for trial in confirmed):
        confirmed = []
    best = min(confirmed or facts, key=_rank, default=None)
    return best if best is not None and mean_capacity(best) > 0.0 else None


def _row(sweep: Sweep, trial: TrialFacts) -> TableRow:
    result, missed = sweep.result_of(trial), sweep.missed_by(trial)
    if mean_capacity(trial) <= 0.0 and result is not None:
        missed = miss_of(result)  # what it says goes with the numbers beside it
    return TableRow(trial, result, missed)


def _rank(trial: TrialFacts) -> tuple[float, bool, float]:
    """Who ran and missed stands before who did not fit, whose objective is a guess."""
    return -mean_capacity(trial), trial.oom, -trial.objective


def _row_rank(trial: TrialFacts) -> tuple[bool, float, bool, float]:
    """Within a strategy a confirmed capacity stands before a lucky one; one that failed, behind."""
    return not (trial.confirmed and mean_capacity(trial) > 0.0), *_rank(trial)
