"""Features of a sweep on the command line: what is refused, what is left out and why, and what is told."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from tunebatch.cli import dry_run
from tunebatch.cli.feature_choice import without_idle_features
from tunebatch.cli.session import Session
from tunebatch.cli.sweep_features import feature_lines, features_json
from tunebatch.cli.sweep_json import outcome_json
from tunebatch.cli.traffic import checked_spec
from tunebatch.engine.strategies import strategy
from tunebatch.profile import Profile, load_profile, profile_names
from tunebatch.tune.facts import FeatureGain, SweepOutcome, TrialFacts
from tunebatch.workload.spec import Workload

SHARED = ["-w", "system-prompt", "-n", "78", "--slo", "p90_ttft<=2s", "--strategy", "continuous"]


@pytest.fixture
def asked() -> Profile:
    return load_profile("shared", {}, {})


def trial(name: str, capacity: float = 10.0, **rest: Any) -> TrialFacts:
    knobs = dict(strategy(name, rest.pop("knobs", {})).knobs)
    given = {"number": 0, "origin": "search", "knobs": knobs, "met": capacity > 0.0, "objective": 0.0}
    rates = ((capacity, True), (2.0 * capacity + 1.0, False))
    return TrialFacts(strategy=name, capacity=capacity, **{**given, "rates": rates, **rest})


def outcome_of(
    winner: TrialFacts, *features: FeatureGain, others: tuple[TrialFacts, ...] = ()
) -> SweepOutcome:
    return SweepOutcome(
        trials=[winner, *others],
        best=[],
        winner=winner,
        best_default=None,
        gain=None,
        gain_interval=None,
        binding=None,
        best_random=None,
        random_gain=None,
        interrupted=False,
        elapsed_s=1.0,
        foreign_cpu_share=None,
        features=list(features),
    )


def lines(asked: Profile, winner: TrialFacts, *features: FeatureGain) -> list[str]:
    return feature_lines(outcome_of(winner, *features), asked)


def test_a_line_tells_what_each_feature_was_worth(asked: Profile) -> None:
    plain = trial("mixed", confirmed=(10.0, 10.0))
    winner = trial(
        "mixed+prefix",
        confirmed=(18.0, 18.0),
        summary={"hit_rate": 0.71, "saved_prefill_tokens": 1280, "acceptance": None, "mean_batch": 9},
    )
    drafting = trial("mixed+prefix+ngram", 9.3, summary={"acceptance": 0.4, "mean_batch": 20.0})
    told = lines(
        asked,
        winner,
        FeatureGain("prefix", True, winner, plain, 1.8, (1.7, 1.9)),
        FeatureGain("ngram", False, drafting, dataclasses.replace(winner, confirmed=()), 0.93),
    )
    assert told == [
        "prefix caching: 1.80x the capacity without it [1.70, 1.90] (hit rate 71 %, 1,280 tokens saved)",
        "drafting by ngram: 0.930x the capacity without it (acceptance 40 %, 20.0 sequences a step); "
        "in the search only; too close to tell; off won",
        "drafting by a model: not measured at the same settings with it and without: "
        "give it more --time or --trials",
    ]


@pytest.mark.parametrize(
    ("ratio", "interval", "close"),
    [
        (1.1, None, True),
        (1.2, None, False),
        (0.9, None, True),
        (1.04, (1.01, 1.07), False),
        (1.2, (0.9, 1.6), True),
    ],
)
def test_a_ratio_that_may_be_nothing_says_so(
    asked: Profile, ratio: float, interval: tuple[float, float] | None, close: bool
) -> None:
    winner, plain = trial("mixed+prefix"), trial("mixed")
    told = lines(asked, winner, FeatureGain("prefix", True, winner, plain, ratio, interval))[0]
    assert ("too close to tell" in told) is close


def test_a_ratio_with_an_open_end_is_a_bound(asked: Profile) -> None:
    winner, plain = trial("mixed+prefix", 20.0), trial("mixed")
    for one, other, word in ((winner, plain, "at least 2.00x"), (plain, winner, "at most 2.00x")):
        one_open = dataclasses.replace(one, rates=((one.capacity, True),))
        pair = (one_open, other) if one is winner else (other, one_open)
        assert word in lines(asked, winner, FeatureGain("prefix", True, *pair, 2.0))[0]
        sure = tuple(dataclasses.replace(side, confirmed=(1.0,)) for side in pair)
        assert word.split(" 2")[0] not in lines(asked, winner, FeatureGain("prefix", True, *sure, 2.0))[0]


def test_what_keeps_no_slo_has_no_ratio(asked: Profile) -> None:
    winner, plain = trial("mixed+prefix"), trial("mixed", 0.0)
    assert (
        "without it nothing keeps the SLO"
        in lines(asked, winner, FeatureGain("prefix", True, winner, plain, None))[0]
    )
    drafting, large = trial("mixed+ngram", 0.0), trial("mixed+ngram", 0.0, oom=True)
    for one, said in ((drafting, "nothing keeps the SLO with it"), (large, "does not fit in memory")):
        told = lines(asked, trial("mixed"), FeatureGain("ngram", False, one, trial("mixed"), 0.0))[1]
        assert told == f"drafting by ngram: {said}; off won"


def test_who_won_in_place_of_a_drafter_is_named_and_other_settings_too(asked: Profile) -> None:
    winner = trial("mixed+draft", knobs={"max_batch_size": 8})
    gain = FeatureGain("ngram", False, trial("mixed+ngram"), trial("mixed"), 1.2)
    told = lines(asked, winner, gain)[1]
    assert "; measured with mixed batch 32, " in told and told.endswith("; draft won")


def test_the_json_has_the_features_and_who_was_rejected(asked: Profile) -> None:
    winner, plain = trial("mixed+prefix", confirmed=(20.0, 20.0)), trial("mixed", confirmed=(10.0, 10.0))
    unlucky = trial("continuous", confirmed=(9.0, 0.0))
    gain = FeatureGain("prefix", True, winner, plain, 2.0, (1.9, 2.1))
    others = (plain, unlucky, trial("continuous+ngram"), trial("static", origin="random", confirmed=(5.0,)))
    data = outcome_json(outcome_of(winner, gain, others=others), asked, {"draft": "no reason"})
    assert data["features"] == features_json(outcome_of(winner, gain)) and json.dumps(data)
    assert data["features"][0]["interval"] == [1.9, 2.1] and data["features"][0]["confirmed"] is True
    assert data["features"][0]["without"]["strategy"] == "mixed"
    assert data["features_left_out"] == {"draft": "no reason"}
    assert [(one["strategy"], one["why"]) for one in data["rejected"]] == [
        ("mixed", "0.500x the winner"),
        ("continuous", "misses the SLO on a fresh seed"),
    ]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (
            ["--features", "prefx"],
            ["--features prefx", "did you mean 'prefix'? (one of prefix, "],
        ),
        (["--features", "none,prefix"], ["'none' stands alone"]),
        (
            ["-m", "./elsewhere", "--features", "draft,prefix"],
            ["feature draft needs a draft model", "--draft", "--features prefix"],
        ),
        (["-m", "./elsewhere", "--strategy", "static+draft"], ["strategy static+draft needs", "+ngram"]),
    ],
)
def test_features_that_cannot_be_are_one_line(
    tunebatch: Any, fake_model: list[str], arguments: list[str], told: list[str]
) -> None:
    done = tunebatch("sweep", *arguments)
    assert done.code == 2 and fake_model == []
    (line,) = done.err.splitlines()
    assert all(part in line for part in told), line


def test_a_typo_in_a_profile_is_refused_by_file_and_key(tunebatch: Any) -> None:
    Path("mine.toml").write_text('[search]\nfeatures = ["prefix", "ngramm"]\n')
    done = tunebatch("sweep", "-p", "mine.toml")
    assert done.code == 2 and "mine.toml: [search] features = ['prefix', 'ngramm']: unknown" in done.err
    assert "did you mean 'ngram'" in done.err


def test_a_flag_beats_the_profile() -> None:
    assert load_profile("shared", {}, {}).search.features == ["prefix", "ngram", "draft"]
    assert load_profile("shared", {"search": {"features": "none"}}, {}).search.features == []
    assert load_profile("quickstart", {}, {}).search.features == []
    assert load_profile("quickstart", {"search": {"features": "ngram, prefix"}}, {}).search.features == [
        "prefix",
        "ngram",
    ]
    assert "shared" in profile_names()


def workload_of(profile: Profile) -> Workload:
    return Session.open(profile, checked_spec(profile)).workload()


def test_what_cannot_matter_is_left_out_and_why() -> None:
    every = {"features": "all", "strategies": ["static", "sarathi"]}
    alone = load_profile("quickstart", {"search": every, "workload": {"output_tokens": "1"}}, {})
    kept, why = without_idle_features(alone, workload_of(alone))
    assert kept.search.features == [] and set(why) == {"prefix", "ngram", "draft"}
    assert "begins like an earlier one" in why["prefix"] and "one token" in why["draft"]
    named = load_profile("shared", {"search": {**every, "strategies": ["static+ngram", "sarathi"]}}, {})
    kept, why = without_idle_features(named, workload_of(named))
    assert kept.search.features == ["prefix"] and set(why) == {"ngram", "draft"}
    assert "named with it" in why["draft"]
    whole = load_profile("shared", {}, {})
    assert without_idle_features(whole, workload_of(whole)) == (whole, {})


def test_a_sweep_says_what_it_leaves_out_and_goes_on(tunebatch: Any) -> None:
    done = tunebatch("sweep", "-p", "smoke", "--trials", "2", "--features", "prefix", "-o", "here")
    assert done.code == 0
    assert "feature prefix is left out of the search: no prompt of this workload begins" in done.err
    data = json.loads(Path("here/sweep.json").read_text())
    assert set(data["features_left_out"]) == {"prefix"} and data["features"] == []
    again = tunebatch("sweep", "--resume", "here")
    assert again.code == 0 and "left out" in again.err
    assert json.loads(Path("here/command.json").read_text())["flags"]["search"]["features"] == "prefix"


def test_a_sweep_switches_prefix_caching(tunebatch: Any) -> None:
    done = tunebatch("sweep", *SHARED, "--features", "prefix", "--trials", "3", "-o", "here", "--json")
    assert done.code == 0, done.err
    data = json.loads(done.out)
    assert {one["strategy"] for one in data["trials"]} == {"continuous", "continuous+prefix"}
    (gain,) = data["features"]
    assert data["winner"]["strategy"] == "continuous+prefix" and gain["kept"] and gain["ratio"] > 1.2
    assert any(line.startswith("prefix caching: ") and " tokens saved" in line for line in data["why"])
    assert any(line.startswith("continuous+prefix: a request spends") for line in data["reasons"])


def test_a_dry_run_tells_the_switches_and_counts_their_trials(
    tunebatch: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dry_run, "_predicted_rate", lambda session, chosen: 10.0)
    monkeypatch.setattr(Session, "load_draft_for", lambda self, strategies: None)
    call = ["sweep", "-p", "shared", "--dry-run"]
    plain = json.loads(tunebatch(*call, "--features", "none", "--json").out)
    every = json.loads(tunebatch(*call, "--json").out)
    assert plain["switches"] == {} and plain["variants"] == ["continuous", "mixed"]
    assert every["switches"] == {"prefix": ["none", "prefix"], "drafts": ["none", "ngram", "draft"]}
    assert len(every["variants"]) == 12
    assert set(every["predicted_run_s"]) == {
        *("continuous", "mixed", "continuous+prefix", "continuous+ngram", "continuous+draft")
    }
    assert every["predicted_least_time_s"] > 1.5 * plain["predicted_least_time_s"]
    text = tunebatch(*call).out
    assert "features:  prefix: none or prefix; drafts: none, ngram or draft; 12 variants" in text
    assert "features:" not in tunebatch(*call, "--features", "none").out
