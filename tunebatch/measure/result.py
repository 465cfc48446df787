"""The outcome of one run, and its form on disk."""

from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from tunebatch.engine.records import STEP_COLUMNS, EndReason, RunRecord, SpeculationRecord, StepLog
from tunebatch.measure import latency
from tunebatch.measure.atomic import write_all
from tunebatch.measure.conditions import Conditions
from tunebatch.measure.impossible import (
    impossible_knob,
    impossible_metric,
    impossible_rate,
    not_finite,
)
from tunebatch.measure.metrics import Metrics, to_vllm_keys
from tunebatch.measure.slo import SloVerdict
from tunebatch.measure.telemetry.beside import Telemetry
from tunebatch.measure.time_split import PARTS, split_by_request

SCHEMA = "tunebatch.run.v1"

# A time of a moment, such as ``arrival_s``, is on the run's clock; all others are lengths. The parts of
# a request add up to its end minus its arrival: to ``e2e_s``, or, where its client hung up, to
# ``cancelled_at_s`` minus ``arrival_s``, as ``e2e_s`` ends with the last token.
REQUEST_COLUMNS = (
    "id",
    "arrival_s",
    "first_scheduled_s",
    "prompt_tokens",
    "output_tokens",
    "ttft_s",
    "tpot_s",
    "e2e_s",
    "cached_tokens",
    "preemptions",
    "drafted",
    "accepted",
    *PARTS,
    "end_reason",
    "warmup",
    "cancelled_at_s",  # when the engine let go of a request whose client had hung up; empty for others
)


class ResultError(ValueError):
    """A result that cannot be written or read; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """One strategy, with its knobs, on one workload.

    Attributes:
        workload: description, fingerprint, likeness, num_requests, rate_per_s, seed, notes.
        model: At least its name; of a run on the command line also whether it has ``random_weights``.
        slo: Limits as text, see ``slo.parse_slo``.
        conditions: None on a result of a version that did not tell them.
        verdict: None without an SLO.
        speculation: What became of drafts; None where the strategy drafts nothing.
        telemetry: What the machine did; None in virtual time, or of a version that did not tell it.
        record: The raw records; None on a result that was read back.
    """

    strategy: str
    knobs: dict[str, bool | int | float | str]
    workload: dict[str, Any]
    model: dict[str, Any]
    environment: dict[str, Any]
    slo: list[str]
    metrics: Metrics
    verdict: SloVerdict | None = None
    conditions: Conditions | None = None
    speculation: SpeculationRecord | None = None
    telemetry: Telemetry | None = None
    record: RunRecord | None = None
    schema: str = SCHEMA


@dataclass(frozen=True, slots=True)
class _Stored:
    """What stands under ``tunebatch`` in the file."""

    strategy: str
    knobs: dict[str, bool | int | float | str]
    workload: dict[str, Any]
    model: dict[str, Any]
    environment: dict[str, Any]
    slo: list[str]
    metrics: Metrics
    verdict: SloVerdict | None = None
    conditions: Conditions | None = None
    speculation: SpeculationRecord | None = None
    telemetry: Telemetry | None = None


_STORED = tuple(field.name for field in dataclasses.fields(_Stored))


def to_json_dict(result: RunResult) -> dict[str, Any]:
    """The result in plain JSON types: the keys of ``vllm bench serve`` on top, ours under ``tunebatch``.

    The records are left out. A number that is not finite becomes null.
    """
    return {
        "schema": result.schema,
        "backend": "tunebatch",
        "model_id": _plain(result.model.get("name")),
        "num_prompts": result.metrics.num_requests,
        "request_rate": _plain(result.workload.get("rate_per_s")),
        **_plain(to_vllm_keys(result.metrics)),
        "tunebatch": {name: _plain(getattr(result, name)) for name in _STORED},
    }


def _plain(value: Any) -> Any:
    """JSON types only; dataclasses by field, numpy's numbers as Python's, NaN and infinity as None."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    return str(value)


