"""A whole sweep on a paper device: what it finds, what it measures, and how it survives."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
import tune_fake
from tune_fake import Device

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.result import RunResult
from tunebatch.tune.capacity import NotEnoughEvidenceError
from tunebatch.tune.facts import SweepEvent, SweepOutcome, TableRow
from tunebatch.tune.gauge import Gauge
from tunebatch.tune.journal import FILE, SweepMismatchError
from tunebatch.tune.study import run_sweep
from tunebatch.tune.sweep import Sweep
from tunebatch.tune.trial import Measured, measure_capacity

NAMES = ("sequential", "static", "continuous")


def sweep(device: Device, directory: Path, **options: Any) -> SweepOutcome:
    return run_sweep(device, **{"strategies": NAMES, "directory": directory, "max_trials": 9, **options})


def row_of(name: str, outcome: SweepOutcome) -> TableRow:
    (row,) = [row for row in outcome.best if row.facts.strategy == name]
    return row


def studies(directory: Path) -> dict[str, optuna.Study]:
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    storage = JournalStorage(JournalFileBackend(str(directory / FILE)))
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names if name != "memory"}


def same_constraints_everywhere(directory: Path) -> set[str]:
    sets = set()
    for study in studies(directory).values():
        for trial in study.get_trials(states=[optuna.trial.TrialState.COMPLETE]):
            sets.add(tuple(sorted(trial.constraints)))
    assert len(sets) == 1
    return set(sets.pop())


@pytest.mark.gaussian_process
def test_the_better_strategy_wins_and_beats_its_default(tmp_path: Path) -> None:
    device, events, written = Device(), list[SweepEvent](), []
    outcome = sweep(
        device, tmp_path, max_trials=14, on_event=events.append, write_winner=written.append, confirm_top=3
    )
    winner = outcome.winner
    assert winner is not None and winner.strategy == "continuous"
    assert [trial.origin for trial in outcome.trials[:3]] == ["default"] * 3
    assert [trial.number for trial in outcome.trials[:3]] == [0, 1, 2]
    assert len(outcome.trials) == 14
    assert outcome.best_default is not None and outcome.best_default.strategy == "continuous"
    assert outcome.gain is not None and outcome.gain > 1.1
    assert outcome.gain_interval is not None
    assert outcome.gain_interval[0] <= outcome.gain <= outcome.gain_interval[1]
    assert len(winner.confirmed) == 2
    truth = tune_fake.true_capacity(winner.chosen)
    assert all(truth / 1.05 <= value <= truth * 1.0001 for value in winner.confirmed)
    assert outcome.binding is not None and outcome.binding.limit == "p90_ttft"
    assert {row.facts.strategy for row in outcome.best} == set(NAMES)
    assert all(row.result is not None for row in outcome.best)
    assert written and written[0].strategy == "continuous"
    assert written[0].workload["seed"] == 1  # whatever the number of seeds was
    assert same_constraints_everywhere(tmp_path) == {"p90_ttft", "p90_tpot", "oom"}
    assert {event.phase for event in events} == {"start", "search", "confirm"}
    # Fresh seeds in the confirmation, one seed in the search.
    assert {seed for _, _, seed in device.asked} == {0, 1, 2}


@pytest.mark.parametrize(("time_for", "many"), [(5, 3), (2, 2)])
def test_as_many_can_win_as_there_is_time_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, time_for: int, many: int
) -> None:
    for name in tune_fake.SATURATED:  # all come near the best
        monkeypatch.setitem(tune_fake.SATURATED, name, 20.0)
    monkeypatch.setattr("tunebatch.tune.study.affordable", lambda top, *_: min(top, time_for))
    outcome = sweep(Device(), tmp_path, strategies=("static", "dynamic", "continuous"), max_trials=3)
    assert sorted(len(trial.confirmed) for trial in outcome.trials) == [1] * (3 - many) + [2] * many


def test_one_repeat_has_no_interval(tmp_path: Path) -> None:
    outcome = sweep(Device(wobble=0.03), tmp_path, confirm_repeats=1)
    assert outcome.gain is not None and outcome.gain_interval is None


@pytest.mark.gaussian_process
@pytest.mark.parametrize("stop_at", [5, 20, 37, 60])
def test_an_interrupted_sweep_goes_on_and_measures_no_configuration_twice(
    tmp_path: Path, stop_at: int
) -> None:
    device = Device()

    def interrupt(_: Strategy) -> None:
        if len(device.asked) == stop_at:
            raise KeyboardInterrupt

    device.before = interrupt
    first = sweep(device, tmp_path, start_rate=5.0)
    assert first.interrupted
    finished = {trial.config for trial in first.trials}
    labels = {trial.chosen.label for trial in first.trials}
    again = Device()
    second = sweep(again, tmp_path, start_rate=5.0)
    assert not second.interrupted
    assert not [asked for asked in again.asked if asked[0] in labels and asked[2] == 0]
    assert finished <= {trial.config for trial in second.trials}
    assert len(second.trials) == 9
    numbers = [trial.number for trial in second.trials]
    assert len(set(numbers)) == 9
    assert numbers[: len(first.trials)] == [trial.number for trial in first.trials]
    assert sum(trial.origin == "default" for trial in second.trials) == 3
    running = [t for t in studies(tmp_path)["search"].trials if t.state == optuna.trial.TrialState.RUNNING]
    assert not running


def test_a_killed_sweep_puts_its_running_trial_back_in_the_queue(tmp_path: Path) -> None:
    class KilledError(BaseException):
        pass

    device = Device()

    def kill(_: Strategy) -> None:
        if len(device.asked) == 9:
            raise KilledError

    device.before = kill
    with pytest.raises(KilledError):
        sweep(device, tmp_path, start_rate=5.0)
    orphans = [t for t in studies(tmp_path)["search"].trials if t.state == optuna.trial.TrialState.RUNNING]
    assert len(orphans) == 1
    second = sweep(Device(), tmp_path, start_rate=5.0)
    states = [trial.state for trial in studies(tmp_path)["search"].trials]
    assert states[orphans[0].number] == optuna.trial.TrialState.FAIL
    assert len(second.trials) == 9
    assert sum(trial.origin == "default" for trial in second.trials) == 3


def test_a_finished_sweep_costs_nothing_to_repeat(tmp_path: Path) -> None:
    first = sweep(Device(wobble=0.02), tmp_path)
    again = Device(wobble=0.02)
    second = sweep(again, tmp_path)
    assert again.asked == []
    assert second.winner == first.winner and second.gain == first.gain
    assert second.gain_interval == pytest.approx(first.gain_interval)
    assert all(row.result is not None for row in second.best)


@pytest.mark.parametrize("ended_by", ["time", "interrupt"])
def test_who_was_confirmed_before_gives_way_only_to_who_is_confirmed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ended_by: str
) -> None:
    names = ("static", "continuous")
    first = sweep(Device(wobble=-0.1), tmp_path, strategies=names, max_trials=2)
    assert first.winner is not None and len(first.winner.confirmed) == 2
    for name in names:  # what is new seems to serve far more
        monkeypatch.setitem(tune_fake.SATURATED, name, 400.0)
    device, whole, written = Device(), Sweep.confirm, list[RunResult]()

    def none_left(self: Sweep, *_: Any) -> bool:
        if ended_by == "interrupt":
            raise KeyboardInterrupt
        return False

    monkeypatch.setattr(Sweep, "confirm", none_left)
    second = sweep(device, tmp_path, strategies=names, max_trials=5, write_winner=written.append)
    leader = max(second.trials, key=lambda one: one.capacity)
    assert leader.capacity > 1.5 * first.winner.capacity and not leader.confirmed
    assert {seed for _, _, seed in device.asked} == {0}
    assert second.winner == first.winner and second.gain == first.gain
    assert written and written[0].workload["seed"] == 1 and written[0].knobs == dict(first.winner.knobs)
    assert row_of("continuous", second).facts.config == first.winner.config
    assert not any(one.confirmed for one in second.trials[2:])
    monkeypatch.setattr(Sweep, "confirm", whole)
    third = sweep(Device(), tmp_path, strategies=names, max_trials=5)
    assert third.winner is not None and third.winner.config == leader.config and third.winner.confirmed


def test_a_confirmation_that_was_cut_short_is_recalled_as_far_as_it_came(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device(wobble=0.02)

    def has_time(self: Gauge, chosen: Strategy, until: float) -> bool:
        return until > 0.0 and sum(seed > 0 for _, _, seed in device.asked) < 2

    monkeypatch.setattr(Gauge, "has_time", has_time)
    first = sweep(device, tmp_path, strategies=("continuous",), max_trials=1, tolerance=0.001)
    assert first.winner is not None and len(first.winner.confirmed) == 1
    asked = len(device.asked)
    second = sweep(device, tmp_path, strategies=("continuous",), max_trials=1, tolerance=0.001)
    assert second.winner == first.winner and len(device.asked) == asked


def test_a_confirmed_throughput_is_recalled_with_the_run_at_which_it_was_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"objective": "throughput", "strategies": ("continuous",), "max_trials": 1, "start_rate": 5.0}
    first = sweep(Device(), tmp_path, **options)
    assert first.winner is not None and len(first.winner.confirmed) == 2
    monkeypatch.setattr(Sweep, "confirm", lambda *_: False)
    assert sweep(Device(), tmp_path, **options).winner == first.winner
    for folder in tmp_path.glob("runs/*/seed1-5-*"):
        (folder / "result.json").unlink()
    device = Device()
    again = sweep(device, tmp_path, **options).winner
    assert again is not None and not again.confirmed and device.asked == []


def test_other_settings_are_refused(tmp_path: Path) -> None:
    sweep(Device(), tmp_path, max_trials=3)
    with pytest.raises(SweepMismatchError, match="seed = 0, not 1"):
        sweep(Device(), tmp_path, seed=1)


def test_out_of_memory_is_infeasible_and_not_fatal(tmp_path: Path) -> None:
    def before(strategy: Strategy) -> None:
        if dict(strategy.knobs).get("max_batch_size", 0) > 20:
            raise OutOfDeviceMemoryError("out of device memory in a step of 33 decodes")

    outcome = sweep(Device(before=before), tmp_path, strategies=("static", "continuous"), max_trials=12)
    oom = [trial for trial in outcome.trials if trial.oom]
    assert len(oom) >= 2 and all(trial.capacity == 0.0 for trial in oom)
    assert {trial.binding for trial in oom} == {"device memory in a step of 33 decodes"}
    assert outcome.winner is not None and not outcome.winner.oom
    assert same_constraints_everywhere(tmp_path) == {"p90_ttft", "p90_tpot", "oom"}
    told = {t.number: t for t in studies(tmp_path)["search"].trials}
    for trial in oom:
        assert told[trial.number].state == optuna.trial.TrialState.COMPLETE
        assert told[trial.number].constraints["oom"] == 1.0


def test_a_strategy_that_never_fits_has_a_row_without_a_run(tmp_path: Path) -> None:
    def before(strategy: Strategy) -> None:
        if strategy.name == "static":
            raise OutOfDeviceMemoryError("out of device memory in a step of 2 decodes")

    outcome = sweep(Device(before=before), tmp_path, strategies=("static", "continuous"), max_trials=5)
    row = row_of("static", outcome)
    assert row.facts.oom and row.result is None
    assert outcome.best[-1] is row and outcome.winner is not None


def test_the_random_baseline_has_the_same_budget(tmp_path: Path) -> None:
    device = Device()
    outcome = sweep(device, tmp_path, baseline_random=True)
    counts = Counter(trial.origin for trial in outcome.trials)
    assert counts["random"] == counts["default"] + counts["search"] == 9
    assert outcome.best_random is not None and outcome.best_random.origin == "random"
    assert outcome.winner is not None and outcome.winner.origin != "random"
    assert same_constraints_everywhere(tmp_path) == {"p90_ttft", "p90_tpot", "oom"}
    # A configuration that both studies have was measured once.
    runs = Counter(asked for asked in device.asked if asked[2] == 0)
    assert max(runs.values()) == 1


def test_a_hopeless_slo_has_no_winner_but_a_reason(tmp_path: Path) -> None:
    outcome = sweep(Device(slo=("p90_ttft<=50ms",)), tmp_path, max_trials=4)
    assert outcome.winner is None and outcome.gain is None and outcome.best_default is None
    assert outcome.binding is not None and outcome.binding.limit == "p90_ttft"
    assert same_constraints_everywhere(tmp_path) == {"p90_ttft", "oom"}
    assert all(trial.margins["p90_ttft"] > 0.0 for trial in outcome.trials)


def test_a_workload_without_a_rate_is_judged_by_throughput(tmp_path: Path) -> None:
    device = Device(slo=())
    outcome = sweep(device, tmp_path, objective="throughput")
    assert outcome.winner is not None and outcome.winner.strategy == "continuous"
    assert {rate for _, rate, _ in device.asked} == {None}
    assert outcome.winner.capacity > 3 * 10


@pytest.mark.parametrize(("start_rate", "values"), [(None, {0, 1}), (5.0, {0})])
def test_lengths_are_sorted_only_in_work_that_comes_all_at_once(
    tmp_path: Path, start_rate: float | None, values: set[int]
) -> None:
    asked = {"objective": "throughput", "strategies": ("static",), "max_trials": 12}
    outcome = sweep(Device(slo=()), tmp_path, **asked, start_rate=start_rate)
    assert {trial.knobs["sort_by_length"] for trial in outcome.trials} == values


def test_a_space_with_one_configuration_ends(tmp_path: Path) -> None:
    outcome = sweep(Device(), tmp_path, strategies=("sequential",), max_trials=5, start_rate=1.0)
    assert len(outcome.trials) == 1
    assert outcome.gain == 1.0 and outcome.gain_interval is None


def test_too_few_requests_end_the_sweep(tmp_path: Path) -> None:
    with pytest.raises(NotEnoughEvidenceError, match="requests"):
        sweep(Device(num_requests=20), tmp_path)


def test_a_broken_trial_fails_alone_and_three_in_a_row_end_it(tmp_path: Path) -> None:
    def once(strategy: Strategy) -> None:
        if strategy.name == "static":
            raise RuntimeError("device lost")

    errors: list[str | None] = []
    outcome = sweep(
        Device(before=once),
        tmp_path / "a",
        strategies=("static", "continuous"),
        max_trials=2,
        start_rate=5.0,
        on_event=lambda event: errors.append(event.error),
    )
    assert "RuntimeError: device lost" in errors
    assert outcome.winner is not None and outcome.winner.strategy == "continuous"

    def always(strategy: Strategy) -> None:
        raise RuntimeError("device lost")

    with pytest.raises(RuntimeError, match="device lost"):
        sweep(Device(before=always), tmp_path / "b", start_rate=5.0)


def test_time_is_a_budget_and_none_is_an_error(tmp_path: Path) -> None:
    outcome = sweep(Device(), tmp_path, max_trials=None, max_time_s=1.5, start_rate=5.0)
    assert outcome.trials and outcome.elapsed_s < 15.0
    with pytest.raises(ValueError, match="budget"):
        sweep(Device(), tmp_path, max_trials=None)


def test_without_any_answer_the_search_takes_the_time_of_the_confirmation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[float] = []
    monkeypatch.setattr(Sweep, "search", lambda self, until: ends.append(until - self.settings.began))
    assert sweep(Device(), tmp_path, max_time_s=10.0).winner is None
    assert ends == pytest.approx([6.0, 10.0])


def test_a_confirmation_that_would_not_end_in_time_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = Device()
    whole = Sweep.search

    def all_of_the_time(self: Sweep, until: float) -> None:
        whole(self, math.inf)
        monkeypatch.setattr(Gauge, "has_time", lambda self, chosen, until: False)

    monkeypatch.setattr(Sweep, "search", all_of_the_time)
    outcome = sweep(device, tmp_path, max_time_s=60.0)
    assert {seed for _, _, seed in device.asked} == {0}
    assert outcome.winner is not None and not outcome.winner.confirmed


def test_what_each_strategy_can_do_at_most_is_told_before_any_is_searched(tmp_path: Path) -> None:
    device, told = Device(), []
    sweep(device, tmp_path, on_paced=lambda saturated: told.append((list(saturated), len(device.asked))))
    assert told == [(["continuous", "static", "sequential"], 3)]
    sweep(Device(), tmp_path / "from here", start_rate=5.0, on_paced=lambda saturated: told.append(saturated))
    assert told[1:] == [{}]


def test_a_configuration_that_comes_again_is_not_measured_again(tmp_path: Path) -> None:
    # Without knobs there is only one, and the random baseline draws it too.
    device = Device()
    outcome = sweep(device, tmp_path, strategies=("sequential",), max_trials=3, baseline_random=True)
    assert outcome.best_random is not None and outcome.winner is not None
    runs = Counter(asked for asked in device.asked if asked[2] == 0)
    assert max(runs.values()) == 1


def test_what_was_never_sustained_is_shown_by_the_run_that_its_miss_is_told_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hopeless = Device(hopeless=lambda chosen, _: chosen.name == "static")

    def out_of_time() -> TableRow:
        """Static's row when nothing is confirmed, and so nothing shown by a whole run."""
        with monkeypatch.context() as patch:
            patch.setattr(Sweep, "confirm", lambda self, chosen, repeat, until: False)
            return row_of("static", sweep(hopeless, tmp_path))

    row = out_of_time()
    assert row.result is not None and row.missed is not None
    assert row.result.workload["rate_per_s"] == row.missed.rate_per_s
    assert row.missed.rate_per_s == min(rate for rate, _ in row.facts.rates)
    sweep(hopeless, tmp_path)
    row = out_of_time()  # a whole run tells more, and there is one by now
    assert row.result is not None and row.result.workload["rate_per_s"] == row.facts.rates[0][0]
    assert row.missed is not None and row.missed.rate_per_s == row.facts.rates[0][0]


