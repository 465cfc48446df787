"""Claims are judged by what was measured, and by nothing else."""

from __future__ import annotations

import argparse
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import claims
import pytest
from claimed.bench import Bench, Side, ratios
from claimed.chunking import long_ttft_s, p99_gap_s
from claimed.claim import Band, Check, Claim, Figure, Finding, Judged, Verdict, at_least, at_most, from_to
from claimed.heads import predicted
from claimed.prefix import batch_while_others_wait, blocks_per_sequence, most_at_once
from claimed.slots import use_without_prompts

from tunebatch.engine.records import RequestRecord, StepLog
from tunebatch.engine.strategies import strategy

RANGE = Check("use", Band(0.5, 0.7), Band(0.3, 0.8))


def judged(**samples: tuple[float, ...]) -> Judged:
    checks = tuple(at_least(name, 2.0, 1.1) for name in samples)
    finding = Finding("on", {name: Figure(own) for name, own in samples.items()}, "why")
    return Judged(1, Claim("name", "text", checks, lambda _: finding), finding)


def run_of(**record: Any) -> Any:
    return SimpleNamespace(record=SimpleNamespace(**record))


@pytest.mark.parametrize(
    ("check", "value", "verdict"),
    [
        (at_least("gain", 5.0, 2.0), 5.0, Verdict.HOLDS),
        (at_least("gain", 5.0, 2.0), 4.99, Verdict.IN_PART),
        (at_least("gain", 5.0, 2.0), 2.0, Verdict.IN_PART),
        (at_least("gain", 5.0, 2.0), 1.99, Verdict.NOT),
        (at_most("blocks", 0.7, 0.95), 0.7, Verdict.HOLDS),
        (at_most("blocks", 0.7, 0.95), 0.95, Verdict.IN_PART),
        (at_most("blocks", 0.7, 0.95), 0.96, Verdict.NOT),
        (from_to("gain", 2.0, 3.0, 1.1), 2.0, Verdict.HOLDS),
        (from_to("gain", 2.0, 3.0, 1.1), 3.0, Verdict.HOLDS),
        (from_to("gain", 2.0, 3.0, 1.1), 3.01, Verdict.ABOVE),
        (from_to("gain", 2.0, 3.0, 1.1), 1.99, Verdict.IN_PART),
        (from_to("gain", 2.0, 3.0, 1.1), 1.09, Verdict.NOT),
        (RANGE, 0.5, Verdict.HOLDS),
        (RANGE, 0.71, Verdict.IN_PART),
        (RANGE, 0.29, Verdict.NOT),
        (RANGE, 0.99, Verdict.NOT),
    ],
)
def test_bounds_belong_to_the_better_verdict(check: Check, value: float, verdict: Verdict) -> None:
    assert check.verdict(value) is verdict


def test_a_figure_is_judged_by_its_median_and_says_when_a_round_would_be_judged_otherwise() -> None:
    one = judged(gain=(1.9, 2.2, 2.4))
    assert one.verdict is Verdict.HOLDS
    assert one.close == ("gain",)
    assert judged(gain=(2.1, 2.2, 2.4)).close == ()


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (3.0, 2.0, Verdict.HOLDS),
        (3.0, 1.0, Verdict.IN_PART),
        (1.2, 1.3, Verdict.IN_PART),
        (1.0, 1.2, Verdict.IN_PART),
        (1.0, 0.5, Verdict.NOT),
    ],
)
def test_a_claim_holds_or_does_not_where_all_its_figures_agree(
    first: float, second: float, verdict: Verdict
) -> None:
    assert judged(first=(first,), second=(second,)).verdict is verdict


@pytest.mark.parametrize(
    ("first", "second", "verdict"),
    [
        (2.5, 2.5, Verdict.HOLDS),
        (3.5, 3.5, Verdict.ABOVE),
        (2.5, 3.5, Verdict.ABOVE),
        (3.5, 1.5, Verdict.IN_PART),
        (3.5, 1.0, Verdict.IN_PART),
    ],
)
def test_a_claim_holds_above_its_range_where_any_figure_does_and_none_fails(
    first: float, second: float, verdict: Verdict
) -> None:
    checks = (from_to("first", 2.0, 3.0, 1.1), from_to("second", 2.0, 3.0, 1.1))
    finding = Finding("on", {"first": Figure((first,)), "second": Figure((second,))}, "why")
    assert Judged(1, Claim("name", "text", checks, lambda _: finding), finding).verdict is verdict


@pytest.mark.parametrize(
    ("name", "figure", "value", "verdict"),
    [
        ("batching", "static 32", 12.0, Verdict.ABOVE),
        ("continuous", "continuous, wide", 1.35, Verdict.ABOVE),
        ("slots", "static, alike", 0.987, Verdict.NOT),
        ("slots", "static, varied", 0.58, Verdict.HOLDS),
        ("slots", "static, wide", 0.151, Verdict.NOT),
        ("slots", "continuous, alike", 0.987, Verdict.ABOVE),
        ("slots", "continuous, wide", 0.851, Verdict.HOLDS),
        ("slots", "mixed, varied", 1.0, Verdict.ABOVE),
        ("speculation", "ngram auto at batch 1", 3.2, Verdict.ABOVE),
        ("heads", "sequences at once", 5.0, Verdict.ABOVE),
    ],
)
def test_a_claim_of_a_range_is_held_against_both_ends(
    name: str, figure: str, value: float, verdict: Verdict
) -> None:
    claim = next(one for one in claims.CLAIMS.values() if one.name == name)
    (check,) = [one for one in claim.checks if one.figure == figure]
    assert check.verdict(value) is verdict


