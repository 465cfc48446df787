import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from measure_records import request, run

from tunebatch.engine.records import EndReason
from tunebatch.measure.limits import METRICS, QUANTILES, STATISTICS
from tunebatch.measure.metrics import summarize
from tunebatch.measure.percentiles import percentile
from tunebatch.measure.slo import (
    EarlyStop,
    Limit,
    Slo,
    SloError,
    check,
    parse_limit,
    parse_slo,
    request_meets,
    violations_allowed,
)

SECONDS = st.floats(1e-6, 1e4, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "limit"),
    [
        ("p99_ttft<=2s", Limit("ttft", "p99", 2.0)),
        ("p90_tpot<=100ms", Limit("tpot", "p90", 0.1)),
        (" mean_itl <= 80 us ", Limit("itl", "mean", 80e-6)),
        ("MAX_E2E<=1.5min", Limit("e2e", "max", 90.0)),
    ],
)
def test_parsing(text: str, limit: Limit) -> None:
    assert parse_limit(text) == limit


def test_key_and_value_form() -> None:
    assert parse_limit("p99_ttft", "500ms") == Limit("ttft", "p99", 0.5)
    assert parse_slo({"p99_ttft": "500ms", "p50_e2e": "3s"}) == parse_slo(["p99_ttft<=500ms", "p50_e2e<=3s"])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("p99_ttft<=500", "did you mean 500ms?"),
        ("p99_ttft<=500msec", "did you mean 500ms?"),
        ("p99_ttft<=5MS", "did you mean 5ms?"),
        ("p99_tfft<=1s", "did you mean p99_ttft?"),
        ("p98_ttft<=1s", "did you mean p9"),
        ("speed<=1s", "metric: ttft, tpot, itl, e2e"),
        ("p99_ttft=1s", "has no '<='"),
        ("p99_ttft<=fast", "not a duration"),
        ("p99_ttft<=0ms", "must be above 0"),
        ("p99_ttft<=-1ms", "must be above 0"),
        ("p99_ttft<=1e999s", "must be above 0"),
        ("p99_ttft<=", "not a duration"),
    ],
)
def test_refusals_are_one_line_with_the_nearest_valid_value(text: str, says: str) -> None:
    with pytest.raises(SloError) as error:
        parse_limit(text)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_limit_given_twice_is_refused() -> None:
    with pytest.raises(SloError, match="twice"):
        parse_slo(["p99_ttft<=1s", "p99_ttft<=2s"])


@given(st.sampled_from(METRICS), st.sampled_from(STATISTICS), SECONDS)
def test_text_reads_back_to_the_same_number(metric, statistic, seconds) -> None:  # type: ignore[no-untyped-def]
    limit = Limit(metric, statistic, seconds)
    assert parse_limit(str(limit)) == limit


def verdict_of(ttfts: list[float], *limits: str):  # type: ignore[no-untyped-def]
    metrics = summarize(run([request(i, 0.0, [t]) for i, t in enumerate(ttfts)]))
    return check(metrics, parse_slo(limits))


def test_pass_miss_and_margin() -> None:
    verdict = verdict_of([1.0] * 11, "p50_ttft<=2s", "mean_ttft<=1s", "max_e2e<=500ms")
    assert [v.status for v in verdict.limits] == ["pass", "pass", "miss"]
    assert [v.margin for v in verdict.limits] == pytest.approx([math.log(0.5), 0.0, math.log(2)])
    assert (verdict.met, verdict.enough) == (False, True)
    assert verdict.binding is verdict.limits[2]
    assert verdict_of([1.0] * 11, "p50_ttft<=2s").met


def test_too_few_samples_are_neither_pass_nor_miss() -> None:
    verdict = verdict_of([1.0] * 661, "p99_ttft<=2s")
    (limit,) = verdict.limits
    assert (limit.status, limit.observed_s, limit.margin) == ("not enough evidence", None, None)
    assert (limit.count, limit.needed) == (661, 662)
    assert (verdict.met, verdict.enough, verdict.binding) == (False, False, None)
    assert verdict_of([1.0] * 662, "p99_ttft<=2s").met


def test_a_latency_of_zero_has_a_finite_margin() -> None:
    (limit,) = verdict_of([0.0] * 11, "p50_ttft<=1s").limits
    assert limit.margin is not None
    assert math.isfinite(limit.margin)


@pytest.mark.parametrize(
    ("reason", "met"),
    [(EndReason.REJECTED, False), (EndReason.UNFINISHED, False), (EndReason.CANCELLED, True)],
)
def test_lost_requests_break_the_slo(reason: EndReason, met: bool) -> None:
    records = [request(i, 0.0, [1.0]) for i in range(11)] + [request(11, 0.0, [], reason=reason)]
    slo = parse_slo(["p50_ttft<=2s"])
    assert check(summarize(run(records), slo), slo).met is met
    without_ttft = parse_slo(["p50_e2e<=2s"])
    verdict = check(summarize(run(records), without_ttft), without_ttft)
    assert (verdict.met, verdict.lost) == (False, 1)