def test_who_kept_the_slo_by_luck_is_shown_by_a_run_that_misses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tune_fake.SATURATED, "sequential", tune_fake.SATURATED["continuous"])
    device = Device(hopeless=lambda chosen, seed: chosen.name == "sequential" and seed == 1)
    outcome = sweep(device, tmp_path, strategies=("continuous", "sequential"), max_trials=4)
    row = row_of("sequential", outcome)
    assert row.facts.capacity > 0.0 and row.facts.confirmed[0] == 0.0 < row.facts.confirmed[1]
    assert row.result is not None and row.missed is not None
    assert row.result.verdict is not None and not row.result.verdict.met
    assert row.result.workload["rate_per_s"] == row.missed.rate_per_s
    assert row.result.workload["seed"] == 1


@pytest.mark.parametrize(("resolution", "confirmed"), [(0.5, False), (0.1, True)])
def test_a_confirmation_cut_short_counts_only_if_it_came_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, resolution: float, confirmed: bool
) -> None:
    whole = measure_capacity

    def cut_short(*args: Any, step: float, **options: Any) -> Measured:
        found = whole(*args, step=step, **options)
        if step > 1.1:  # in the search
            return found
        return dataclasses.replace(found, finished=False, resolution=resolution)

    monkeypatch.setattr("tunebatch.tune.gauge.measure_capacity", cut_short)
    outcome = sweep(Device(), tmp_path)
    assert any(one.confirmed for one in outcome.trials) is confirmed
    assert outcome.winner is not None


