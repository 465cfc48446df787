"""Every strategy that was asked for is on the screen: with a row, with a reason, or with a caution."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tunebatch.cli.sweep_json import outcome_json
from tunebatch.cli.sweep_margin import margin_rate
from tunebatch.cli.sweep_progress import Watcher
from tunebatch.cli.sweep_report import caveats, default_told, print_outcome, unbounded
from tunebatch.cli.sweep_search import knobs_to_set
from tunebatch.engine.strategies import strategy
from tunebatch.measure.result import RunResult, read_result
from tunebatch.measure.slo import check
from tunebatch.profile import Profile, load_profile
from tunebatch.profile_sections import WorkloadSection
from tunebatch.report.progress import Progress
from tunebatch.tune.facts import Miss, SweepEvent, SweepOutcome, TableRow, TrialFacts

UNMEASURED = "static: the time was up before it was measured: give it more --time"


@pytest.fixture
def asked() -> Profile:
    return load_profile("smoke", {"search": {"strategies": ["sequential", "static"]}}, {})


def trial(name: str, **rest: Any) -> TrialFacts:
    given = {"number": 0, "origin": "default", "knobs": {}, "capacity": 0.0, "met": False, "objective": 0.0}
    return TrialFacts(strategy=name, **{**given, **rest})


def outcome_of(*trials: TrialFacts, interrupted: bool = False) -> SweepOutcome:
    return SweepOutcome(
        trials=list(trials),
        best=[TableRow(one, None) for one in trials if one.origin != "random"],
        winner=None,
        best_default=None,
        gain=None,
        gain_interval=None,
        binding=None,
        best_random=None,
        random_gain=None,
        interrupted=interrupted,
        elapsed_s=1.0,
        foreign_cpu_share=None,
    )


def test_a_strategy_that_was_not_reached_is_named(asked: Profile) -> None:
    outcome = outcome_of(trial("sequential"), trial("static", origin="random"))
    assert caveats(outcome, asked) == [UNMEASURED]
    assert outcome_json(outcome, asked)["caveats"] == [UNMEASURED]
    screen = io.StringIO()
    console = Console(file=screen, width=150)
    print_outcome(outcome, asked, console, quiet=True, ascii_only=True)
    assert f"caution: {UNMEASURED}" in screen.getvalue()


def test_an_interrupt_and_a_lack_of_memory_speak_for_themselves(asked: Profile) -> None:
    assert caveats(outcome_of(trial("sequential"), interrupted=True), asked) == []
    assert caveats(outcome_of(trial("sequential"), trial("static", oom=True)), asked) == []


def test_trials_that_are_used_up_are_told_from_time(tunebatch: Any) -> None:
    done = tunebatch("sweep", "-p", "smoke", "--trials", "1", "-o", "here")
    told = "continuous: the trials were used up before it was measured: give it more --trials"
    assert f"caution: {told}" in done.out
    assert told in json.loads(Path("here/sweep.json").read_text())["caveats"]


def test_a_random_trial_does_not_use_up_the_search(asked: Profile) -> None:
    few = dataclasses.replace(asked, search=asked.search.model_copy(update={"trials": 2}))
    outcome = outcome_of(trial("sequential"), trial("sequential", origin="random"))
    assert caveats(outcome, few) == [UNMEASURED]


def test_a_rate_that_only_the_confirmation_missed_bounds_a_capacity(asked: Profile) -> None:
    found = trial("static", capacity=9.0, met=True, rates=((8.0, True), (9.0, True)), confirmed=(8.5,))
    assert unbounded(found, None, asked)
    assert not unbounded(found, Miss("p90_ttft", 0.5, None, 9.2), asked)


def shown(asked: Profile, outcome: SweepOutcome) -> str:
    screen = io.StringIO()
    console = Console(file=screen, width=150)
    print_outcome(outcome, asked, console, quiet=False, ascii_only=True)
    return screen.getvalue()


def found(name: str, **rest: Any) -> TrialFacts:
    return trial(name, **{"capacity": 9.0, "met": True, "rates": ((9.0, True),), **rest})


def test_who_only_seemed_better_than_the_winner_is_named(asked: Profile) -> None:
    winner = found("sequential", confirmed=(9.0,), rates=((9.0, True), (9.5, False)))
    for rest, told in (
        ({"capacity": 12.0}, True),
        ({"capacity": 12.0, "confirmed": (0.0,)}, False),
        ({"capacity": 12.0, "origin": "random"}, False),
        ({"capacity": 8.0}, False),
    ):
        outcome = dataclasses.replace(outcome_of(winner, found("static", **rest)), winner=winner)
        line = (
            "static, batch 32, 2048 tokens seemed better in the search, 12.0 req/s to the winner's 9.00 "
            "there, but was not confirmed on a fresh seed: give it more --time"
        )
        seemed = [one for one in caveats(outcome, asked) if "seemed" in one]
        assert seemed == ([line] if told else [])


def test_who_may_serve_more_than_the_winner_is_named_with_it(asked: Profile, run_result: RunResult) -> None:
    winner = found("sequential", confirmed=(9.0,), rates=((9.0, True), (9.5, False)))
    for rates, told in ((((8.0, True),), True), (((8.0, True), (8.5, False)), False)):
        rival = found("static", capacity=8.0, confirmed=(8.0,), rates=rates)
        missed = None if told else Miss("p90_ttft", 0.5, None, 8.5)
        rows = [
            TableRow(winner, run_result, Miss("p90_ttft", 0.5, None, 9.5)),
            TableRow(rival, run_result, missed),
        ]
        outcome = dataclasses.replace(
            outcome_of(winner, rival), best=rows, winner=winner, binding=rows[0].missed
        )
        first = shown(asked, outcome).splitlines()[0]
        too_short = "; but the time was too short to see where static (at least 8.00) ends"
        assert first.endswith(too_short) == told, first
        assert (">= 8.00" in shown(asked, outcome)) == told


@pytest.fixture
def run_result(tunebatch: Any) -> RunResult:
    assert tunebatch("run", "static", "-o", "run").code == 0
    return read_result("run")


def test_what_was_not_measured_again_is_marked(asked: Profile, run_result: RunResult) -> None:
    first = found("sequential", confirmed=(9.0,))
    for second, starred in ((found("static"), True), (found("static", confirmed=(9.0,)), False)):
        rows = [TableRow(first, run_result), TableRow(second, run_result)]
        outcome = dataclasses.replace(outcome_of(first, second), best=rows)
        text = shown(asked, outcome)
        assert ("9.00*" in text) is ("* measured in the search only, not again" in text) is starred
        told = outcome_json(outcome, asked)["best"]
        assert [row["confirmed"] for row in told] == [True, not starred]
    rows = [TableRow(found("static"), run_result)]
    assert "*" not in shown(asked, dataclasses.replace(outcome_of(found("static")), best=rows))


def test_a_trace_is_repeated_and_not_drawn_afresh(asked: Profile) -> None:
    recorded = dataclasses.replace(asked, workload=WorkloadSection(trace_file="t.csv"))
    paced = dataclasses.replace(asked, workload=WorkloadSection(trace_file="t.csv", arrivals="poisson"))
    winner = found("sequential", confirmed=(9.0, 8.0))
    unsure = dataclasses.replace(outcome_of(found("sequential")), winner=found("sequential"))
    outcome = dataclasses.replace(outcome_of(winner), winner=winner)
    event = SweepEvent(
        phase="confirm",
        trial=1,
        total=1,
        chosen=winner.chosen,
        best=None,
        elapsed_s=1.0,
        left_s=None,
        done=winner,
    )
    for profile, fresh in ((recorded, False), (paced, True), (asked, True)):
        screen = io.StringIO()
        Watcher(Progress(Console(file=screen, width=150)), profile)(event)
        told = [shown(profile, outcome), screen.getvalue().splitlines()[-1], *caveats(unsure, profile)[-1:]]
        assert all(("fresh seed" in text) is fresh for text in told)
        assert all(("repeated on the same trace" in text) is not fresh for text in told)


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        (
            {"max_batch_size": 64, "max_batched_tokens": 512},
            ["max_batch_size 64 is the largest that was tried"],
        ),
        ({"max_batch_size": 32, "max_batched_tokens": 128}, ["max_batched_tokens 128 is the least that was"]),
        ({"max_batch_size": 1, "max_batched_tokens": 512}, []),
    ],
)
def test_a_winner_on_the_edge_of_what_was_searched(
    asked: Profile, knobs: dict[str, int], told: list[str]
) -> None:
    winner = found("static", knobs=knobs, confirmed=(9.0,))
    outcome = dataclasses.replace(outcome_of(winner), winner=winner)
    edges = [line for line in caveats(outcome, asked) if "that was tried" in line]
    assert [line.startswith(start) for line, start in zip(edges, told, strict=True)] == [True] * len(told)


def test_a_winner_confirmed_often_has_a_margin_and_another_a_caution(
    asked: Profile, run_result: RunResult
) -> None:
    metrics, limit_s = run_result.metrics, asked.slo.limits[0].limit_s
    near = dataclasses.replace(
        metrics.ttft.p90, value_s=0.9 * limit_s, lower_s=0.7 * limit_s, upper_s=1.2 * limit_s
    )
    metrics = dataclasses.replace(metrics, ttft=dataclasses.replace(metrics.ttft, p90=near))
    edge = dataclasses.replace(run_result, metrics=metrics, verdict=check(metrics, asked.slo))
    for confirmed, sure in (((9.0, 8.5, 9.5), True), ((9.0,), False)):
        knobs = {"max_batch_size": 8, "max_batched_tokens": 512}
        winner = found("static", confirmed=confirmed, knobs=knobs)
        rows = [TableRow(winner, edge)]
        outcome = dataclasses.replace(outcome_of(winner), winner=winner, best=rows)
        text = shown(asked, outcome)
        told = outcome_json(outcome, asked)
        assert told["margin_rate_per_s"] == margin_rate(outcome, asked)
        assert ("with a margin: 7.45 req/s, at which another seed is sustained" in text) is sure
        cautioned = (
            "p90_ttft 360 ms [280 ms, 480 ms] is nearer to its limit of 400ms than it is known" in text
        )
        assert cautioned is not sure


def test_one_configuration_is_told_as_one(asked: Profile) -> None:
    winner = found("sequential", confirmed=(9.0,))
    alone = dataclasses.replace(outcome_of(winner), winner=winner)
    assert "\n1 configuration inside " in shown(asked, alone)
    both = dataclasses.replace(outcome_of(winner, found("static")), winner=winner)
    assert "\n2 configurations inside " in shown(asked, both)


def with_search(asked: Profile, **changed: Any) -> Profile:
    return dataclasses.replace(asked, search=asked.search.model_copy(update=changed))


def test_tuning_is_only_said_not_to_have_helped_where_knobs_were_tried(asked: Profile) -> None:
    best = trial("static", knobs={"max_batch_size": 8})
    elsewhere = trial("continuous", knobs={"max_batch_size": 4})
    other = trial("static", knobs={"max_batch_size": 16}, origin="search")
    no_time = "; these are the default knobs, and there was no time to try others"
    assert default_told(best, outcome_of(best, elsewhere), asked) == no_time
    assert "tuning did not help" in default_told(best, outcome_of(best, other), asked)
    used_up = with_search(asked, trials=2)
    no_trials = "; these are the default knobs, and there were no trials left to try others"
    assert default_told(best, outcome_of(best, elsewhere), used_up) == no_trials
    assert default_told(best, outcome_of(best), used_up) == no_time


def test_nothing_is_said_of_knobs_that_could_not_be_tried(asked: Profile) -> None:
    plain, preset = trial("sequential"), trial("sarathi", knobs={"max_batch_size": 32})
    assert default_told(plain, outcome_of(plain), asked) == ""
    assert default_told(preset, outcome_of(preset), asked) == ""
    best = trial("continuous", knobs={"max_batch_size": 8, "max_batched_tokens": 512})
    ranges = {"max_batch_size": (8.0, 8.0), "max_batched_tokens": (512.0, 512.0)}
    assert default_told(best, outcome_of(best), with_search(asked, knobs=ranges)) == ""
    one_free = with_search(asked, knobs={"max_batch_size": (8.0, 8.0)})
    assert "no time" in default_told(best, outcome_of(best), one_free)


@pytest.mark.parametrize(
    ("name", "knobs", "told"),
    [
        ("mixed", {}, {}),
        ("mixed", {"chunk_size": "auto", "max_batch_size": 8}, {"max_batch_size": 8, "chunk_size": "auto"}),
        ("static", {"max_batched_tokens": 512}, {"max_batched_tokens": 512}),
        ("static", {"sort_by_length": 1}, {"sort_by_length": 1}),
        ("continuous+ngram", {"num_drafts": 3}, {"num_drafts": 3}),
        ("adaptive", {"max_batch_size": 2}, {"max_batch_size": 2, "min_batch_size": 2}),
        ("lightllm", {"forecast_kv": 0, "max_batch_size": 64}, {"forecast_kv": 0}),
        ("vllm-v1", {"max_batch_size": 64}, {}),
        ("sequential", {}, {}),
    ],
)
def test_the_next_command_sets_the_knobs_that_it_would_not_have_without(
    tunebatch: Any, name: str, knobs: dict[str, Any], told: dict[str, Any]
) -> None:
    winner = strategy(name, knobs)
    assert knobs_to_set(winner, 64) == told
    flags = [word for knob, value in told.items() for word in ("--set", f"{knob}={value}")]
    assert tunebatch("run", name, *flags, "-q", "-o", "here").code == 0
    served = json.loads(Path("here/result.json").read_text())["tunebatch"]
    assert (served["strategy"], served["knobs"]) == (winner.name, winner.shown_knobs)
