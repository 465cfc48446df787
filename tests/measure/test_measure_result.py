import csv
import dataclasses
import errno
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example as tried
from hypothesis import given, settings
from measure_records import request, requests, run, step

from tunebatch.engine.records import STEP_COLUMNS, EndReason, RequestRecord, StepLog
from tunebatch.measure.conditions import conditions
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import (
    REQUEST_COLUMNS,
    SCHEMA,
    ResultError,
    RunResult,
    from_json_dict,
    read_result,
    to_json_dict,
    write_result,
)
from tunebatch.measure.slo import check, parse_slo
from tunebatch.measure.time_split import PARTS


def result_of(records: list[RequestRecord], steps: StepLog | None = None) -> RunResult:
    slo = parse_slo(["p50_ttft<=2s", "p99_e2e<=300ms"])
    record = run(records, steps, num_blocks=8)
    metrics = summarize(record, slo)
    return RunResult(
        strategy="mixed+prefix",
        knobs={"max_batch_size": 8, "chunk_size": "auto", "max_partial_prefills": 2},
        workload={"description": "by hand", "rate_per_s": None, "seed": 1, "notes": ["no clip"]},
        model={"name": "tiny"},
        environment={"cores": 2, "gpu": None},
        slo=slo.texts(),
        metrics=metrics,
        verdict=check(metrics, slo),
        conditions=conditions(metrics, "replay", 1),
        record=record,
    )


def example() -> RunResult:
    log = StepLog()
    step(log, 0.0, 0.5, active=1, held=1, blocks=3, prefills=1)
    return result_of([request(0, 0.25, [0.5, 1.0]), request(1, 0.5, [])], log)


def without_record(result: RunResult) -> dict[str, Any]:
    return {name: getattr(result, name) for name in RunResult.__slots__ if name != "record"}


@settings(max_examples=30)
@given(requests(max_size=15))
@tried([request(0, 0.0, [1.1125369292536007e-308])])  # a rate over it would be infinite
def test_json_round_trip(records: list[RequestRecord]) -> None:
    result = result_of(records)
    data = json.loads(json.dumps(to_json_dict(result), allow_nan=False))
    back = from_json_dict(data)
    assert without_record(back) == without_record(result)
    assert back.record is None


def test_layout() -> None:
    data = to_json_dict(example())
    assert (data["schema"], data["model_id"], data["num_prompts"]) == (SCHEMA, "tiny", 2)
    assert data["mean_ttft_ms"] == 250.0
    assert data["p99_ttft_ms"] is None
    assert data["tunebatch"]["strategy"] == "mixed+prefix"
    assert "record" not in data["tunebatch"]


def test_a_result_of_a_version_that_told_no_conditions_is_read() -> None:
    data = to_json_dict(example())
    del data["tunebatch"]["conditions"]
    assert from_json_dict(data).conditions is None


def test_nan_is_never_written() -> None:
    result = example()
    result.environment.update(load=float("nan"), rate=float("inf"), cores=np.int64(3), array=np.array([1.5]))
    data = to_json_dict(result)
    json.dumps(data, allow_nan=False)
    assert data["tunebatch"]["environment"] == {
        "cores": 3,
        "gpu": None,
        "load": None,
        "rate": None,
        "array": [1.5],
    }