def test_no_rate_far_above_the_saturated_one_is_tried(tmp_path: Path) -> None:
    device = Device(hopeless=lambda chosen, _: chosen.name == "static")
    sweep(device, tmp_path)
    default = strategy("static")
    rates = [rate for label, rate, _ in device.asked if label == default.label and rate is not None]
    assert max(rates) < 1.2 * tune_fake.saturated_rate(default)


def test_who_is_known_to_be_no_better_than_its_like_is_not_confirmed(tmp_path: Path) -> None:
    outcome = sweep(Device(), tmp_path, max_trials=20)
    coarse = [trial for trial in outcome.trials if trial.coarse]
    assert coarse and not any(trial.confirmed for trial in coarse)
    assert outcome.winner is not None and len(outcome.winner.confirmed) > 1


def test_who_missed_the_slo_is_shown_rather_than_who_did_not_fit(tmp_path: Path) -> None:
    def before(chosen: Strategy) -> None:
        if tune_fake.batch_of(chosen) > 20:
            raise OutOfDeviceMemoryError("out of device memory in a step of 33 decodes")

    device = Device(before=before, hopeless=lambda chosen, _: chosen.name == "static")
    for _ in range(2):
        outcome = sweep(device, tmp_path, start_rate=5.0)
        row = row_of("static", outcome)
        assert not row.facts.oom and row.result is not None
        assert row.result.workload["rate_per_s"] == row.facts.rates[0][0]  # the whole run
    assert [trial.oom for trial in outcome.trials if trial.strategy == "static"][:2] == [True, False]