def test_a_figure_shows_its_spread_where_it_has_one() -> None:
    assert Figure((1.0, 3.0, 12.0)).text() == "3.00x [1.00x, 12.0x]"
    assert Figure((0.5,), "%").text() == "50 %"
    assert Figure((0.5011, 0.5012), "%").text() == "50.1 %"
    assert Figure((0.797, 0.999), "%").text() == "89.8 % [79.7 %, 99.9 %]"


@pytest.mark.parametrize("claim", claims.CLAIMS.values(), ids=lambda claim: claim.name)
def test_where_a_claim_holds_it_also_holds_in_part(claim: Claim) -> None:
    assert len({check.figure for check in claim.checks}) == len(claim.checks) > 0
    for check in claim.checks:
        assert check.partly.low <= check.claimed.low < check.claimed.high <= check.partly.high
        assert check.partly != check.claimed


def test_sides_take_turns_forwards_and_backwards(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []
    monkeypatch.setattr(Bench, "run", lambda _, side: ran.append(side.strategy.name) or len(ran))
    bench = Bench(None, None, rounds=3)
    turns = bench.turns({name: Side(None, strategy(name)) for name in ("static", "mixed")})
    assert ran == ["static", "mixed", "mixed", "static", "static", "mixed"]
    assert turns == {"static": [1, 4, 5], "mixed": [2, 3, 6]}
    assert ratios(turns, "mixed", "static", float).samples == (2.0, 0.75, 1.2)


def test_a_smaller_cache_is_of_one_run_only(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def measure(_: Any, __: Any, executor: Any, **___: Any) -> Any:
        seen.append(executor.num_blocks)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return SimpleNamespace(environment={"foreign_cpu_share": 0.05})

    monkeypatch.setattr("claimed.bench.measure", measure)
    executor = SimpleNamespace(num_blocks=100)
    bench = Bench(executor, None)
    side = Side(None, strategy("mixed"), num_blocks=7)
    bench.run(side)
    with pytest.raises(KeyboardInterrupt):
        bench.run(side)
    bench.run(replace(side, num_blocks=None))
    assert seen == [7, 7, 100]
    assert executor.num_blocks == 100
    assert bench.foreign_cpu_shares == [0.05, 0.05]


@pytest.mark.parametrize(
    ("shares", "runs", "kept"),
    [((0.1,), 1, 0.1), ((0.5, None), 2, 0.0), ((0.5, 0.4, 0.6), 3, 0.4)],
)
def test_a_disturbed_run_is_done_anew_and_the_quietest_counts(
    monkeypatch: pytest.MonkeyPatch, shares: tuple[float | None, ...], runs: int, kept: float
) -> None:
    results = [SimpleNamespace(environment={"foreign_cpu_share": share}) for share in shares]
    left = list(results)
    monkeypatch.setattr("claimed.bench.measure", lambda *_, **__: left.pop(0))
    bench = Bench(SimpleNamespace(num_blocks=1), None)
    result = bench.run(Side(None, strategy("mixed")))
    assert len(results) - len(left) == runs
    assert (result.environment["foreign_cpu_share"] or 0.0) == kept
    assert bench.foreign_cpu_shares == [kept]


def test_short_requests_are_judged_by_their_gaps_and_long_ones_by_their_first_token() -> None:
    short = RequestRecord(0, 0.0, 16, 3, token_times_s=[1.0, 1.5, 2.5])
    long = [RequestRecord(i, 1.0, 1600, 2, token_times_s=[2.0 + i, 9.0]) for i in (1, 2)]
    result = run_of(requests=[short, *long])
    assert p99_gap_s(result) == pytest.approx(0.995)
    assert long_ttft_s(result) == 2.5


def test_a_batch_is_what_the_cache_holds_while_others_wait() -> None:
    steps = StepLog(
        duration_s=[1.0, 3.0, 4.0],
        slots_held=[2, 4, 100],
        slots_active=[1, 4, 3],
        num_waiting=[5, 1, 0],
        blocks_used=[10, 20, 300],
        num_prefills=[1, 0, 0],
    )
    result = run_of(steps=steps)
    assert batch_while_others_wait(result) == pytest.approx((2 + 12) / 4)
    assert blocks_per_sequence(result) == pytest.approx((10 + 60 + 1200) / (2 + 12 + 400))
    assert most_at_once(result) == 4
    assert use_without_prompts(result) == pytest.approx(7 / 104)


def test_a_quarter_of_the_heads_is_predicted_four_times_the_sequences() -> None:
    assert (predicted("MHA"), predicted("GQA")) == (8, 32)


def test_claims_are_chosen_by_number_or_name() -> None:
    assert claims.chosen("5, batching,5") == [1, 5]
    with pytest.raises(argparse.ArgumentTypeError, match=r"no claim '10'; one of batching, .*, 9"):
        claims.chosen("1,10")
