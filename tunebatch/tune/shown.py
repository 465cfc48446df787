"""The run that stands for a configuration in the table: what it does at its capacity, or instead of one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tunebatch.measure.result import RunResult
from tunebatch.tune.facts import Objective, TrialFacts
from tunebatch.tune.runs import Runs

__all__ = ["Shown"]


@dataclass(frozen=True, slots=True)
class _Best:
    config: str
    capacity: float
    result: RunResult


class Shown:
    """Each strategy's best run of this session with its records; the others are on disk without.

    Args:
        offered_rate: Where a throughput was judged; None: in the saturated run.
        seed: Of the search.
        base_of: The strategy that one is a variant of, see ``Space.base_of``.
    """

    def __init__(
        self,
        runs: Runs,
        objective: Objective,
        offered_rate: float | None,
        seed: int,
        base_of: Callable[[str], str],
    ) -> None:
        self._runs = runs
        self._objective = objective
        self._offered_rate = offered_rate
        self._seed = seed
        self._base_of = base_of
        self._best: dict[str, _Best] = {}

    def keep(self, trial: TrialFacts, result: RunResult) -> None:
        """Remembers the run at the trial's capacity, if that is the strategy's best."""
        base = self._base_of(trial.strategy)
        best = self._best.get(base)
        if best is None or trial.capacity > best.capacity:
            self._best[base] = _Best(trial.config, trial.capacity, result)

    def measure(self, trial: TrialFacts) -> None:
        """One whole run of a configuration that was never sustained, to show what it does."""
        if self._objective == "capacity" and trial.rates:
            result = self._runs(trial.chosen, trial.rates[0][0], self._seed)
            self._best[self._base_of(trial.strategy)] = _Best(trial.config, 0.0, result)

    def of(self, trial: TrialFacts) -> RunResult | None:
        """The trial's run in the search; None when it has none, being out of memory."""
        best = self._best.get(self._base_of(trial.strategy))
        if best is not None and best.config == trial.config:
            return best.result
        chosen, seed = trial.chosen, self._seed
        if self._objective == "throughput":
            return self._runs.recall(chosen, self._offered_rate, seed)
        if trial.capacity > 0.0:
            return self._runs.recall(chosen, trial.capacity, seed, stop_early=True)
        return self._missing(trial)

    def _missing(self, trial: TrialFacts) -> RunResult | None:
        """The whole run, if there was time for one; else the one that ``trial.missed`` tells about, which
        ended as soon as it had missed."""
        if not trial.rates:
            return None
        whole = self._runs.recall(trial.chosen, trial.rates[0][0], self._seed)
        if whole is not None:
            return whole
        lowest = min(rate for rate, _ in trial.rates)
        return self._runs.recall(trial.chosen, lowest, self._seed, stop_early=True)