def test_no_batch_is_tried_that_there_are_no_slots_for(tmp_path: Path) -> None:
    device = Device()
    outcome = sweep(device, tmp_path, max_slots=4)
    tried = {tune_fake.batch_of(trial.chosen) for trial in outcome.trials}
    assert max(tried) == 4
    assert not any("max_batch_size 32" in label for label, _, _ in device.asked)
    assert outcome.best_default is not None and tune_fake.batch_of(outcome.best_default.chosen) == 4


def test_a_search_keeps_to_the_ranges_it_was_given_whatever_it_tries(tmp_path: Path) -> None:
    device = Device(
        hopeless=lambda chosen, seed: chosen.policy == "static" and tune_fake.batch_of(chosen) > 9
    )
    options: dict[str, Any] = {
        "max_trials": 12,
        "ranges": {"max_batch_size": (10, 14)},
        "baseline_random": True,
    }
    outcome = sweep(device, tmp_path, **options)
    assert outcome.winner is not None and len(outcome.trials) > 12
    batches = {one.knobs["max_batch_size"] for one in outcome.trials if one.strategy != "sequential"}
    assert len(batches) > 2 and batches <= set(range(10, 15))
    with pytest.raises(SweepMismatchError, match=r"knobs = \{'max_batch_size': \[10, 14\]\}, not None"):
        sweep(device, tmp_path, max_trials=12)


@pytest.mark.gaussian_process
@pytest.mark.parametrize(
    ("name", "trials", "made"),
    [
        ("auto", 40, "GPSampler"),
        ("auto", 300, "TPESampler"),
        ("gp", 300, "GPSampler"),
        ("tpe", 40, "TPESampler"),
        ("random", 40, "RandomSampler"),
    ],
)
def test_the_sampler_is_the_one_that_was_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: Any, trials: int, made: str
) -> None:
    used: list[str] = []
    ask = optuna.Study.ask

    def asked(study: optuna.Study, *given: Any, **named: Any) -> optuna.Trial:
        used.append(type(study.sampler).__name__)
        raise KeyboardInterrupt

    monkeypatch.setattr(optuna.Study, "ask", asked)
    sweep(Device(), tmp_path, sampler=name, max_trials=trials)
    assert used == [made]
    monkeypatch.setattr(optuna.Study, "ask", ask)
    if name != "auto":
        with pytest.raises(SweepMismatchError, match=f"sampler = '{name}', not None"):
            sweep(Device(), tmp_path, max_trials=trials)
