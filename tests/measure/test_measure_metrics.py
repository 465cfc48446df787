import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from measure_records import request, requests, run, step

from tunebatch.engine.records import EndReason, RequestRecord, StepLog
from tunebatch.measure import latency
from tunebatch.measure.metrics import Metrics, summarize, to_vllm_keys
from tunebatch.measure.slo import parse_slo, request_meets


def by_hand() -> Metrics:
    log = StepLog()
    step(log, 1.5, 0.5, active=2, held=2, blocks=5, prefills=2)
    step(log, 2.0, 0.5, active=1, held=2, blocks=10)
    step(log, 2.5, 0.5, active=1, held=4, blocks=0)
    served = request(0, 1.0, [2.0, 2.5, 4.0], scheduled_s=1.5, prompt=100)
    served.num_drafted, served.num_accepted, served.num_verifications, served.num_preemptions = 8, 6, 4, 1
    records = [
        served,
        request(1, 2.0, [5.0], scheduled_s=3.0, reason=EndReason.STOP, prompt=20),
        request(2, 2.0, [3.0, 3.5], scheduled_s=2.5, reason=EndReason.CANCELLED, prompt=3, end_s=3.6),
        request(3, 3.0, [], reason=EndReason.CANCELLED, end_s=4.0),
        request(4, 3.0, [], reason=EndReason.REJECTED, end_s=3.0),
        request(5, 4.0, [], scheduled_s=4.5, reason=EndReason.UNFINISHED, end_s=5.0),
    ]
    return summarize(run(records, log, num_blocks=20), parse_slo(["p50_ttft<=1s", "p50_tpot<=1s"]))


def test_counts_and_rates() -> None:
    metrics = by_hand()
    assert (metrics.num_requests, metrics.completed, metrics.cancelled) == (6, 2, 2)
    assert (metrics.rejected, metrics.unfinished) == (1, 1)
    assert metrics.duration_s == 4.0  # first arrival at 1, last token at 5
    assert (metrics.total_input_tokens, metrics.total_output_tokens) == (123, 6)
    assert metrics.request_throughput == 0.5
    assert metrics.output_throughput == 1.5
    assert metrics.total_token_throughput == 129 / 4
    assert metrics.request_goodput == 0.25  # the second request waits 3 s for its token


def test_latencies() -> None:
    metrics = by_hand()
    assert (metrics.ttft.count, metrics.ttft.mean_s) == (
        3,
        pytest.approx(5 / 3),
    )  # 1, 3, and 1 of a cancelled one
    assert (metrics.tpot.count, metrics.tpot.mean_s) == (2, 0.75)  # 1, and 0.5 of a cancelled one
    assert (metrics.e2e.count, metrics.e2e.mean_s) == (2, 3.0)
    assert (metrics.itl.count, metrics.itl.min_s, metrics.itl.max_s) == (3, 0.5, 1.5)
    assert metrics.itl.std_s == pytest.approx(np.std([0.5, 1.5, 0.5]))
    assert (metrics.ttft.p50.value_s, metrics.ttft.p50.count, metrics.ttft.p50.needed) == (None, 3, 11)


def test_steps() -> None:
    metrics = by_hand()
    assert metrics.bubble == 0.5
    assert metrics.mean_batch == pytest.approx(4 / 3)
    assert (metrics.mean_kv_use, metrics.peak_kv_use) == (pytest.approx(0.25), 0.5)
    assert (metrics.num_steps, metrics.mean_step_s, metrics.num_preemptions) == (3, 0.5, 1)
    assert (metrics.acceptance, metrics.accepted_length) == (0.75, 2.5)


def test_hits_are_of_prompts_that_were_computed_and_none_without_a_cache() -> None:
    records = [
        request(0, 1.0, [2.0], prompt=100),
        request(1, 2.0, [5.0], prompt=60),
        request(2, 3.0, [], reason=EndReason.UNFINISHED, prompt=40),
    ]
    for record, num_cached in zip(records, (0, 48, 32), strict=True):
        record.num_cached_tokens = num_cached
    metrics = summarize(replace(run(records), prefix_caching=True))
    assert (metrics.saved_prefill_tokens, metrics.total_input_tokens, metrics.hit_rate) == (48, 160, 0.3)
    without = summarize(run(records))
    assert (without.saved_prefill_tokens, without.hit_rate) == (None, None)
    nothing = summarize(replace(run([]), prefix_caching=True))
    assert (nothing.saved_prefill_tokens, nothing.hit_rate) == (0, None)


def test_where_time_went() -> None:
    where = by_hand().where
    assert where.queue_s == 0.5 + 1.0 + 0.5 + 1.0 + 0.0 + 0.5
    assert where.prefill_s == 0.5 + 2.0 + 0.5 + 0.5
    assert where.decode_s == pytest.approx(2.0 + 0.0 + 0.6)  # the cancelled one to its end
    assert sum(where.shares().values()) == pytest.approx(1.0)


def test_an_empty_run_has_no_numbers_and_no_errors() -> None:
    metrics = summarize(run([]), parse_slo(["p99_itl<=1s"]))
    assert (metrics.duration_s, metrics.request_throughput, metrics.request_goodput) == (0.0, 0.0, 0.0)
    assert metrics.ttft.mean_s is None
    assert (metrics.bubble, metrics.mean_batch, metrics.mean_kv_use, metrics.acceptance) == (None,) * 4
    assert sum(metrics.where.shares().values()) == 0.0


def test_percentiles_appear_with_enough_samples() -> None:
    records = [request(i, 0.0, [0.01 * (i + 1)]) for i in range(64)]
    ttft = summarize(run(records)).ttft
    assert ttft.p90.value_s == pytest.approx(np.percentile([0.01 * (i + 1) for i in range(64)], 90))
    assert ttft.p95.value_s is None
    assert summarize(run(records[:-1])).ttft.p90.value_s is None


