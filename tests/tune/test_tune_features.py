"""Features as switches of the search: what is tried, in which order, who wins, and what each is worth."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import tune_fake
from tune_fake import Device

from tunebatch.engine.features import FEATURES, GROUPS
from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.engine.strategies import Strategy, StrategyError, features_named, strategy
from tunebatch.tune.facts import FeatureGain, SweepOutcome
from tunebatch.tune.journal import SweepMismatchError
from tunebatch.tune.space import Space, config_hash
from tunebatch.tune.study import run_sweep
from tunebatch.tune.variants import NONE, member_of, with_member

NAMES = ("static", "continuous")
ALL = ("prefix", "ngram", "draft")


def sweep(device: Device, directory: Path, **options: Any) -> SweepOutcome:
    given = {"strategies": NAMES, "features": ALL, "directory": directory, "max_trials": 12, **options}
    return run_sweep(device, **given)


def gains(outcome: SweepOutcome) -> dict[str, FeatureGain]:
    return {gain.feature: gain for gain in outcome.features}


def test_every_feature_is_a_value_of_one_switch() -> None:
    assert sorted(feature for members in GROUPS.values() for feature in members) == sorted(FEATURES)
    for members in GROUPS.values():
        for feature in members:
            assert set(FEATURES[feature].excludes) == set(members) - {feature}


def test_switches_lie_flat_beside_the_knobs() -> None:
    space = Space(("continuous", "mixed"), features=ALL)
    found = space.distributions()
    assert found["prefix"].choices == ("none", "prefix")
    assert found["drafts"].choices == ("none", "ngram", "draft")
    assert "log2_num_drafts" in found and "log2_num_drafts" not in Space(("mixed",)).distributions()
    assert set(Space(NAMES).distributions()) == set(found) & set(Space(NAMES).distributions())
    assert len(space.variants_of_all) == 2 * 2 * 3


def test_parameters_and_variants_stand_for_each_other() -> None:
    space, rng = Space(NAMES, features=ALL), random.Random(4)
    drawn = [space.to_strategy(space.draw(rng)) for _ in range(200)]
    assert {one.name for one in drawn} == set(space.variants_of_all)
    for chosen in drawn:
        params = space.to_params(chosen)
        assert space.to_strategy(params) == chosen and set(params) == set(space.distributions())
    one = space.to_params(strategy("continuous+ngram", {"num_drafts": 7}))
    other = {**one, "drafts": "none"}
    assert space.to_strategy(other) == strategy("continuous"), "drafts that are off have no number"
    assert config_hash(space.to_strategy({**other, "log2_num_drafts": 0.0})) == config_hash(
        strategy("continuous")
    )


def test_what_a_strategy_is_named_with_is_not_switched() -> None:
    space = Space(("continuous+ngram", "sarathi", "continuous", "static"), features=ALL)
    assert space.groups_of("continuous+ngram") == {"prefix": ("prefix",)}
    assert space.groups_of("sarathi") == {}, "a preset is what its source has"
    rng = random.Random(1)
    by_base: dict[str, set[str]] = {}
    for _ in range(300):
        params = space.draw(rng)
        by_base.setdefault(params["strategy"], set()).add(space.to_strategy(params).name)
    assert by_base["sarathi"] == {"sarathi"}
    assert by_base["continuous+ngram"] == {"continuous+ngram", "continuous+prefix+ngram"}
    assert space.base_of("continuous+prefix+ngram") == "continuous+ngram"
    assert space.base_of("continuous+prefix") == "continuous"
    with pytest.raises(StrategyError, match="did you mean 'prefix'"):
        Space(NAMES, features=("prefx",))


def test_feature_names_have_an_order_and_two_words_of_their_own() -> None:
    assert features_named(["draft", "prefix"]) == ["prefix", "draft"]
    assert features_named(["all"]) == list(FEATURES) and features_named(["speculative"]) == ["draft"]
    assert features_named(["none"]) == [] == features_named([])
    with pytest.raises(StrategyError, match="stands alone"):
        features_named(["none", "prefix"])


FIRST = ("continuous", "static", "continuous+prefix", "continuous+prefix+ngram", "continuous+prefix+draft")


def test_defaults_come_first_the_fastest_before_the_others_then_the_leaders_with_each_feature(
    tmp_path: Path,
) -> None:
    trials = sweep(Device(), tmp_path).trials
    assert [trial.chosen for trial in trials[:5]] == [strategy(name) for name in FIRST]
    assert [trial.origin for trial in trials[:5]] == ["default"] * 2 + ["search"] * 3
    assert not any(trial.coarse for trial in trials[2:5]), "who is slower is looked at closely as well"


def test_a_group_is_tried_beside_what_won_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tune_fake.FASTER, "prefix", 0.9)
    trials = sweep(Device(), tmp_path, max_trials=5).trials
    assert [trial.strategy for trial in trials[2:]] == [f"continuous+{feature}" for feature in ALL]


def test_a_variant_begins_at_a_saturated_rate_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tune_fake.FASTER, "prefix", 20.0)
    device = Device()
    sweep(device, tmp_path, features=("prefix",), max_trials=3)
    default = strategy("continuous+prefix")
    rates = [rate for label, rate, _ in device.asked if label == default.label]
    assert rates[0] is None and rates[1] == pytest.approx(tune_fake.saturated_rate(default), rel=0.1)


def test_the_best_switches_win_and_each_is_told_by_its_like(tmp_path: Path) -> None:
    outcome = sweep(Device(), tmp_path, max_trials=20)
    winner, found = outcome.winner, gains(outcome)
    assert winner is not None and winner.strategy == "continuous+prefix+draft"
    assert set(found) == set(ALL)
    for feature, gain in found.items():
        assert gain.ratio == pytest.approx(tune_fake.FASTER[feature], rel=0.05)
        assert gain.kept is (feature in winner.chosen.features)
        assert gain.confirmed and len(gain.with_it.confirmed) == len(gain.without.confirmed)
        assert gain.interval is not None and gain.interval[0] <= gain.ratio <= gain.interval[1]
        group = next(group for group, members in GROUPS.items() if feature in members)
        assert member_of(gain.without.chosen, group) == NONE
        assert with_member(gain.with_it.chosen, group, NONE) == gain.without.chosen, "nothing else differs"
    names = [row.facts.strategy for row in outcome.best]
    assert names[0] == winner.strategy and len(names) == 2 and names[1].startswith("static")
    assert outcome.best_default is not None and outcome.best_default.strategy == "continuous"
    assert outcome.gain is not None and outcome.gain > 1.5


def test_a_feature_that_does_not_pay_stays_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tune_fake.FASTER, "draft", 0.9)
    outcome = sweep(Device(), tmp_path, features=("ngram", "draft"), max_trials=20)
    assert outcome.winner is not None and outcome.winner.strategy == "continuous"
    found = gains(outcome)
    assert [found[name].kept for name in ("ngram", "draft")] == [False, False]
    assert found["draft"].ratio == pytest.approx(0.9, rel=0.05)


def test_a_strategy_that_only_a_feature_saves_needs_no_smaller_batch(tmp_path: Path) -> None:
    device = Device(hopeless=lambda chosen, _: "prefix" not in chosen.features)
    outcome = sweep(device, tmp_path, strategies=("continuous",), features=("prefix",), start_rate=5.0)
    winner = outcome.winner
    assert winner is not None and winner.strategy == "continuous+prefix"
    (gain,) = outcome.features
    assert gain.ratio is None and gain.kept, "without it nothing keeps the SLO"
    assert outcome.best_default is None and outcome.gain is None


def test_a_feature_that_does_not_fit_is_told_as_such(tmp_path: Path) -> None:
    def before(chosen: Strategy) -> None:
        if "draft" in chosen.features:
            raise OutOfDeviceMemoryError("out of device memory in a step of 3 decodes")

    outcome = sweep(Device(before=before), tmp_path, features=("draft",))
    (gain,) = outcome.features
    assert gain.ratio == 0.0 and gain.with_it.oom and not gain.kept


def test_a_random_baseline_draws_switches_too(tmp_path: Path) -> None:
    outcome = sweep(Device(), tmp_path, baseline_random=True)
    drawn = [trial for trial in outcome.trials if trial.origin == "random"]
    assert [trial.strategy for trial in drawn[:2]] == ["continuous", "static"]
    assert any(trial.chosen.features for trial in drawn)
    assert len(drawn) == 12 and outcome.winner is not None and outcome.winner.origin != "random"


@pytest.mark.parametrize("stop_at", [8, 14, 22, 40])
def test_an_interrupted_search_goes_on_with_its_switches(tmp_path: Path, stop_at: int) -> None:
    device = Device()

    def interrupt(_: Strategy) -> None:
        if len(device.asked) == stop_at:
            raise KeyboardInterrupt

    device.before = interrupt
    first = sweep(device, tmp_path, start_rate=5.0)
    assert first.interrupted
    again = Device()
    second = sweep(again, tmp_path, start_rate=5.0)
    measured = {trial.chosen.label for trial in first.trials}
    assert not [asked for asked in again.asked if asked[0] in measured and asked[2] == 0]
    assert len(second.trials) == 12 and len({trial.config for trial in second.trials}) == 12
    # Each once; who was cut off comes again at the end of the queue.
    assert {trial.chosen for trial in second.trials[:5]} == set(map(strategy, FIRST))
    third = Device()
    assert sweep(third, tmp_path, start_rate=5.0).features == second.features
    assert third.asked == []


def test_other_features_are_another_sweep(tmp_path: Path) -> None:
    sweep(Device(), tmp_path, features=(), max_trials=2)
    with pytest.raises(SweepMismatchError, match=r"features = None, not \['prefix'\]"):
        sweep(Device(), tmp_path, features=("prefix",))


def test_features_are_judged_by_throughput_too(tmp_path: Path) -> None:
    outcome = sweep(Device(slo=()), tmp_path, objective="throughput")
    assert gains(outcome)["prefix"].ratio == pytest.approx(1.5, rel=0.02)
