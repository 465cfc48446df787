"""The stages of a search: a glimpse of each strategy, the search, its random rival, the confirmation."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.bench import DoesNotFitError
from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.result import ResultError, RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError
from tunebatch.tune.confirm import Confirmation, mean_capacity
from tunebatch.tune.facts import MeasureFn, Miss, Objective, Origin, Phase, SweepEvent, TrialFacts
from tunebatch.tune.journal import Journal, StudyLog, gp_sampler, random_sampler
from tunebatch.tune.runs import Runs
from tunebatch.tune.second_chance import queue_second_chances
from tunebatch.tune.shown import Shown
from tunebatch.tune.space import Space
from tunebatch.tune.trial import (
    Measured,
    facts_of,
    measure_capacity,
    measure_throughput,
    miss_of,
    out_of_memory,
)

if TYPE_CHECKING:
    import optuna

__all__ = ["Settings", "Sweep", "saturated_rate"]

GLIMPSE_S = 2.0
_STEP, _CONFIRM_STEP = 1.15, 1.06
_GLIMPSE_ERROR = 1.2  # how far the saturated rate may be from what a glimpse says
_SEARCH_TOLERANCE = 0.08  # the confirmation looks closer
_MAX_REPEATS = 20  # in a row: the space holds nothing new
_MAX_FAILURES = 3  # in a row: not bad luck


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What was asked for; see ``run_sweep``. ``began`` and ``end`` are on the monotonic clock, seconds."""

    strategies: tuple[str, ...]
    objective: Objective
    start_rate: float | None
    least_s: float
    max_trials: int | None
    seed: int
    tolerance: float
    max_slots: int | None
    began: float
    end: float
    identity: Mapping[str, Any]


def saturated_rate(glimpse: RunResult) -> float:
    """Requests per second that a saturated run of any length would serve, told from its tokens."""
    metrics = glimpse.metrics
    if metrics.completed == metrics.num_requests:
        return metrics.request_throughput
    return metrics.output_throughput / float(glimpse.workload["mean_output_tokens"])


