"""One run, end to end, on a tiny random model."""

from __future__ import annotations

import csv
import dataclasses
import gc
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from fake_nvml import FakeNvml
from tiny_models import BLOCK_SIZE, tiny

from tunebatch import bench
from tunebatch.engine.clock import ReplayClock, WallClock
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.records import EndReason, RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import STRATEGIES, Strategy, strategy
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import serve
from tunebatch.execute.torch.same_tokens import AllAtOnce
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.result import read_result, write_result
from tunebatch.measure.slo import parse_slo
from tunebatch.measure.step_work import model_work, step_work
from tunebatch.measure.telemetry.beside import Instruments
from tunebatch.measure.telemetry.nvml import open_gpu
from tunebatch.models.architecture import architecture


@dataclass(frozen=True)
class Burst:
    requests: tuple[Request, ...]
    rate_per_s: float | None = None
    at_once: bool = True
    description: str = "a burst"
    notes: tuple[str, ...] = ()
    seed: int = 0

    def source(self) -> AllAtOnce:
        return AllAtOnce(self.requests)

    def fingerprint(self) -> str:
        return "burst"


def burst(count: int, prompt: int = 9, output: int = 6) -> Burst:
    return Burst(
        tuple(
            Request(i, tuple(3 + (i + j) % 90 for j in range(prompt)), output, ignore_eos=True)
            for i in range(count)
        )
    )


@cache
def executor() -> TorchExecutor:
    # Compiling kernels would take longer than all runs, which are the same with any backend.
    return serve(tiny(), name="tiny", backend="packed", block_size=BLOCK_SIZE, max_slots=16)


def test_a_policy_gets_the_tightest_limit_on_each_latency() -> None:
    slo = parse_slo(["p99_ttft<=2s", "p50_ttft<=1s", "p90_tpot<=50ms", "max_itl<=40ms", "p99_e2e<=1ms"])
    assert bench.latency_limits(slo) == LatencyLimits(ttft_s=1.0, tpot_s=0.04)
    assert bench.latency_limits(None) == bench.latency_limits(parse_slo([])) == LatencyLimits()