@pytest.mark.parametrize(("num_gone", "status"), [(6, "pass"), (7, "pass"), (9, "miss")])
def test_who_hung_up_before_the_first_token_missed_the_ttft(num_gone: int, status: str) -> None:
    served = [request(i, 0.0, [0.1, 0.2]) for i in range(77 - num_gone)]
    gone = [request(100 + i, 0.0, [], reason=EndReason.CANCELLED, end_s=0.3) for i in range(num_gone)]
    slo = parse_slo(["p90_ttft<=500ms", "p90_tpot<=1s"])
    verdict = check(summarize(run([*served, *gone]), slo), slo)
    ttft, tpot = verdict.limits
    assert (ttft.status, ttft.count, tpot.count) == (status, 77, 77 - num_gone)
    assert (ttft.observed_s is None) is (status == "miss") and verdict.lost == 0


def test_who_hung_up_later_counts_with_what_it_got() -> None:
    records = [request(i, 0.0, [0.1, 1.1], reason=EndReason.CANCELLED) for i in range(11)]
    slo = parse_slo(["p50_ttft<=500ms", "p50_tpot<=500ms", "p50_e2e<=9s"])
    ttft, tpot, e2e = check(summarize(run(records), slo), slo).limits
    assert [one.status for one in (ttft, tpot, e2e)] == ["pass", "miss", "not enough evidence"]


def test_a_request_meets_its_limits() -> None:
    slo = parse_slo(["p99_ttft<=1s", "p50_tpot<=500ms", "mean_itl<=700ms", "max_e2e<=2s"])
    good = request(0, 0.0, [1.0, 1.7, 2.0])
    assert request_meets(good, slo)
    assert request_meets(request(0, 0.0, [0.5]), slo)
    assert not request_meets(request(0, 0.0, [1.1]), slo)
    assert not request_meets(request(0, 0.0, [0.5, 1.3, 1.4]), slo)  # a gap of 0.8
    assert not request_meets(replace(good, end_reason=EndReason.CANCELLED), slo)
    assert not request_meets(request(0, 0.0, []), slo)


def test_violations_allowed_by_hand() -> None:
    assert violations_allowed(100, 0.99) == 1
    assert violations_allowed(101, 0.99) == 1
    assert violations_allowed(1000, 0.99) == 10
    assert violations_allowed(11, 0.5) == 5
    assert violations_allowed(7, 1.0) == 0
    assert violations_allowed(0, 0.5) == 0


@given(st.integers(1, 3000), st.sampled_from(list(QUANTILES.values())))
def test_violations_allowed_is_exactly_the_border(n: int, q: float) -> None:
    allowed = violations_allowed(n, q)
    assert percentile([0.0] * (n - allowed) + [1.0 + 1e-9] * allowed, q) <= 1.0
    assert percentile([0.0] * (n - allowed - 1) + [1.1] * (allowed + 1), q) > 1.0
    assert violations_allowed(n + 1, q) >= allowed


LIMITS = st.lists(
    st.builds(
        Limit,
        metric=st.sampled_from(METRICS),
        statistic=st.sampled_from(STATISTICS),
        limit_s=st.sampled_from([0.25, 0.5, 1.0]),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda limit: limit.name,
)
ENDS = st.sampled_from(["completed", "cut short", "hung up"])
REQUESTS = st.lists(
    st.tuples(st.floats(0.0, 2.0), st.none() | st.floats(0.0, 2.0), ENDS), min_size=1, max_size=60
)


@given(LIMITS, REQUESTS, st.data())
def test_a_stopped_run_would_have_missed(limits, served, data) -> None:  # type: ignore[no-untyped-def]
    stop = EarlyStop(Slo(tuple(limits)), len(served))
    cut = data.draw(st.integers(0, len(served)))
    largest = max((limit.limit_s for limit in limits if limit.metric == "ttft"), default=math.inf)
    for ttft, tpot, end in served[:cut]:
        if end == "hung up":
            stop.observe_hung_up()
            continue
        stop.observe_first_token(ttft)
        stop.observe_end(tpot, ttft + (tpot or 0.0) if end == "completed" else None)
    missed = stop.certain_miss(num_overdue=sum(ttft > largest for ttft, _, _ in served[cut:]))
    if missed is None:
        return
    values = {
        "ttft": [99.0 if end == "hung up" else ttft for ttft, _, end in served],
        "tpot": [tpot for _, tpot, end in served if tpot is not None and end != "hung up"],
        "e2e": [ttft + (tpot or 0.0) for ttft, tpot, end in served if end == "completed"],
    }[missed.metric]
    assert percentile(values, QUANTILES.get(missed.statistic, 1.0)) > missed.limit_s


def test_early_stop_by_hand() -> None:
    limit = parse_limit("p90_ttft<=1s")
    stop = EarlyStop(Slo((limit, parse_limit("mean_e2e<=1s"), parse_limit("p50_itl<=1s"))), 20)
    for _ in range(2):
        stop.observe_first_token(1.5)
        stop.observe_end(None, 99.0)
    assert stop.certain_miss() is None  # 2 of 20 may exceed a p90
    assert stop.certain_miss(num_overdue=1) == limit
    stop.observe_first_token(1.0)
    assert stop.certain_miss() is None
    stop.observe_first_token(1.1)
    assert stop.certain_miss() == limit