class Sweep:
    """One search in one directory."""

    def __init__(
        self,
        measure: MeasureFn,
        directory: Path,
        settings: Settings,
        on_event: Callable[[SweepEvent], None],
    ) -> None:
        self.settings = settings
        self._on_event = on_event
        at_once = settings.objective == "throughput" and settings.start_rate is None
        self._space = Space(settings.strategies, settings.max_slots, offline=at_once)
        fixed: dict[str, object] = {
            "strategies": list(settings.strategies),
            "objective": settings.objective,
            "seed": settings.seed,
            **settings.identity,
        }
        if settings.objective == "throughput":
            fixed["start_rate"] = settings.start_rate
        self._journal = Journal(directory, self._space, fixed)
        self.runs = Runs(measure, directory / "runs")
        self._shown = Shown(self.runs, settings.objective, settings.start_rate, settings.seed)
        self._saturated: dict[str, float] = {}
        self._longest_s: dict[str, float] = {}
        self._trials_took_s: list[float] = []
        self._confirmations: dict[str, list[Confirmation]] = {}
        self._search: StudyLog | None = None
        self._random: StudyLog | None = None

    @property
    def search_facts(self) -> list[TrialFacts]:
        return self._search.facts if self._search is not None else []

    @property
    def random_facts(self) -> list[TrialFacts]:
        return self._random.facts if self._random is not None else []

    def glimpse(self) -> None:
        """A short saturated run of every strategy, so that no search begins far from its capacity."""
        if self.settings.objective != "capacity" or self.settings.start_rate is not None:
            return
        names = self._space.names
        for index, name in enumerate(names):
            chosen = self._space.default(name)
            self._tell("start", index + 1, len(names), chosen)
            try:
                seen = self.runs(chosen, None, self.settings.seed, glimpse_s=GLIMPSE_S)
            except OutOfDeviceMemoryError:
                continue
            self._saturated[name] = saturated_rate(seen)

    def search(self, until: float) -> None:
        """The defaults, smaller batches for those that nothing passes, then what the sampler suggests."""
        self._search = StudyLog(self._journal, "search", self._gp, self._space.defaults())
        queue_second_chances(self._search, self._space)
        self._loop(self._search, "search", self.settings.max_trials, until)

    def random_baseline(self, until: float) -> None:
        """As many random trials as the search has, the same defaults included."""
        self._random = StudyLog(
            self._journal,
            "random",
            lambda offset: random_sampler(self.settings.seed + offset),
            self._space.defaults(),
        )
        self._loop(self._random, "random", len(self.search_facts), until)

    def confirm(self, chosen: Sequence[TrialFacts], repeat: int, until: float) -> bool:
        """Measures trials on one fresh seed; whether there was time for all of them."""
        for index, trial in enumerate(chosen):
            done = [item for item in self._confirmations.get(trial.config, ()) if item.repeat == repeat]
            if done:
                continue
            if self._confirmations and not self._has_time(trial.chosen, until):
                return False
            self._tell("confirm", index + 1, len(chosen), trial.chosen)
            found = self._confirm_once(trial, repeat, until)
            if found is None:
                return False
            self._confirmations.setdefault(trial.config, []).append(found)
            self._tell("confirm", index + 1, len(chosen), trial.chosen, done=self.with_confirmation(trial))
        return True

    def show(self, trial: TrialFacts) -> None:
        """See ``Shown.measure``."""
        self._shown.measure(trial)

    def with_confirmation(self, trial: TrialFacts) -> TrialFacts:
        found = self._confirmations.get(trial.config, ())
        return dataclasses.replace(trial, confirmed=tuple(item.value for item in found))

    def resolution(self, *trials: TrialFacts) -> float:
        """The coarsest of the confirmations' resolutions, as a logarithm."""
        found = [item.resolution for trial in trials for item in self._confirmations.get(trial.config, ())]
        return max(found, default=0.0)

    def result_of(self, trial: TrialFacts) -> RunResult | None:
        """The run that shows the trial's capacity; else what it does instead.

        On the first fresh seed that has one, so that two sweeps show their winners on the same traffic.
        """
        kept = mean_capacity(self.with_confirmation(trial)) > 0.0
        for item in self._confirmations.get(trial.config, []):
            if item.result is not None and (item.value > 0.0) == kept:
                return item.result
        return self._shown.of(trial)

    def missed_by(self, trial: TrialFacts) -> Miss | None:
        """What keeps more load out."""
        found = [item.missed for item in self._confirmations.get(trial.config, ()) if item.missed]
        return found[-1] if found else trial.missed

    def _gp(self, offset: int) -> optuna.samplers.BaseSampler:
        return gp_sampler(self.settings.seed + offset, len(self._space.names), self.settings.max_trials)

    def _loop(self, log: StudyLog, phase: Phase, budget: int | None, until: float) -> None:
        rng = random.Random(self.settings.seed + len(log.study.trials))
        repeats = failures = 0
        while repeats < _MAX_REPEATS and (budget is None or log.num_done < budget):
            if time.monotonic() >= until:
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
                began = time.monotonic()
                try:
                    facts = self._measure_trial(log, trial.number, origin, chosen, until)
                    self._trials_took_s.append(time.monotonic() - began)
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
                    if facts is None:  # the time was up before it was known; its runs are kept
                        log.fail(trial, again=True)
                        break
            else:
                facts = dataclasses.replace(facts, number=trial.number, origin=origin)
            if facts is not None:
                log.tell(trial, facts)
                queue_second_chances(log, self._space)
            if repeats:
                log.after_repeat(rng)
            else:
                self._tell(phase, log.num_done, budget, chosen, done=facts, error=error)

    def _measure_trial(
        self, log: StudyLog, number: int, origin: Origin, chosen: Strategy, until: float
    ) -> TrialFacts | None:
        seed = self.settings.seed
        try:
            if self.settings.objective == "throughput":
                measured = measure_throughput(self.runs, chosen, self.settings.start_rate, seed)
            else:
                best = self._best_of(log, chosen.name)
                measured = measure_capacity(
                    lambda rate: self._judge(chosen, rate, seed),
                    self._start(log, chosen),
                    step=_STEP,
                    tolerance=max(self.settings.tolerance, _SEARCH_TOLERANCE),
                    good_enough=best * _CONFIRM_STEP,
                    ceiling=_GLIMPSE_ERROR * self._saturated.get(chosen.name, math.inf),
                    may_go_on=lambda: self._has_time(chosen, until),
                )
        except OutOfDeviceMemoryError as error:
            return out_of_memory(number, origin, chosen, self._pessimistic(), error)
        if measured.value == 0.0 and not measured.finished:
            return None
        facts = facts_of(measured, number, origin, chosen)
        if measured.result is not None:
            self._shown.keep(facts, measured.result)
        return facts

    def _confirm_once(self, trial: TrialFacts, repeat: int, until: float) -> Confirmation | None:
        seed = self.settings.seed + 1 + repeat
        try:
            if self.settings.objective == "throughput":
                measured = measure_throughput(self.runs, trial.chosen, self.settings.start_rate, seed)
            else:
                measured = measure_capacity(
                    lambda rate: self._judge(trial.chosen, rate, seed),
                    trial.capacity * _CONFIRM_STEP,
                    step=_CONFIRM_STEP,
                    tolerance=self.settings.tolerance,
                    may_go_on=lambda: self._has_time(trial.chosen, until),
                )
        except OutOfDeviceMemoryError:
            measured = Measured(0.0, self._pessimistic(), None, None)
        if not measured.finished and (measured.value == 0.0 or measured.resolution > math.log(_STEP)):
            return None  # a rate far below the first that missed is no capacity
        missed = miss_of(measured.failing) if measured.failing else None
        result = measured.result or measured.failing
        return Confirmation(repeat, measured.value, measured.resolution, missed, result)

    def _judge(self, chosen: Strategy, rate: float, seed: int) -> RunResult:
        began = time.monotonic()
        result = self.runs(chosen, rate, seed, stop_early=True, least_s=self.settings.least_s)
        took = time.monotonic() - began
        self._longest_s[chosen.name] = max(self._longest_s.get(chosen.name, 0.0), took)
        return result

    def _has_time(self, chosen: Strategy, until: float) -> bool:
        """For one more run, going by the longest that the strategy has needed."""
        return time.monotonic() + self._longest_s.get(chosen.name, 0.0) <= until

    def _best_of(self, log: StudyLog, name: str) -> float:
        return max((fact.capacity for fact in log.facts if fact.strategy == name), default=0.0)

    def _start(self, log: StudyLog, chosen: Strategy) -> float:
        """A little above the capacity: above the best of the strategy, which most of its configurations do
        not reach; else the saturated rate, which none exceeds for long."""
        best = self._best_of(log, chosen.name)
        if best > 0.0:
            return best * _CONFIRM_STEP
        known = self._saturated.get(chosen.name) or max(self._saturated.values(), default=0.0)
        return self.settings.start_rate or known or 1.0

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
        now = time.monotonic()
        known = [self.with_confirmation(fact) for fact in self.search_facts if fact.capacity > 0.0]
        left = self.settings.end - now if math.isfinite(self.settings.end) else None
        if left is None and self._trials_took_s and total is not None and phase != "confirm":
            left = statistics.median(self._trials_took_s) * max(0, total - trial + (done is None))
        self._on_event(
            SweepEvent(
                phase=phase,
                trial=trial,
                total=total,
                chosen=chosen,
                best=max(known, key=mean_capacity, default=None),
                elapsed_s=now - self.settings.began,
                left_s=None if left is None else max(0.0, left),
                done=done,
                error=error,
            )
        )
