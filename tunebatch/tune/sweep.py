"""The stages of a search: start rates, the search itself, its random rival, the confirmation."""

from __future__ import annotations

import dataclasses
import math
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebatch.bench import DoesNotFitError
from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.result import ResultError, RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError
from tunebatch.tune.confirm import Confirmation, mean_capacity
from tunebatch.tune.facts import MeasureFn, Objective, Origin, Phase, SweepEvent, TrialFacts
from tunebatch.tune.journal import Journal, StudyLog, gp_sampler, random_sampler
from tunebatch.tune.space import Space, distance
from tunebatch.tune.trial import Measured, binding_limit, facts_of, measure_config, out_of_memory

if TYPE_CHECKING:
    import optuna

__all__ = ["Settings", "Sweep"]

_SATURATED_SHARE = 0.7  # an open loop inside an SLO sustains less than the saturated rate
_WARM_STEP = 1.25  # a neighbour's capacity is a good start
_MAX_RUNS = 10
_CONFIRM_STEP, _CONFIRM_START, _CONFIRM_TOLERANCE = 1.1, 0.98, 0.03
_MAX_REPEATS = 20  # in a row: the space holds nothing new
_MAX_FAILURES = 3  # in a row: not bad luck


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; see ``run_sweep``. ``began`` is on the monotonic clock, seconds."""

    strategies: tuple[str, ...]
    objective: Objective
    start_rate: float | None
    max_trials: int | None
    seed: int
    tolerance: float
    began: float


class Sweep:
    """One search in one directory."""

    def __init__(
        self,
        measure: MeasureFn,
        directory: Path,
        settings: Settings,
        on_event: Callable[[SweepEvent], None],
    ) -> None:
        self._measure = measure
        self.settings = settings
        self._on_event = on_event
        self._space = Space(settings.strategies)
        fixed: dict[str, object] = {
            "strategies": list(settings.strategies),
            "objective": settings.objective,
            "seed": settings.seed,
        }
        if settings.objective == "throughput":
            fixed["start_rate"] = settings.start_rate
        self._journal = Journal(directory, self._space, fixed)
        self._results: dict[str, RunResult] = {}
        self._confirmations: dict[str, list[Confirmation]] = {}
        self._search: StudyLog | None = None
        self._random: StudyLog | None = None

    @property
    def search_facts(self) -> list[TrialFacts]:
        return self._search.facts if self._search is not None else []

    @property
    def random_facts(self) -> list[TrialFacts]:
        return self._random.facts if self._random is not None else []

    def estimate_rates(self) -> None:
        """One saturated run per strategy, where a capacity is searched and nobody said where."""
        if self.settings.objective != "capacity" or self.settings.start_rate is not None:
            return
        names = self._space.names
        for index, name in enumerate(names):
            chosen = strategy(name)
            key = f"saturated:{name}"
            if self._journal.recall(key) is not None:
                continue
            self._tell("start", index + 1, len(names), chosen)
            try:
                rate = self._measure(chosen, None, self.settings.seed, False).metrics.request_throughput
            except OutOfDeviceMemoryError:
                rate = 0.0
            self._journal.remember(key, rate)

    def search(self, deadline: float | None) -> None:
        """The defaults, then what the sampler suggests."""
        self._search = StudyLog(self._journal, "search", self._gp, self._space.defaults())
        self._loop(self._search, "search", self.settings.max_trials, deadline)

    def random_baseline(self, deadline: float | None) -> None:
        """As many random trials as the search has, the same defaults included."""
        self._random = StudyLog(
            self._journal,
            "random",
            lambda offset: random_sampler(self.settings.seed + offset),
            self._space.defaults(),
        )
        self._loop(self._random, "random", len(self.search_facts), deadline)

    def confirm(self, chosen: Sequence[TrialFacts], repeats: int) -> None:
        """Measures the candidates again, in turns, one fresh seed per turn, the order reversed every time."""
        total = len(chosen) * repeats
        done = 0
        for repeat in range(repeats):
            for trial in chosen if repeat % 2 == 0 else reversed(chosen):
                done += 1
                self._tell("confirm", done, total, trial.chosen)
                found = self._confirm_once(trial, self.settings.seed + 1 + repeat)
                self._confirmations.setdefault(trial.config, []).append(found)

    def with_confirmation(self, trial: TrialFacts) -> TrialFacts:
        found = self._confirmations.get(trial.config, ())
        return dataclasses.replace(trial, confirmed=tuple(item.value for item in found))

    def resolution(self, *trials: TrialFacts) -> float:
        """The coarsest of the confirmations' resolutions, as a logarithm."""
        found = [item.resolution for trial in trials for item in self._confirmations.get(trial.config, ())]
        return max(found, default=0.0)

    def result_of(self, trial: TrialFacts) -> RunResult | None:
        """The run that shows the trial's capacity, the newest there is."""
        for item in reversed(self._confirmations.get(trial.config, [])):
            if item.result is not None:
                return item.result
        return self._results.get(trial.config) or self._journal.kept_result(trial.config)

    def binding_of(self, trial: TrialFacts) -> str | None:
        found = [item.binding for item in self._confirmations.get(trial.config, ()) if item.binding]
        return found[-1] if found else trial.binding

    def _gp(self, offset: int) -> optuna.samplers.BaseSampler:
        return gp_sampler(self.settings.seed + offset, len(self._space.names), self.settings.max_trials)

    def _loop(self, log: StudyLog, phase: Phase, budget: int | None, deadline: float | None) -> None:
        rng = random.Random(self.settings.seed + len(log.study.trials))
        repeats = failures = 0
        while repeats < _MAX_REPEATS and (budget is None or log.num_done < budget):
            if deadline is not None and time.monotonic() >= deadline:
                break
            trial, chosen = log.ask()
            origin: Origin = trial.user_attrs.get("origin", "search")
            if phase == "random":
                origin = "random"
            repeats = repeats + 1 if log.is_repeat(chosen) else 0
            facts = log.known(chosen)
            error: str | None = None
            if facts is None:
                self._tell(phase, log.num_done + 1, budget, chosen)
                try:
                    facts = self._measure_trial(trial.number, origin, chosen)
                    failures = 0
                except (OSError, ResultError):
                    raise  # nor can the journal be written; a trial left running is repeated on resuming
                except (KeyboardInterrupt, NotEnoughEvidenceError, DoesNotFitError):
                    log.fail(trial, again=True)
                    raise
                except Exception as problem:
                    failures += 1
                    log.fail(trial, again=False)
                    if failures >= _MAX_FAILURES:
                        raise
                    error = f"{type(problem).__name__}: {problem}".splitlines()[0]
            else:
                facts = dataclasses.replace(facts, number=trial.number, origin=origin)
            if facts is not None:
                log.tell(trial, facts)
            if repeats:
                log.after_repeat(rng)
            else:
                self._tell(phase, log.num_done, budget, chosen, facts, error)

    def _measure_trial(self, number: int, origin: Origin, chosen: Strategy) -> TrialFacts:
        rate, step = self._start(chosen)
        try:
            measured = measure_config(
                self._measure,
                chosen,
                objective=self.settings.objective,
                rate=rate,
                seed=self.settings.seed,
                tolerance=self.settings.tolerance,
                max_runs=_MAX_RUNS,
                first_step=step,
            )
        except OutOfDeviceMemoryError as error:
            return out_of_memory(number, origin, chosen, self._pessimistic(), error)
        facts = facts_of(measured, number, origin, chosen)
        if measured.result is not None:
            self._results[facts.config] = measured.result
            self._journal.keep_result(facts.config, measured.result)
        return facts

    def _confirm_once(self, trial: TrialFacts, seed: int) -> Confirmation:
        key = f"confirm:{trial.config}:{seed}"
        stored = self._journal.recall(key)
        if stored is not None:
            return Confirmation(stored["value"], stored["resolution"], stored["binding"])
        capacity = self.settings.objective == "capacity"
        try:
            measured = measure_config(
                self._measure,
                trial.chosen,
                objective=self.settings.objective,
                rate=_CONFIRM_START * trial.capacity if capacity else self.settings.start_rate,
                seed=seed,
                tolerance=min(self.settings.tolerance, _CONFIRM_TOLERANCE),
                max_runs=_MAX_RUNS,
                first_step=_CONFIRM_STEP,
            )
        except OutOfDeviceMemoryError:
            measured = Measured(0.0, self._pessimistic(), None, None)
        binding = binding_limit(measured.failing) if measured.failing else None
        self._journal.remember(
            key, {"value": measured.value, "resolution": measured.resolution, "binding": binding}
        )
        return Confirmation(measured.value, measured.resolution, binding, measured.result)

    def _start(self, chosen: Strategy) -> tuple[float | None, float]:
        """Where to look for the capacity, and how far the second rate is from there."""
        if self.settings.objective == "throughput":
            return self.settings.start_rate, 2.0
        knobs = dict(chosen.knobs)
        near = [fact for fact in self._journal.facts.values() if fact.capacity > 0.0]
        same = [fact for fact in near if fact.strategy == chosen.name]
        if same:
            return min(same, key=lambda fact: distance(fact.knobs, knobs)).capacity, _WARM_STEP
        if self.settings.start_rate is not None:
            return self.settings.start_rate, 2.0
        rates = {name: self._journal.recall(f"saturated:{name}") or 0.0 for name in self._space.names}
        known = rates[chosen.name] or max(rates.values())
        return (_SATURATED_SHARE * known or 1.0), 2.0

    def _pessimistic(self) -> float:
        """The objective of what could not be measured: the worst that was."""
        return min((fact.objective for fact in self._journal.facts.values()), default=math.log(0.01))

    def _tell(
        self,
        phase: Phase,
        trial: int,
        total: int | None,
        chosen: Strategy,
        done: TrialFacts | None = None,
        error: str | None = None,
    ) -> None:
        known = [fact for fact in self._journal.facts.values() if fact.capacity > 0.0]
        best = max(known, key=mean_capacity, default=None)
        self._on_event(
            SweepEvent(
                phase=phase,
                trial=trial,
                total=total,
                label=chosen.label,
                best=None if best is None else best.capacity,
                best_label=None if best is None else best.chosen.label,
                elapsed_s=time.monotonic() - self.settings.began,
                done=done,
                error=error,
            )
        )