def test_a_run_makes_its_policy_with_the_limits_of_the_slo(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[LatencyLimits] = []
    make = Strategy.make_policy

    def spy(self: Strategy, limits: LatencyLimits) -> Policy:
        given.append(limits)
        return make(self, limits)

    monkeypatch.setattr(Strategy, "make_policy", spy)
    chosen = strategy("mixed", {"chunk_size": "auto"})
    result = bench.measure(burst(20), chosen, executor(), slo=parse_slo(["p50_tpot<=60s"]))
    assert given == [LatencyLimits(tpot_s=60.0)]
    assert result.knobs["chunk_size"] == "auto"


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_run_counts_what_was_served_and_survives_a_round_trip(name: str, tmp_path: Path) -> None:
    slo = parse_slo(["p50_ttft<=60s", "p50_tpot<=60s"])
    result = bench.measure(burst(20), strategy(name), executor(), slo=slo)
    metrics = result.metrics
    assert (metrics.completed, metrics.total_output_tokens) == (20, 120)
    assert metrics.output_throughput == pytest.approx(120 / metrics.duration_s)
    assert metrics.request_goodput == pytest.approx(metrics.request_throughput)
    assert result.verdict is not None and result.verdict.met
    write_result(result, tmp_path)
    again = read_result(tmp_path)
    assert again.metrics == metrics
    assert again.conditions == result.conditions is not None
    assert (again.conditions.clock, again.conditions.hit_rate) == ("replay", None)
    assert len((tmp_path / "requests.csv").read_text().splitlines()) == 21


def test_a_run_tells_what_the_machine_did(tmp_path: Path) -> None:
    fake = FakeNvml()
    work = model_work(architecture(executor().model.config.to_dict()), 4)
    ceilings = Peaks(1e18, 1e18, "by hand")
    instruments = Instruments(open_gpu(library=fake), work, ceilings, price_per_hour=2.0)
    result = bench.measure(burst(8), strategy("static"), executor(), instruments=instruments)
    told = result.telemetry
    assert told is not None and told.cpu is not None and told.gpu is not None
    assert told.gpu.num_samples >= 2 and told.gpu.foreign_processes == 0
    assert result.environment["gpu"] == "NVIDIA Fake"
    assert told.utilization is not None and told.utilization.mfu is not None and result.record is not None
    counted = step_work(result.record, work)
    assert told.utilization.mfu == pytest.approx(counted.flops.sum() / counted.duration_s.sum() / 1e18)
    per_token = 2.0 / 3600 / result.metrics.output_throughput
    assert told.cost_per_million_output_tokens == pytest.approx(1e6 * per_token)
    write_result(result, tmp_path)
    assert read_result(tmp_path).telemetry == told
    assert fake.opened == 1


def test_without_instruments_the_processor_is_watched() -> None:
    told = bench.measure(burst(8), strategy("static"), executor()).telemetry
    assert told is not None and told.cpu is not None and told.cpu.wall_s > 0.0
    assert told.gpu is told.utilization is told.joules_per_output_token is None


def test_the_prefix_cache_is_empty_when_a_run_begins(tmp_path: Path) -> None:
    shared = tuple(range(3, 40))
    traffic = Burst(tuple(Request(i, (*shared, 40 + i), 6, ignore_eos=True) for i in range(5)))
    runs = [bench.measure(traffic, strategy("sequential+prefix"), executor()) for _ in range(2)]
    # The whole blocks of 37 shared tokens, for all but the first.
    cached = 37 // BLOCK_SIZE * BLOCK_SIZE
    assert [run.metrics.saved_prefill_tokens for run in runs] == [4 * cached] * 2
    assert [run.metrics.hit_rate for run in runs] == [4 * cached / 190] * 2
    outputs = [[record.output for record in run.record.requests] for run in runs if run.record is not None]
    plain = bench.measure(traffic, strategy("continuous"), executor())
    assert plain.record is not None and plain.metrics.hit_rate is None
    assert outputs == [[record.output for record in plain.record.requests]] * 2
    write_result(runs[1], tmp_path)
    with (tmp_path / "requests.csv").open() as file:
        assert [row["cached_tokens"] for row in csv.DictReader(file)] == ["0", *[str(cached)] * 4]
    assert read_result(tmp_path).metrics == runs[1].metrics


def test_a_prefix_cache_tells_its_hits() -> None:
    shared = burst(20, prompt=2 * BLOCK_SIZE + 1)
    same = Burst(tuple(dataclasses.replace(one, prompt=shared.requests[0].prompt) for one in shared.requests))
    result = bench.measure(same, strategy("sequential+prefix"), executor(), clock=WallClock)
    assert result.conditions is not None and result.conditions.clock == "wall"
    assert result.conditions.hit_rate == pytest.approx(19 / 20 * 8 / 9)


def test_batching_needs_fewer_steps_than_one_at_a_time() -> None:
    steps = {
        name: bench.measure(burst(16), strategy(name), executor()).metrics.num_steps
        for name in ("sequential", "continuous")
    }
    assert steps == {"sequential": 16 * 6, "continuous": 6}


def test_a_request_that_can_never_fit_is_refused_before_the_run() -> None:
    with pytest.raises(bench.DoesNotFitError, match="exceed the context of 128"):
        bench.measure(burst(2, prompt=120, output=9), strategy("static"), executor())


def test_a_hopeless_run_stops_early_and_counts_everybody() -> None:
    slo = parse_slo(["p50_ttft<=1us"])
    result = bench.measure(burst(40), strategy("sequential"), executor(), slo=slo, stop_early=True)
    assert result.record is not None and result.record.stopped_early
    assert result.metrics.num_requests == 40
    assert result.metrics.completed < 40 and result.metrics.num_steps < 40 * 6
    assert result.verdict is not None and not result.verdict.met


def test_the_clock_starts_after_the_collection_and_no_collection_follows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A collection takes longer than many steps; requests that are due at once would have waited for it."""
    order: list[str] = []
    monkeypatch.setattr(bench.gc, "collect", lambda: order.append("collect"))
    collects: list[bool] = []

    def clock() -> ReplayClock:
        order.append("clock")
        collects.append(gc.isenabled())
        return ReplayClock()

    bench.measure(burst(2), strategy("continuous"), executor(), clock=clock)
    assert order == ["collect", "clock"] and collects == [False]
    assert gc.isenabled()


def test_requests_that_still_wait_past_the_limit_end_a_run() -> None:
    watcher = bench.SloWatcher(parse_slo(["p50_ttft<=1s"]), num_requests=10)
    requests = [Request(i, (5,), 4, arrival_s=0.1 * i) for i in range(10)]
    for request in requests:
        watcher.arrived(request)
    # The median of ten may be kept with five of them late; the sixth arrives at 0.5 s.
    assert not watcher.should_stop(1.45)
    # One that gets its first token late stays one miss; it was counted while it waited.
    watcher.first_token(RequestRecord(0, 0.0, 1, 4), 1.45)
    assert not watcher.should_stop(1.45)
    assert watcher.should_stop(1.55) and watcher.missed is not None


def test_the_first_of_the_requests_that_come_over_time_are_warmup() -> None:
    at_once = bench.measure(burst(40), strategy("continuous"), executor())
    paced = dataclasses.replace(burst(40), at_once=False, rate_per_s=40.0)
    over_time = bench.measure(paced, strategy("continuous"), executor())
    assert (at_once.metrics.num_warmup, over_time.metrics.num_warmup) == (0, 4)
    assert (at_once.metrics.ttft.count, over_time.metrics.ttft.count) == (40, 36)
    assert at_once.conditions is not None and at_once.conditions.warmup == "none"
    assert over_time.conditions is not None and over_time.conditions.warmup == "first 4 of 40 requests"


def test_warmup_ends_no_run() -> None:
    """Whatever the first two do; of the eight that count, four may be late."""

    def missed(num_late: int, num_gone: int = 0) -> bool:
        watcher = bench.SloWatcher(parse_slo(["p50_ttft<=1s"]), num_requests=10, num_warmup=2)
        for i in range(10):
            watcher.arrived(Request(i, (5,), 4))
        for i in range(10):
            record = RequestRecord(i, 0.0, 1, 4, token_times_s=[0.5], end_reason=EndReason.LENGTH)
            if i < num_gone:
                record = RequestRecord(i, 0.0, 1, 4, end_s=0.5, end_reason=EndReason.CANCELLED)
            elif i < num_late:
                continue
            else:
                watcher.first_token(record, 0.5)
            watcher.ended(record, 0.5)
        return watcher.should_stop(2.0)

    assert not missed(6) and missed(7)
    assert not missed(6, num_gone=6) and missed(7, num_gone=7)


def test_who_hangs_up_before_the_first_token_has_missed_it() -> None:
    watcher = bench.SloWatcher(parse_slo(["p50_ttft<=1s"]), num_requests=4)
    for i in range(4):
        watcher.arrived(Request(i, (5,), 4, cancel_at_s=0.5 if i < 2 else 9.0))
    for i in range(2):
        watcher.ended(RequestRecord(i, 0.0, 1, 4, end_s=0.5, end_reason=EndReason.CANCELLED), 0.5)
    assert not watcher.should_stop(0.9)
    assert watcher.should_stop(1.1)  # the others wait too long, whether they hang up or not
