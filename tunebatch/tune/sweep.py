"""The stages of a search: a glimpse of each strategy, the search, its random rival, the confirmation."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tunebatch.bench import DoesNotFitError
from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.result import ResultError, RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError
from tunebatch.tune.confirm import Confirmation, mean_capacity
from tunebatch.tune.facts import MeasureFn, Miss, Origin, Phase, SweepEvent, TrialFacts
from tunebatch.tune.feature_trials import KEY, queue_features
from tunebatch.tune.gauge import STEP, Gauge, Settings
from tunebatch.tune.journal import Journal, StudyLog, random_sampler, sampler_of
from tunebatch.tune.runs import Runs
from tunebatch.tune.second_chance import queue_second_chances
from tunebatch.tune.shown import Shown
from tunebatch.tune.space import Params, Space
from tunebatch.tune.trial import (
    Measured,
    facts_of,
    miss_of,
    out_of_memory,
)

if TYPE_CHECKING:
    import optuna

__all__ = ["Sweep"]

_MAX_REPEATS = 20  # in a row: the space holds nothing new
_MAX_FAILURES = 3  # in a row: not bad luck
_SPREAD = 0.4  # of the search, in which features are also tried with strategies that do not lead


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
        self.space = Space(
            settings.strategies,
            settings.max_slots,
            offline=at_once,
            features=settings.features,
            ranges=settings.ranges,
        )
        fixed: dict[str, object] = {
            "strategies": list(settings.strategies),
            "features": list(self.space.features) or None,
            "knobs": {name: list(ends) for name, ends in settings.ranges.items()} or None,
            "sampler": settings.sampler if settings.sampler != "auto" else None,
            "objective": settings.objective,
            "seed": settings.seed,
            **settings.identity,
        }
        if settings.objective == "throughput":
            fixed["start_rate"] = settings.start_rate
        self._journal = Journal(directory, self.space, fixed)
        self.runs = Runs(measure, directory / "runs")
        self._gauge = Gauge(self.runs, settings, self.space)
        self._shown = Shown(
            self.runs, settings.objective, settings.start_rate, settings.seed, self.space.base_of
        )
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

    def glimpse(self) -> Mapping[str, float]:
        """A short saturated run of every strategy, so that no search begins far from its capacity; requests
        per second of each, the fastest first. Nothing where the search does not begin there."""
        if self.settings.objective != "capacity" or self.settings.start_rate is not None:
            return {}
        names = self.space.names
        for index, name in enumerate(names):
            chosen = self.space.default(name)
            self._tell("start", index + 1, len(names), chosen)
            with contextlib.suppress(OutOfDeviceMemoryError):
                self._gauge.glimpse(chosen)
        return self._gauge.saturated

    def search(self, until: float) -> None:
        """The defaults, smaller batches for those that nothing passes, single features, then what the
        sampler suggests, and at the end the best once more with each of its features changed."""
        self._search = StudyLog(self._journal, "search", self._sampler, self._defaults())
        self._recall_confirmations(self._search)
        budget = self.settings.max_trials
        self._queue(self._search, budget, until)
        self._loop(self._search, "search", budget, until)

    def random_baseline(self, until: float) -> None:
        """As many random trials as the search has, the same defaults included."""
        self._random = StudyLog(
            self._journal,
            "random",
            lambda offset: random_sampler(self.settings.seed + offset),
            self._defaults(),
        )
        self._recall_confirmations(self._random)
        self._loop(self._random, "random", len(self.search_facts), until)

    def confirm(self, chosen: Sequence[TrialFacts], repeat: int, until: float) -> bool:
        """Measures trials on one fresh seed; whether there was time for all of them."""
        for index, trial in enumerate(chosen):
            done = [item for item in self._confirmations.get(trial.config, ()) if item.repeat == repeat]
            if done:
                continue
            if not self._gauge.has_time(trial.chosen, until):
                return False
            self._tell("confirm", index + 1, len(chosen), trial.chosen)
            found = self._confirm_once(trial, repeat, until)
            if found is None:
                return False
            self._confirmations.setdefault(trial.config, []).append(found)
            self._tell("confirm", index + 1, len(chosen), trial.chosen, done=self.with_confirmation(trial))
        return True

    @property
    def kept(self) -> tuple[Strategy, float] | None:
        """See ``Gauge.kept``."""
        return self._gauge.kept

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

    def _defaults(self) -> list[Params]:
        saturated = self._gauge.saturated
        first = [name for name in saturated if name in self.space.names]
        return self.space.defaults([*first, *(name for name in self.space.names if name not in saturated)])

    def _sampler(self, offset: int) -> optuna.samplers.BaseSampler:
        settings = self.settings
        return sampler_of(
            settings.sampler, settings.seed + offset, len(self.space.names), settings.max_trials
        )

    def _queue(self, log: StudyLog, budget: int | None, until: float) -> None:
        """What the finished trials make due."""
        now, began, done = time.monotonic(), self.settings.began, log.num_done
        left = math.inf if budget is None else budget - done
        each_s = statistics.median(self._trials_took_s) if self._trials_took_s else 0.0

        def only_enough_for(trials: int) -> bool:
            return left <= trials or until - now <= each_s * (trials + 1)

        early = now - began < _SPREAD * (until - began) and (budget is None or done < _SPREAD * budget)
        queue_second_chances(log, self.space)
        queue_features(log, self.space, for_all=early, only_enough_for=only_enough_for)

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
                    closely = trial.user_attrs.get("key", "").startswith(KEY)
                    facts = self._measure_trial(log, trial.number, origin, chosen, until, closely)
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
                self._queue(log, budget, until)
            if repeats:
                log.after_repeat(rng)
            else:
                self._tell(phase, log.num_done, budget, chosen, done=facts, error=error)

    def _measure_trial(
        self, log: StudyLog, number: int, origin: Origin, chosen: Strategy, until: float, closely: bool
    ) -> TrialFacts | None:
        """``closely``: even where it is no better than the best of its strategy."""
        best = self._best_of(log, chosen.name)
        try:
            measured = self._gauge.search(chosen, best, until, closely)
        except OutOfDeviceMemoryError as error:
            return out_of_memory(number, origin, chosen, self._pessimistic(), error)
        if measured.value == 0.0 and not measured.finished:
            return None
        facts = facts_of(measured, number, origin, chosen)
        if measured.result is not None:
            self._shown.keep(facts, measured.result)
        return facts

    def _confirm_once(self, trial: TrialFacts, repeat: int, until: float) -> Confirmation | None:
        try:
            measured = self._gauge.confirm(trial.chosen, trial.capacity, self._fresh_seed(repeat), until)
        except OutOfDeviceMemoryError:
            measured = Measured(0.0, self._pessimistic(), None, None)
        if not measured.finished and (measured.value == 0.0 or measured.resolution > math.log(STEP)):
            return None  # a rate far below the first that missed is no capacity
        missed = miss_of(measured.failing) if measured.failing else None
        result = measured.result or measured.failing
        return Confirmation(repeat, measured.value, measured.resolution, missed, result)

    def _recall_confirmations(self, log: StudyLog) -> None:
        """Those of earlier sessions, as far as the runs that are kept tell; measures nothing."""
        for trial in log.facts:
            if trial.capacity <= 0.0 or trial.config in self._confirmations:
                continue
            for repeat in itertools.count():
                if not self._gauge.is_begun(trial.chosen, trial.capacity, self._fresh_seed(repeat)):
                    break
                found = self._confirm_once(trial, repeat, until=-math.inf)
                if found is None:
                    break
                self._confirmations.setdefault(trial.config, []).append(found)

    def _fresh_seed(self, repeat: int) -> int:
        return self.settings.seed + 1 + repeat

    def _best_of(self, log: StudyLog, name: str) -> float:
        base = self.space.base_of(name)
        return max(
            (fact.capacity for fact in log.facts if self.space.base_of(fact.strategy) == base), default=0.0
        )

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
