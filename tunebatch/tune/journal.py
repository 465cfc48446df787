"""What a search decided, on disk: Optuna studies in one journal file."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.engine.strategies import Strategy
from tunebatch.tune.facts import Sampler, TrialFacts
from tunebatch.tune.space import Space, config_hash

if TYPE_CHECKING:
    import optuna

__all__ = ["Journal", "StudyLog", "SweepMismatchError", "random_sampler", "sampler_of"]

FILE = "optuna.journal"
_OOM_MARGIN = 1.5
_GP_TRIALS = 200


class SweepMismatchError(ValueError):
    """The directory holds a sweep with other settings; one line for the user."""


class Journal:
    """All studies of a run directory.

    Args:
        settings: What must not change between sessions; JSON types.

    Raises:
        SweepMismatchError: The directory was begun with other settings.
    """

    def __init__(self, directory: Path, space: Space, settings: dict[str, Any]) -> None:
        import optuna
        from optuna.storages import JournalStorage

        from tunebatch.tune.journal_file import JournalFile

        # Its warnings would land in the middle of our progress; what is wrong with a study raises.
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self.space = space
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self.storage = JournalStorage(JournalFile(directory / FILE))
        self.memory = optuna.create_study(
            study_name="memory", storage=self.storage, load_if_exists=True, direction="maximize"
        )
        self.limits: list[str] | None = self.recall("limits")
        self.facts: dict[str, TrialFacts] = {}
        old = self.recall("settings")
        for name, value in settings.items():
            if old is not None and old.get(name) != value:
                raise SweepMismatchError(
                    f"{directory} holds a sweep with {name} = {old.get(name)!r}, not {value!r}; "
                    "choose another directory, or repeat its settings to resume it"
                )
        self.remember("settings", settings)

    def recall(self, name: str) -> Any:
        """A fact that ``remember`` stored in this or an earlier session; None if none did."""
        return self.memory.user_attrs.get(name)

    def remember(self, name: str, value: Any) -> None:
        if self.recall(name) != value:
            self.memory.set_user_attr(name, value)

    def learn_limits(self, names: list[str]) -> None:
        """The constraints that every trial has, known from the first run that was judged."""
        if self.limits is None:
            self.limits = names
            self.remember("limits", names)


class StudyLog:
    """One Optuna study, asked and told.

    On opening, trials that an earlier session left running are marked failed and put back in the queue.
    A finished configuration is never measured again: ``known`` finds it in any study of the journal.
    """

    def __init__(
        self,
        journal: Journal,
        name: str,
        make_sampler: Callable[[int], optuna.samplers.BaseSampler],
        defaults: list[dict[str, Any]],
    ) -> None:
        import optuna

        self._journal = journal
        self._states = optuna.trial.TrialState
        self.study = optuna.create_study(
            study_name=name,
            storage=journal.storage,
            direction="maximize",
            load_if_exists=True,
        )
        # A resumed sampler must not repeat the draws of its first session.
        self.study.sampler = make_sampler(len(self.study.trials))
        self._distributions = journal.space.distributions()
        self._untold: list[tuple[optuna.Trial, TrialFacts]] = []
        self.facts: list[TrialFacts] = []
        self._seen: set[str] = set()
        for trial in self.study.trials:
            stored = trial.user_attrs.get("facts")
            if stored is not None:
                found = TrialFacts.from_json(stored)
                journal.facts.setdefault(found.config, found)
                if trial.state == self._states.COMPLETE and "repeat_of" not in trial.user_attrs:
                    self.facts.append(found)
                    self._seen.add(found.config)
            if trial.state == self._states.RUNNING:
                self._give_up(trial.number, trial)
        # A default that failed before gets another chance.
        alive = [trial for trial in self.study.trials if trial.state != self._states.FAIL]
        self._keys = {trial.user_attrs.get("key") for trial in alive}
        for params in defaults:
            self.enqueue_once(params, "default", f"default-{params['strategy']}")

    @property
    def num_done(self) -> int:
        return len(self.facts)

    @property
    def is_waiting(self) -> bool:
        """There are queued trials."""
        waiting = self.study.get_trials(deepcopy=False, states=(self._states.WAITING,))
        return len(waiting) > 0

    def was_queued(self, key: str) -> bool:
        """``enqueue_once`` queued it, in this or an earlier session."""
        return key in self._keys

    def enqueue(self, params: dict[str, Any], origin: str, key: str = "") -> None:
        self.study.enqueue_trial(params, user_attrs={"origin": origin, "key": key})

    def enqueue_once(self, params: dict[str, Any], origin: str, key: str) -> None:
        """Queues it unless this or an earlier session did; what failed in an earlier one is queued again."""
        if key not in self._keys:
            self.enqueue(params, origin, key)
            self._keys.add(key)

    def ask(self) -> tuple[optuna.Trial, Strategy]:
        """The next trial and what it stands for."""
        import optuna

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            trial = self.study.ask(self._distributions)
        return trial, self._journal.space.to_strategy(trial.params)

    def is_repeat(self, chosen: Strategy) -> bool:
        return config_hash(chosen) in self._seen

    def known(self, chosen: Strategy) -> TrialFacts | None:
        return self._journal.facts.get(config_hash(chosen))

    def tell(self, trial: optuna.Trial, facts: TrialFacts) -> None:
        """Completes a trial. Its facts are stored first, so a kill in between loses nothing."""
        repeat = facts.config in self._seen
        if repeat:
            trial.set_user_attr("repeat_of", facts.number)
        else:
            self.facts.append(facts)
            self._seen.add(facts.config)
        trial.set_user_attr("facts", facts.to_json())
        self._journal.facts.setdefault(facts.config, facts)
        if not facts.oom:
            self._journal.learn_limits(list(facts.margins))
        self._untold.append((trial, facts))
        self.flush()

    def flush(self) -> None:
        """Tells Optuna what it was not told yet: all completed trials need the same constraints, and before
        the first judged run their names are unknown."""
        names = self._journal.limits
        if names is None:
            return
        for trial, facts in self._untold:
            for name in names:
                trial.set_constraint(name, _OOM_MARGIN if facts.oom else facts.margins[name])
            trial.set_constraint("oom", 1.0 if facts.oom else -1.0)
            self.study.tell(trial, facts.objective)
        self._untold.clear()

    def fail(self, trial: optuna.Trial, *, again: bool) -> None:
        """Ends a trial without a measurement; ``again`` puts it back in the queue."""
        if again:
            self._give_up(trial.number, self.study.trials[trial.number])
        else:
            self.study.tell(trial, state=self._states.FAIL)

    def after_repeat(self, rng: random.Random) -> None:
        """A sampler that suggests what is known is helped along with a random point."""
        self.enqueue(self._journal.space.draw(rng), origin="search")

    def _give_up(self, number: int, trial: optuna.trial.FrozenTrial) -> None:
        # A new trial, not a retry: a retried trial would keep constraints that were already set. First the
        # queue, then the failure: a kill in between makes a repeat, not a loss.
        params = trial.system_attrs.get("fixed_params") or trial.params
        if params:
            attrs = trial.user_attrs
            self.enqueue(params, attrs.get("origin", "search"), attrs.get("key", ""))
        self.study.tell(number, state=self._states.FAIL)


def sampler_of(
    name: Sampler, seed: int, num_strategies: int, max_trials: int | None
) -> optuna.samplers.BaseSampler:
    """The sampler of a name; ``auto`` is a Gaussian process, and for long searches, where its suggestions get
    slow, tree-structured Parzen."""
    import optuna

    if name == "random":
        return random_sampler(seed)
    startup = max(5, num_strategies)
    if name == "tpe" or (name == "auto" and (max_trials or 0) > _GP_TRIALS):
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return optuna.samplers.GPSampler(seed=seed, n_startup_trials=startup, warn_independent_sampling=False)


def random_sampler(seed: int) -> optuna.samplers.BaseSampler:
    import optuna

    return optuna.samplers.RandomSampler(seed=seed)