def from_json_dict(data: object, source: str = "result") -> RunResult:
    """The inverse of ``to_json_dict``, without the records.

    Args:
        source: What to call the data in an error, usually its file.

    Raises:
        ResultError: Another schema, or a key that is missing or has a wrong or an impossible value.
    """
    # Only those who read results pay for it: it loads slower than all the rest of this layer.
    from pydantic import TypeAdapter, ValidationError

    if not isinstance(data, dict):
        raise ResultError(f"{source}: expected a JSON object, found {type(data).__name__}")
    schema = data.get("schema")
    if schema != SCHEMA:
        found = "no schema" if schema is None else f"schema {schema!r}"
        raise ResultError(f"{source}: {found}; this version reads {SCHEMA!r}")
    try:
        if problem := not_finite(data):
            raise ResultError(f"{source}: {problem}")
        text = json.dumps(data.get("tunebatch"), allow_nan=False)
        stored = TypeAdapter(_Stored).validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(str(part) for part in ("tunebatch", *first["loc"]))
        raise ResultError(f"{source}: {key}: {first['msg']}") from None
    except ResultError:
        raise
    except (TypeError, ValueError, RecursionError) as error:
        raise ResultError(f"{source}: not a plain JSON value under 'tunebatch': {error}") from None
    shown = {key: value for key, value in data.items() if key != "tunebatch"}
    problem = (
        impossible_metric({**shown, "tunebatch": {"metrics": data["tunebatch"]["metrics"]}})
        or impossible_knob(stored.strategy, stored.knobs)
        or impossible_rate(stored.workload)
    )
    if problem:
        raise ResultError(f"{source}: {problem}")
    return RunResult(**{name: getattr(stored, name) for name in _STORED})


def write_result(result: RunResult, directory: str | os.PathLike[str]) -> Path:
    """Writes ``result.json``, and from the records ``requests.csv`` and ``steps.csv``; a result without
    records takes away those of another one.

    All or nothing: a full disk or a kill leaves the previous files in place. Returns the path of
    ``result.json``, which is put in place last.

    Raises:
        ResultError: The disk is full, or the directory cannot be written.
    """
    folder = Path(directory)
    writers: dict[str, Callable[[TextIO], None]] = {}
    record = result.record
    if record is not None:
        writers["requests.csv"] = lambda file: _write_requests(file, record, result.metrics.num_warmup)
        writers["steps.csv"] = lambda file: _write_steps(file, record.steps)
    text = json.dumps(to_json_dict(result), indent=2, allow_nan=False) + "\n"

    def write_json(file: TextIO) -> None:
        file.write(text)

    writers["result.json"] = write_json
    try:
        folder.mkdir(parents=True, exist_ok=True)
        same = record is None and _holds(folder / "result.json", text)
        write_all(folder, writers)
        if record is None and not same:
            for name in ("requests.csv", "steps.csv"):
                (folder / name).unlink(missing_ok=True)
    except OSError as error:
        raise ResultError(
            f"could not write {folder / 'result.json'}: {_reason(error)}; earlier results there were kept"
        ) from error
    return folder / "result.json"


def _holds(file: Path, text: str) -> bool:
    try:
        return file.read_text(encoding="utf-8") == text
    except (OSError, ValueError):
        return False


def _write_requests(file: TextIO, record: RunRecord, num_warmup: int) -> None:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(REQUEST_COLUMNS)
    split = split_by_request(record)
    spent = zip(*(split[part].tolist() for part in PARTS), strict=True)
    for place, (request, parts) in enumerate(zip(record.requests, spent, strict=True)):
        rows.writerow(
            (
                request.id,
                request.arrival_s,
                request.first_scheduled_s,
                request.num_prompt_tokens,
                len(request.token_times_s),
                latency.ttft_s(request),
                latency.tpot_s(request),
                latency.e2e_s(request),
                request.num_cached_tokens,
                request.num_preemptions,
                request.num_drafted,
                request.num_accepted,
                *parts,
                request.end_reason.value,
                int(place < num_warmup),
                request.end_s if request.end_reason is EndReason.CANCELLED else None,
            )
        )


def _write_steps(file: TextIO, steps: StepLog) -> None:
    rows = csv.writer(file, lineterminator="\n")
    rows.writerow(STEP_COLUMNS)
    rows.writerows(zip(*(getattr(steps, column) for column in STEP_COLUMNS), strict=True))


def read_result(path: str | os.PathLike[str]) -> RunResult:
    """Reads a ``result.json``, given as the file or as its directory. The records are not read.

    Raises:
        ResultError: No such file, not JSON, or not a result of this schema.
    """
    file = Path(path)
    if file.is_dir():
        file = file / "result.json"
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ResultError(f"could not read {file}: {_reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{file}: not valid JSON: {error}") from None
    return from_json_dict(data, source=str(file))


def _reason(error: OSError) -> str:
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