def test_the_gaps_of_a_request_are_one_sample() -> None:
    records = [request(i, i * 1.0, [i + 0.1 * k for k in range(1, 40)]) for i in range(64)]
    alone = request(64, 64.0, [65.0])
    itl = summarize(run([*records, alone])).itl
    assert itl.count == 64 * 38 and itl.p90.count == 64 and itl.p90.value_s == pytest.approx(0.1)
    assert itl.p99.value_s is None and (itl.p99.count, itl.p99.needed) == (64, 662)
    assert itl.p90.lower_s is not None
    assert summarize(run(records[1:])).itl.p90.value_s is None


def test_intervals_are_of_requests_in_the_order_of_their_arrival() -> None:
    """Waits that grow over the run say less than the same ones in no order."""

    def width(waits: list[int]) -> float:
        records = [request(i, i * 1.0, [i + 0.01 * wait]) for i, wait in enumerate(waits)]
        found = summarize(run(records)).ttft.p50
        assert found.lower_s is not None and found.upper_s is not None
        return found.upper_s - found.lower_s

    assert width(list(range(200))) > 3 * width([77 * i % 200 for i in range(200)])


@given(requests())
def test_arrays_agree_with_one_request_at_a_time(records: list[RequestRecord]) -> None:
    slo = parse_slo(["p50_ttft<=1s", "mean_tpot<=800ms", "max_itl<=1200ms", "p99_e2e<=3s"])
    metrics = summarize(run(records), slo)
    ttft = [v for r in records if (v := latency.ttft_s(r)) is not None]
    ended = [r for r in records if r.completed or r.end_reason is EndReason.CANCELLED]
    tpot = [v for r in ended if (v := latency.tpot_s(r)) is not None]
    e2e = [v for r in records if r.completed and (v := latency.e2e_s(r)) is not None]
    itl = [b - a for r in records for a, b in zip(r.token_times_s, r.token_times_s[1:], strict=False)]
    for found, values in ((metrics.ttft, ttft), (metrics.tpot, tpot), (metrics.e2e, e2e), (metrics.itl, itl)):
        assert found.count == len(values)
        if values:
            assert found.mean_s == pytest.approx(float(np.mean(values)))
            assert (found.min_s, found.max_s) == (min(values), max(values))
    good = sum(request_meets(r, slo) for r in records)
    assert metrics.request_goodput is not None
    assert metrics.request_goodput * metrics.duration_s == pytest.approx(good if metrics.duration_s else 0)
    assert metrics.completed + metrics.cancelled + metrics.rejected + metrics.unfinished == len(records)


def test_warmup_counts_for_rates_but_not_for_latencies() -> None:
    records = [
        request(0, 0.0, [9.0, 9.5]),
        request(1, 1.0, [], reason=EndReason.CANCELLED, end_s=9.0),
        *(request(i, float(i), [i + 0.1, i + 0.3, i + 0.6]) for i in range(2, 20)),
    ]
    slo = parse_slo(["p50_ttft<=1s"])
    every, without = summarize(run(records), slo), summarize(run(records), slo, num_warmup=2)
    assert (without.num_warmup, without.num_counted, every.num_counted) == (2, 18, 20)
    assert [d.count for d in (every.ttft, every.tpot, every.itl, every.e2e)] == [19, 19, 37, 19]
    assert [d.count for d in (without.ttft, without.tpot, without.itl, without.e2e)] == [18, 18, 36, 18]
    assert without.itl.p50.count == 18
    assert (every.ttft.max_s, without.ttft.max_s) == (9.0, pytest.approx(0.1))
    assert every.judged_ttft is not None and without.judged_ttft is None
    same = ("num_requests", "duration_s", "request_throughput", "output_throughput", "request_goodput")
    same += ("cancelled", "hung_up", "ttft_growth_s", "where")
    assert all(getattr(every, name) == getattr(without, name) for name in same)
    records[10] = request(10, 10.0, [], reason=EndReason.CANCELLED, end_s=11.0)
    judged = summarize(run(records), slo, num_warmup=2).judged_ttft
    assert judged is not None and (judged.count, judged.max_s) == (18, math.nextafter(1.0, 2.0))


def test_who_hung_up_waited_at_least_so_long() -> None:
    served = [request(i, float(i), [i + 0.1]) for i in range(10)]
    gone = [request(i, float(i), [], reason=EndReason.CANCELLED, end_s=i + 2.0) for i in range(10, 20)]
    metrics = summarize(run([*served, *gone]), parse_slo(["p50_ttft<=1s", "max_ttft<=3s"]))
    assert (metrics.cancelled, metrics.hung_up, metrics.ttft.count) == (10, 10, 10)
    assert metrics.ttft_growth_s == pytest.approx(1.9)
    assert metrics.judged_ttft is not None and metrics.judged_ttft.count == 20
    # Longer than every limit, though they did not wait for it.
    assert metrics.judged_ttft.max_s == math.nextafter(3.0, 4.0)
    assert summarize(run(served), parse_slo(["p50_ttft<=1s"])).judged_ttft is None


def test_vllm_keys() -> None:
    keys = to_vllm_keys(by_hand())
    assert (keys["duration"], keys["completed"], keys["failed"]) == (4.0, 2, 4)
    assert (keys["request_goodput"], keys["mean_ttft_ms"]) == (0.25, pytest.approx(5000 / 3))
    assert keys["median_ttft_ms"] is None
    assert keys["p99_e2el_ms"] is None
    for name in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p50", "p90", "p95", "p99"):
            assert f"{statistic}_{name}_ms" in keys
    assert all(value is None or math.isfinite(value) for value in keys.values())