def test_write_and_read(tmp_path: Path) -> None:
    result, folder = example(), tmp_path / "new" / "folder"
    path = write_result(result, folder)
    assert path == folder / "result.json"
    for where in (path, folder, str(folder)):
        assert without_record(read_result(where)) == without_record(result)
    assert sorted(file.name for file in folder.iterdir()) == ["requests.csv", "result.json", "steps.csv"]
    with open(folder / "requests.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == REQUEST_COLUMNS
    split = ["0.25", "0.0", "0.5", "0.0", "0.0", "0.0", "0.0"]  # queue, prefill, decode, and no more
    times = ["0.25", "0.5", "0.75"]
    assert rows[1] == ["0", "0.25", "", "10", "2", *times, *["0"] * 4, *split, "length", "0", ""]
    assert rows[2] == ["1", "0.5", "", "10", "0", "", "", "", *["0"] * 4, *["0.0"] * 7, "length", "0", ""]
    with open(folder / "steps.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert tuple(rows[0]) == STEP_COLUMNS
    assert rows[1] == ["0.0", "0.5", "1", "10", "0", "0", "1", "1", "3", "0", "0", "0", "0", "0"]


def test_the_file_of_requests_tells_when_a_client_hung_up(tmp_path: Path) -> None:
    """What its parts add up to, which no other column tells: E2E ends with the last token."""
    gone = EndReason.CANCELLED
    records = [
        request(0, 0.25, [0.5, 1.0], scheduled_s=0.25, reason=gone, end_s=1.75),
        request(1, 0.5, [], reason=gone, end_s=2.0),
        request(2, 0.5, [1.0]),
    ]
    write_result(result_of(records), tmp_path)
    with open(tmp_path / "requests.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["cancelled_at_s"] for row in rows] == ["1.75", "2.0", ""]
    for row in rows[:2]:
        spent = sum(float(row[part]) for part in PARTS)
        assert spent == float(row["cancelled_at_s"]) - float(row["arrival_s"])
    assert [row["e2e_s"] for row in rows] == ["0.75", "", "0.5"]


def test_the_file_of_requests_marks_the_warmup(tmp_path: Path) -> None:
    records = [request(i, i * 0.1, [i * 0.1 + 0.5]) for i in range(20)]
    warm = dataclasses.replace(result_of(records), metrics=summarize(run(records), None, num_warmup=2))
    write_result(warm, tmp_path)
    with open(tmp_path / "requests.csv", newline="") as file:
        assert [row["warmup"] for row in csv.DictReader(file)] == ["1"] * 2 + ["0"] * 18
    assert json.loads((tmp_path / "result.json").read_text())["tunebatch"]["metrics"]["num_warmup"] == 2
    assert read_result(tmp_path).metrics.num_warmup == 2


def test_a_result_of_a_version_without_warmup_is_read() -> None:
    data = to_json_dict(example())
    del data["tunebatch"]["metrics"]["num_warmup"]
    assert from_json_dict(data).metrics.num_warmup == 0


def test_a_result_without_records_keeps_only_its_own(tmp_path: Path) -> None:
    write_result(example(), tmp_path)
    write_result(read_result(tmp_path), tmp_path)  # the same run, recalled
    assert sorted(os.listdir(tmp_path)) == ["requests.csv", "result.json", "steps.csv"]
    write_result(dataclasses.replace(result_of([]), record=None), tmp_path)
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_keeps_the_previous_result(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    write_result(example(), tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(ResultError) as error:
        write_result(result_of([]), tmp_path)
    monkeypatch.undo()
    assert str(error.value).startswith(
        f"could not write {tmp_path / 'result.json'}: no space left on device;"
    )
    assert "\n" not in str(error.value)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_an_interrupt_while_writing_leaves_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_result(example(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_directorys_place(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    with pytest.raises(ResultError, match="could not write"):
        write_result(example(), tmp_path / "taken")


def broken(change: dict[str, Any] | None = None, **ours: Any) -> dict[str, Any]:
    data = json.loads(json.dumps(to_json_dict(example())))
    data.update(change or {})
    data["tunebatch"].update(ours)
    return data  # type: ignore[no-any-return]


def with_rate(rate: Any) -> dict[str, Any]:
    return broken(workload={**broken()["tunebatch"]["workload"], "rate_per_s": rate})


def with_metrics(**changed: Any) -> dict[str, Any]:
    return broken(metrics={**broken()["tunebatch"]["metrics"], **changed})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ([], "expected a JSON object"),
        ({}, "no schema"),
        (broken({"schema": "tunebatch.run.v9"}), "schema 'tunebatch.run.v9'"),
        ({"schema": SCHEMA}, "tunebatch"),
        (broken(strategy=3), "tunebatch.strategy"),
        (broken(metrics={}), "tunebatch.metrics.duration_s"),
        (broken(slo="p99_ttft<=1s"), "tunebatch.slo"),
        (
            broken(environment={"load": float("nan")}),
            "environment.load: NaN is not a finite number",
        ),
        (broken(environment={"load": {1, 2}}), "not a plain JSON value"),
        (broken({"output_throughput": -5}), "output_throughput: -5 is impossible; the nearest possible"),
        (with_metrics(output_throughput=-5.0), "tunebatch.metrics.output_throughput: -5.0 is impossible"),
        (
            with_metrics(bubble=1.5),
            "metrics.bubble: 1.5 is impossible; the nearest possible value is 1",
        ),
        (
            broken(knobs={"max_batch_size": -3}),
            "tunebatch.knobs: strategy mixed+prefix: max_batch_size = -3: the least possible value is 1",
        ),
        (broken(knobs={"max_batch": 3}), "has no knob 'max_batch'; did you mean 'max_batch_size'"),
        (broken(knobs={"chunk_size": "often"}), "chunk_size = 'often': must be a finite number or 'auto'"),
        (with_rate(-4.0), "tunebatch.workload.rate_per_s: -4.0 is impossible; must be above 0, or null"),
        (with_rate(0), "tunebatch.workload.rate_per_s: 0 is impossible"),
        (with_rate("fast"), 'tunebatch.workload.rate_per_s: "fast" is impossible'),
        (broken({"request_rate": -4.0}), "request_rate: -4.0 is impossible"),
        (with_metrics(num_steps=-1), "tunebatch.metrics.num_steps: -1 is impossible"),
        (
            with_metrics(mean_batch=float("inf")),
            "metrics.mean_batch: Infinity is not a finite number",
        ),
    ],
)
def test_what_is_not_a_result_is_refused_in_one_line(data: Any, says: str) -> None:
    with pytest.raises(ResultError) as error:
        from_json_dict(data, source="some.json")
    assert str(error.value).startswith("some.json: ")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("strategy", "knobs"),
    [
        ("static", {"max_batch_size": 512, "sort_by_length": True}),
        ("dynamic", {"max_delay_s": 0.05}),
        ("adaptive", {"max_batch_size": 64, "min_batch_size": 40}),
        ("of another version", {"its_knob": -1}),
    ],
)
def test_knobs_that_a_run_can_have_are_read(strategy: str, knobs: dict[str, Any]) -> None:
    assert from_json_dict(broken(strategy=strategy, knobs=knobs)).knobs == knobs


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not valid JSON"),
        (f'{{"schema": "{SCHEMA}", "p99_ttft_ms": NaN}}', "p99_ttft_ms: NaN is not a finite number"),
        ("{}", "no schema"),
        ("\udcff", "not valid JSON"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, text: str, says: str) -> None:
    file = tmp_path / "result.json"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ResultError, match=says) as error:
        read_result(tmp_path)
    assert str(file) in str(error.value)


def test_a_queue_may_have_got_shorter_and_a_sum_may_be_rounded() -> None:
    data = with_metrics(ttft_growth_s=-0.5, mean_kv_use=1.0 + 1e-12, request_throughput=-1e-12)
    assert from_json_dict(data).metrics.ttft_growth_s == -0.5


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no such file"):
        read_result(tmp_path / "nowhere.json")
