"""The search over strategies and their knobs, from the first run to the answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tunebatch.measure.result import RunResult
from tunebatch.tune.confirm import candidates, gain_over, mean_capacity
from tunebatch.tune.facts import MeasureFn, Objective, SweepEvent, SweepOutcome, TableRow, TrialFacts
from tunebatch.tune.sweep import Settings, Sweep

__all__ = ["run_sweep"]

_CONFIRM_ROUNDS = 3
_SEARCH_SHARE = 0.8  # of the time; the rest is for the confirmation


def run_sweep(
    measure: MeasureFn,
    *,
    strategies: Sequence[str],
    directory: Path,
    objective: Objective = "capacity",
    start_rate: float | None = None,
    max_trials: int | None = None,
    max_time_s: float | None = None,
    seed: int = 0,
    baseline_random: bool = False,
    confirm_top: int = 3,
    confirm_repeats: int = 2,
    tolerance: float = 0.05,
    on_event: Callable[[SweepEvent], None] = lambda event: None,
    write_winner: Callable[[RunResult], None] | None = None,
) -> SweepOutcome:
    """Searches the configuration that serves the most.

    Defaults of every strategy are measured first, then suggestions while the budget lasts, then the best are
    confirmed on fresh seeds. The directory holds everything that was measured: called again with it, the
    search goes on and measures nothing twice. Ctrl-C ends it and returns what there is.

    Args:
        measure: Serves the workload once: strategy, rate in requests per second (None: all at once, or a
            workload without a rate), seed, whether to stop early once the SLO is certainly missed.
        start_rate: Where to look for a capacity, requests per second; None estimates it from one saturated
            run per strategy. For the throughput objective the rate at which the SLO is judged, or None.
        max_trials: Configurations to measure, defaults included, earlier sessions included; the random
            baseline has as many again.
        max_time_s: Seconds for this session; a fifth of it is left for the confirmation. A trial that has
            begun is finished.
        confirm_repeats: Fresh seeds, each with every candidate.
        tolerance: How closely a capacity is found, as a share.
        write_winner: Given the winner's run; with its records if this session measured it.

    Raises:
        ValueError: No budget, or an impossible one.
        StrategyError: An unknown strategy.
        SweepMismatchError: The directory holds a sweep with other settings.
        SweepInUseError: Another process is at work in the directory.
        ResultError, OSError: What was measured cannot be written; what was written before is intact.
        NotEnoughEvidenceError: The workload has too few requests for its SLO.
        DoesNotFitError: A request of the workload can never be served.
    """
    if max_trials is None and max_time_s is None:
        raise ValueError("a sweep needs a budget: max_trials or max_time_s")
    if (max_trials is not None and max_trials < 1) or (max_time_s is not None and not max_time_s > 0.0):
        raise ValueError("a sweep's budget must be at least one trial and more than 0 seconds")
    from tunebatch.tune.journal_file import only_writer  # imports optuna

    began = time.monotonic()
    settings = Settings(
        tuple(dict.fromkeys(strategies)), objective, start_rate, max_trials, seed, tolerance, began
    )
    with only_writer(directory):
        sweep = Sweep(measure, directory, settings, on_event)
        interrupted = False
        try:
            sweep.estimate_rates()
            share = _SEARCH_SHARE / (2.0 if baseline_random else 1.0)
            sweep.search(None if max_time_s is None else began + share * max_time_s)
            if baseline_random:
                sweep.random_baseline(None if max_time_s is None else began + _SEARCH_SHARE * max_time_s)
            _confirm(sweep, confirm_top, confirm_repeats)
        except KeyboardInterrupt:
            interrupted = True
        return _outcome(sweep, interrupted, write_winner)


def _confirm(sweep: Sweep, top: int, repeats: int) -> None:
    """The best, and the next best where none of them holds on fresh seeds."""
    left = list(sweep.search_facts)
    for _ in range(_CONFIRM_ROUNDS):
        chosen = candidates(left, top)
        sweep.confirm(chosen, repeats)
        if any(mean_capacity(sweep.with_confirmation(trial)) > 0.0 for trial in chosen):
            return
        left = [trial for trial in left if trial not in chosen]


def _outcome(
    sweep: Sweep, interrupted: bool, write_winner: Callable[[RunResult], None] | None
) -> SweepOutcome:
    facts = [sweep.with_confirmation(trial) for trial in sweep.search_facts]
    random_facts = sweep.random_facts
    confirmed = [trial for trial in facts if trial.confirmed]
    # Only what the confirmation covered can win; when interrupted, the best seen.
    ranked = sorted(facts if interrupted or not confirmed else confirmed, key=_rank)
    winner = ranked[0] if ranked and mean_capacity(ranked[0]) > 0.0 else None
    # A default that was confirmed is compared before one that was not.
    defaults = [trial for trial in facts if trial.origin == "default"]
    sure = [trial for trial in defaults if trial.confirmed] or defaults
    best_default = min(sure, key=_rank, default=None)
    if best_default is not None and mean_capacity(best_default) <= 0.0:
        best_default = None
    gain, interval = None, None
    if winner is not None and best_default is not None:
        gain, interval = gain_over(winner, best_default, sweep.resolution(winner, best_default))
    first: dict[str, TrialFacts] = {}
    for trial in sorted(facts, key=_row_rank):
        first.setdefault(trial.strategy, trial)
    rows = [TableRow(trial, sweep.result_of(trial)) for trial in first.values()]
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
        binding=None if told is None else sweep.binding_of(told),
        best_random=max(random_facts, key=lambda trial: trial.capacity, default=None),
        interrupted=interrupted,
        elapsed_s=time.monotonic() - sweep.settings.began,
    )


def _rank(trial: TrialFacts) -> tuple[float, float]:
    return -mean_capacity(trial), -trial.objective


def _row_rank(trial: TrialFacts) -> tuple[bool, float, float]:
    """Within a strategy a confirmed capacity stands before a lucky one; one that failed, behind."""
    return not (trial.confirmed and mean_capacity(trial) > 0.0), *_rank(trial)
