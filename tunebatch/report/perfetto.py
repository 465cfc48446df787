"""A run as a trace for ui.perfetto.dev or chrome://tracing: what every slot did, and every step.

The format is Chrome's JSON (Trace Event Format, Google, 2016): complete events, counters and names; times in
microseconds. Spans of a slot nest: a request, and in it its phases. They come one by one, so a trace is never
in memory as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tunebatch.engine.records import RequestRecord, RunRecord, StepLog
from tunebatch.measure.atomic import write_all
from tunebatch.measure.result import ResultError, RunResult
from tunebatch.measure.time_split import PARTS, split_by_request
from tunebatch.report.conditions import caveats_of
from tunebatch.report.phases import SlotPhases, Span
from tunebatch.report.rows import knobs_text
from tunebatch.report.speculation import name_of

Event = dict[str, Any]

HEAD = '{"displayTimeUnit": "ms", "traceEvents": [\n'  # by which a trace of ours is known
_PROCESS = 1
_STEPS = 0  # the track of the steps; slot i has track i + 1


def write_trace(result: RunResult, path: Path) -> None:
    """Writes the trace of a run, all or nothing.

    Raises:
        ResultError: The disk is full, or the folder cannot be written.
    """

    def write(file: TextIO) -> None:
        file.write(HEAD)
        separator = ""
        for event in _events(result):
            file.write(separator + json.dumps(event, allow_nan=False))
            separator = ",\n"
        file.write("\n]}\n")

    try:
        write_all(path.parent, {path.name: write})
    except OSError as error:
        raise ResultError(f"could not write {path}: {(error.strerror or str(error)).lower()}") from error


def is_trace(path: Path) -> bool:
    """The file was written by `write_trace`."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read(len(HEAD)) == HEAD
    except (OSError, ValueError):
        return False


def _events(result: RunResult) -> Iterator[Event]:
    record = result.record
    if record is None:
        raise ValueError("a result that was read back has no records to trace")
    name = ", ".join(filter(None, [name_of(result), knobs_text(result.knobs)]))
    caveats = "; ".join(caveats_of([result]))
    return chain(_names(name, caveats, record), _slots(record), _steps(record), _counters(record))


def _names(process: str, caveats: str, record: RunRecord) -> Iterator[Event]:
    yield {"ph": "M", "pid": _PROCESS, "name": "process_name", "args": {"name": process}}
    if caveats:
        yield {"ph": "M", "pid": _PROCESS, "name": "process_labels", "args": {"labels": caveats}}
    tracks = {_STEPS: "steps"} | {
        slot + 1: f"slot {slot}" for slot in sorted({s[0] for s in record.occupancy})
    }
    for track, name in tracks.items():
        where = {"ph": "M", "pid": _PROCESS, "tid": track}
        yield {**where, "name": "thread_name", "args": {"name": name}}
        yield {**where, "name": "thread_sort_index", "args": {"sort_index": track}}


def _slots(record: RunRecord) -> Iterator[Event]:
    split = split_by_request(record)
    facts = {
        request.id: _facts(request) | {part: float(split[part][index]) for part in PARTS}
        for index, request in enumerate(record.requests)
    }
    for stay in SlotPhases(record).stays():
        name = f"request {stay.request_id}"
        yield _span(name, stay.slot + 1, stay.start_s, stay.end_s, facts.get(stay.request_id, {}))
        for span in stay.spans:
            yield _phase(span, stay.slot + 1)


def _facts(request: RequestRecord) -> Event:
    return {
        "prompt_tokens": request.num_prompt_tokens,
        "output_tokens": len(request.token_times_s),
        "cached_tokens": request.num_cached_tokens,
        "preemptions": request.num_preemptions,
        "end_reason": request.end_reason.value,
        "arrival_s": request.arrival_s,
    }


def _phase(span: Span, track: int) -> Event:
    return _span(span.phase.value, track, span.start_s, span.end_s, {})


def _steps(record: RunRecord) -> Iterator[Event]:
    log = record.steps
    for step in range(len(log)):
        start_s = log.start_s[step]
        arguments = {
            "batch": log.slots_active[step],
            "prefill_tokens": log.num_prefill_tokens[step],
            "decodes": log.num_decodes[step],
            "draft_tokens": log.num_draft_tokens[step],
            "rejected": log.num_rejected[step],
            "kv_blocks": log.blocks_used[step],
            "kv_use": log.blocks_used[step] / record.num_blocks if record.num_blocks else 0.0,
            "waiting": log.num_waiting[step],
        }
        yield _span(_kind(log, step), _STEPS, start_s, start_s + log.duration_s[step], arguments)


def _kind(log: StepLog, step: int) -> str:
    decodes = "verify" if log.num_draft_tokens[step] else "decode" if log.num_decodes[step] else ""
    prefills = "prefill" if log.num_prefill_tokens[step] else ""
    return "mixed" if decodes and prefills else decodes or prefills


def _counters(record: RunRecord) -> Iterator[Event]:
    """As they are when each step begins, and nothing any more after the last."""
    log = record.steps
    if not len(log):
        return
    starts = np.array(log.start_s)
    running = np.searchsorted(np.sort([stay[2] for stay in record.occupancy]), starts, side="right")
    running -= np.searchsorted(np.sort([stay[3] for stay in record.occupancy]), starts, side="right")
    columns = zip(log.start_s, running.tolist(), log.num_waiting, log.blocks_used, strict=True)
    for time_s, *values in chain(columns, [(log.start_s[-1] + log.duration_s[-1], 0, 0, 0)]):
        for name, value in zip(("running", "waiting", "kv blocks"), values, strict=True):
            yield {"ph": "C", "pid": _PROCESS, "name": name, "ts": _ns(time_s) / 1e3, "args": {name: value}}


def _span(name: str, track: int, start_s: float, end_s: float, arguments: Event) -> Event:
    # Both ends are rounded, not the length: spans that touch go on touching.
    start_ns, end_ns = _ns(start_s), _ns(end_s)
    event: Event = {"ph": "X", "pid": _PROCESS, "tid": track, "name": name}
    event |= {"ts": start_ns / 1e3, "dur": (end_ns - start_ns) / 1e3}
    return event | ({"args": arguments} if arguments else {})


def _ns(time_s: float) -> int:
    return round(time_s * 1e9)
