"""What is told beside a run: energy and cost for each token, and the way to a file and back."""

from __future__ import annotations

import dataclasses
import json

import pytest
from fake_nvml import FakeNvml
from measure_records import request, run

from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult, from_json_dict, to_json_dict
from tunebatch.measure.step_work import ModelWork
from tunebatch.measure.telemetry.beside import Instruments, Telemetry, telemetry
from tunebatch.measure.telemetry.cpu import CpuUse
from tunebatch.measure.telemetry.gpu import GpuUse, Tally
from tunebatch.measure.telemetry.nvml import open_gpu

RECORD = run([request(0, 0.0, [1.0, 2.0, 3.0]), request(1, 0.0, [4.0])])
METRICS = summarize(RECORD)
CPU = CpuUse(4.0, 100.0, 80.0, 0.4, 0.5, 2**30)


def hot_gpu() -> GpuUse:
    library = FakeNvml(reasons=0x24, pids=[1, 2])
    tally = Tally(open_gpu(library=library))
    for i in range(41):
        tally.sample(0.1 * i)
        library.energy_mj += 2_000
    use = tally.use()
    assert use is not None
    return use


def test_energy_and_cost_of_a_token() -> None:
    told = telemetry(RECORD, METRICS, Instruments(price_per_hour=3.6), CPU, hot_gpu())
    assert told.joules_per_output_token == pytest.approx(80.0 / 4)
    # A token a second at a thousandth of the currency a second.
    assert METRICS.output_throughput == 1.0
    assert told.cost_per_million_output_tokens == pytest.approx(1000.0)
    assert [line.split(":")[0] for line in told.cautions] == ["throttled", "shared", "shared"]


def test_what_nobody_tells_is_none() -> None:
    assert telemetry(RECORD, METRICS, Instruments(), None, None) == Telemetry()
    nothing = run([request(0, 0.0, [])])
    told = telemetry(nothing, summarize(nothing), Instruments(price_per_hour=1.0), None, hot_gpu())
    assert told.joules_per_output_token is told.cost_per_million_output_tokens is None


def test_it_is_kept_with_the_result() -> None:
    work = ModelWork(10, 5, 2, 1, KvLayout(1, 8, (None,), 2))
    instruments = Instruments(work=work, ceilings=Peaks(1e9, 1e9, "by hand"), price_per_hour=1.0)
    record = run(RECORD.requests)
    record.steps.start_s.append(0.0)
    for column, value in (("duration_s", 1.0), ("num_decodes", 1), ("context_sum", 3)):
        getattr(record.steps, column).append(value)
    record.steps.slices.append(())
    record.steps.verifications.append(())
    told = telemetry(record, METRICS, instruments, CPU, hot_gpu())
    assert told.utilization is not None and told.utilization.mfu is not None
    result = RunResult(
        strategy="static",
        knobs={},
        workload={},
        model={},
        environment={},
        slo=[],
        metrics=METRICS,
        telemetry=told,
    )
    data = json.loads(json.dumps(to_json_dict(result)))
    assert data["tunebatch"]["telemetry"]["gpu"]["energy_source"] == "counter"
    assert from_json_dict(data).telemetry == told
    bare = dataclasses.replace(told, gpu=None, cpu=None, utilization=None)
    assert from_json_dict(to_json_dict(dataclasses.replace(result, telemetry=bare))).telemetry == bare
    del data["tunebatch"]["telemetry"]
    assert from_json_dict(data).telemetry is None
