"""The trace of a run: valid JSON, spans that nest, and nothing lost."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tunebatch.engine.records import RunRecord
from tunebatch.measure.result import ResultError, RunResult
from tunebatch.report.perfetto import is_trace, write_trace


@pytest.fixture(scope="module")
def record(serve: Any) -> RunRecord:
    """Requests that fight for blocks, chunks beside decodes, a client that hangs up."""
    shapes = [(12, 14, 0.0, None), (9, 14, 0.0, None), (5, 3, 0.7, None), (12, 8, 10.0, 20.0)]
    run: RunRecord = serve("mixed", shapes, step_s=1 / 3, max_batch_size=3, chunk_size=8)
    assert sum(run.steps.num_preempted)
    return run


def traced(make_row: Any, record: RunRecord, path: Path) -> list[dict[str, Any]]:
    result: RunResult = dataclasses.replace(make_row("mixed", 1.0, chunk_size=8).result, record=record)
    write_trace(result, path)
    assert os.listdir(path.parent) == [path.name] and is_trace(path)
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def ns(event: dict[str, Any]) -> tuple[int, int]:
    start, length = round(event["ts"] * 1e3), round(event["dur"] * 1e3)
    return start, start + length


def test_spans_nest_and_never_overlap(make_row: Any, record: RunRecord, tmp_path: Path) -> None:
    tracks: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for event in traced(make_row, record, tmp_path / "trace.json"):
        if event["ph"] == "X":
            tracks[event["tid"]].append(event)
    for track, events in tracks.items():
        outer = [event for event in events if track == 0 or event["name"].startswith("request")]
        assert all(ns(one)[1] <= ns(two)[0] for one, two in pairwise(outer)), "two at a time"
        inner = [event for event in events if event not in outer]
        assert all(ns(one)[1] <= ns(two)[0] for one, two in pairwise(inner)), "two phases at a time"
        for request in outer if track else ():
            start, end = ns(request)
            inside = [ns(event) for event in inner if start <= ns(event)[0] < end]
            assert sum(b - a for a, b in inside) == end - start and inside[-1][1] == end


def test_the_spans_add_up_to_the_run(make_row: Any, record: RunRecord, tmp_path: Path) -> None:
    events = traced(make_row, record, tmp_path / "trace.json")
    spans = [event for event in events if event["ph"] == "X"]
    steps = [event for event in spans if event["tid"] == 0]
    assert len(steps) == len(record.steps)
    assert sum(event["dur"] for event in steps) / 1e6 == pytest.approx(sum(record.steps.duration_s))
    requests = [event for event in spans if event["name"].startswith("request")]
    running_s = sum(end_s - start_s for _, _, start_s, end_s, _ in record.occupancy)
    assert sum(event["dur"] for event in requests) / 1e6 == pytest.approx(running_s)
    assert {event["name"] for event in requests} == {f"request {r.id}" for r in record.requests}
    prefill_steps = sum(event["args"]["prefill_tokens"] for event in steps)
    assert prefill_steps == sum(record.steps.num_prefill_tokens)
    names = {event["name"] for event in spans if not event["name"].startswith("request")}
    assert {"mixed", "decode", "prefill", "recompute"} <= names


def test_tracks_are_named_and_counters_end_at_nothing(
    make_row: Any, record: RunRecord, tmp_path: Path
) -> None:
    events = traced(make_row, record, tmp_path / "trace.json")
    named = {event["args"]["name"] for event in events if event["ph"] == "M" and "name" in event["args"]}
    assert named == {"mixed, chunk_size 8", "steps", "slot 0", "slot 1", "slot 2"}
    for name, column in (("waiting", record.steps.num_waiting), ("kv blocks", record.steps.blocks_used)):
        values = [event["args"][name] for event in events if event["ph"] == "C" and event["name"] == name]
        assert values == [*column, 0] and max(values) > 0
    running = [event["args"]["running"] for event in events if event["name"] == "running"]
    assert running[:-1] == record.steps.slots_held and running[-1] == 0


def test_a_full_disk_leaves_the_trace_that_was_there(
    make_row: Any, record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "trace.json"
    traced(make_row, record, path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResultError, match=r"could not write .*trace\.json: no space left"):
        write_trace(make_row("static", 1.0).result, path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["trace.json"]


def test_only_our_own_traces_are_known(tmp_path: Path) -> None:
    other = tmp_path / "azure.csv"
    other.write_bytes(b"TIMESTAMP,ContextTokens\xff\n")
    assert not is_trace(other) and not is_trace(tmp_path / "nowhere")
