"""No strategy is judged by one default that was too large for it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from tune_fake import Device, batch_of

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.tune.facts import SweepOutcome, TrialFacts
from tunebatch.tune.journal import FILE, StudyLog
from tunebatch.tune.second_chance import smaller
from tunebatch.tune.study import run_sweep

NAMES = ("static", "sequential", "continuous")


class KilledError(BaseException):
    pass


def static_above(batch: int) -> Any:
    return lambda chosen, _: chosen.name == "static" and batch_of(chosen) > batch


def sweep(device: Device, directory: Path, **options: Any) -> SweepOutcome:
    given = {"strategies": NAMES, "directory": directory, "max_trials": 7, "start_rate": 5.0, **options}
    return run_sweep(device, **given)


def batches(trials: list[TrialFacts], name: str = "static") -> list[float]:
    return [batch_of(trial.chosen) for trial in trials if trial.strategy == name]


def keys(directory: Path, study: str = "search") -> list[str]:
    """Of the trials that have not failed."""
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(directory / FILE)))
    trials = optuna.load_study(study_name=study, storage=storage).trials
    alive = [trial for trial in trials if trial.state != optuna.trial.TrialState.FAIL]
    return sorted(key for trial in alive if (key := trial.user_attrs.get("key", "")).startswith("smaller"))


def test_a_quarter_of_the_batch_down_to_the_least() -> None:
    chosen = strategy("dynamic", {"max_batch_size": 32, "max_delay_s": 0.2})
    eight = smaller(chosen)
    assert eight == strategy("dynamic", {"max_batch_size": 8, "max_delay_s": 0.2})
    two = smaller(eight)
    assert two is not None and batch_of(two) == 2
    assert smaller(two) is None and smaller(strategy("sequential")) is None
    assert smaller(strategy("sarathi")) is None, "it would no longer be what it is named after"
    fewer = smaller(strategy("adaptive", {"max_batch_size": 8, "min_batch_size": 6}))
    assert fewer == strategy("adaptive", {"max_batch_size": 2, "min_batch_size": 2})
    six = smaller(strategy("static", {"max_batch_size": 8}), least=6)
    assert six == strategy("static", {"max_batch_size": 6})
    assert six is not None and smaller(six, least=6) is None


def test_smaller_batches_come_after_the_defaults_until_one_meets_the_slo(tmp_path: Path) -> None:
    trials = sweep(Device(hopeless=static_above(4)), tmp_path).trials
    assert [trial.strategy for trial in trials[:3]] == list(NAMES)
    assert [trial.chosen for trial in trials[3:5]] == [
        strategy("static", {"max_batch_size": batch}) for batch in (8, 2)
    ]
    assert [trial.met for trial in trials[3:5]] == [False, True]
    assert [trial.origin for trial in trials[3:5]] == ["search"] * 2
    enough = sweep(Device(hopeless=static_above(8)), tmp_path / "eight")
    assert batches(enough.trials[3:4]) == [8] and keys(tmp_path / "eight") == ["smaller-static-8"]


def test_a_strategy_without_hope_ends_at_the_smallest_batch(tmp_path: Path) -> None:
    outcome = sweep(Device(hopeless=static_above(0)), tmp_path)
    assert batches(outcome.trials[:5]) == [32, 8, 2]
    assert keys(tmp_path) == ["smaller-static-2", "smaller-static-8"]


def test_out_of_memory_gets_a_smaller_batch_too(tmp_path: Path) -> None:
    def before(chosen: Strategy) -> None:
        if batch_of(chosen) > 20:
            raise OutOfDeviceMemoryError("out of device memory in a step of 33 decodes")

    outcome = sweep(Device(before=before), tmp_path)
    assert [trial.oom for trial in outcome.trials[:5]] == [True, False, True, False, False]
    assert [trial.chosen for trial in outcome.trials[3:5]] == [
        strategy(name, {"max_batch_size": 8}) for name in ("static", "continuous")
    ]


def test_a_smaller_batch_is_no_default_to_gain_over(tmp_path: Path) -> None:
    outcome = sweep(Device(hopeless=static_above(4)), tmp_path, strategies=("static",), max_trials=3)
    assert outcome.winner is not None and batch_of(outcome.winner.chosen) == 2
    assert outcome.best_default is None and outcome.gain is None


def test_the_random_baseline_gets_the_defaults_only(tmp_path: Path) -> None:
    outcome = sweep(Device(hopeless=static_above(4)), tmp_path, baseline_random=True)
    counts = Counter(trial.origin for trial in outcome.trials)
    assert counts["random"] == counts["default"] + counts["search"] == 7
    assert len(keys(tmp_path)) == 2 and keys(tmp_path, "random") == []


def test_a_kill_before_the_smaller_batch_is_queued_does_not_lose_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = StudyLog.enqueue_once

    def kill(self: StudyLog, params: dict[str, Any], origin: str, key: str) -> None:
        if key.startswith("smaller"):
            raise KilledError
        queue(self, params, origin, key)

    with monkeypatch.context() as patch:
        patch.setattr(StudyLog, "enqueue_once", kill)
        with pytest.raises(KilledError):
            sweep(Device(hopeless=static_above(4)), tmp_path, strategies=("static",), max_trials=1)
    assert keys(tmp_path) == []
    # Its default is told, so nothing but what is on disk can say that the smaller one is due.
    outcome = sweep(Device(hopeless=static_above(4)), tmp_path, strategies=("static",), max_trials=2)
    assert batches(outcome.trials) == [32, 8]


def test_a_kill_in_the_smaller_batch_does_not_queue_it_twice(tmp_path: Path) -> None:
    def kill(chosen: Strategy) -> None:
        if chosen.name == "static" and batch_of(chosen) == 8:
            raise KilledError

    with pytest.raises(KilledError):
        sweep(Device(hopeless=static_above(4), before=kill), tmp_path)
    outcome = sweep(Device(hopeless=static_above(4)), tmp_path)
    assert keys(tmp_path) == ["smaller-static-2", "smaller-static-8"]
    assert batches(outcome.trials[:5]) == [32, 8, 2]
    again = Device(hopeless=static_above(4))
    sweep(again, tmp_path)
    assert again.asked == [] and len(keys(tmp_path)) == 2
