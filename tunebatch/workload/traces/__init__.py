"""Recorded traffic: files of real requests, in the formats of those who published them.

A new format is a function that yields `TraceRow` and a line in `TRACE_FORMATS`.
"""

from __future__ import annotations

import contextlib
import difflib
import itertools
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tunebatch.workload.traces.azure import read_azure
from tunebatch.workload.traces.burstgpt import read_burstgpt
from tunebatch.workload.traces.jsonl import read_jsonl
from tunebatch.workload.traces.mooncake import read_mooncake
from tunebatch.workload.traces.row import NoArrivalsError, ReadOptions, TraceError, TraceRow, open_bytes
from tunebatch.workload.traces.servegen import read_servegen
from tunebatch.workload.traces.vidur import read_vidur

__all__ = [
    "TRACE_FORMATS",
    "ReadOptions",
    "TraceError",
    "TraceFormat",
    "TraceRow",
    "detect_format",
    "has_arrivals",
    "mean_rate_per_s",
    "read_trace",
]


class Reader(Protocol):
    """Yields a file's requests in file order, so that a slice reads no further than its end."""

    def __call__(self, path: Path, options: ReadOptions) -> Iterator[TraceRow]: ...


@dataclass(frozen=True, slots=True)
class TraceFormat:
    """How to read a format and how to know it.

    Attributes:
        read: The reader.
        marks: Sets of column names (CSV) or keys (JSONL); a file is of this format if its first
            line has all the names of one of them.
        first_line: What the first line looks like, where it has no names.
        note: What whoever uses it is told.
    """

    read: Reader
    marks: tuple[frozenset[str], ...] = ()
    first_line: re.Pattern[str] | None = None
    note: str = ""


TRACE_FORMATS: dict[str, TraceFormat] = {
    "azure": TraceFormat(read_azure, (frozenset({"TIMESTAMP", "ContextTokens", "GeneratedTokens"}),)),
    "burstgpt": TraceFormat(read_burstgpt, (frozenset({"Timestamp", "Request tokens", "Response tokens"}),)),
    "mooncake": TraceFormat(read_mooncake, (frozenset({"input_length", "output_length", "hash_ids"}),)),
    "servegen": TraceFormat(
        read_servegen,
        first_line=re.compile(
            r"[\d.]+,[\d.eE+-]+,[\d.eE+-]+,(Gamma|Weibull)?,[\d.eE+-]*,[\d.eE+-]*", re.ASCII
        ),
        note="arrivals and lengths were drawn from what the trace tells of windows of time",
    ),
    "vidur": TraceFormat(read_vidur, (frozenset({"num_prefill_tokens", "num_decode_tokens"}),)),
    "jsonl": TraceFormat(read_jsonl, (frozenset({"output_tokens"}), frozenset({"max_tokens"}))),
}


def detect_format(path: str | Path) -> str:
    """Name of the trace's format, judged by its first line; a folder is one of clients.

    Raises:
        TraceError: No such file, or none of the known formats.
    """
    path = Path(path)
    if path.is_dir() and any(path.glob("*-trace.csv")):
        return "servegen"
    with _readable(path), open_bytes(path) as lines:
        first = next((line for line in lines if line.strip()), b"").decode("utf-8-sig", "replace").strip()
    names = _names(first)
    for name, trace_format in TRACE_FORMATS.items():
        if any(mark <= names for mark in trace_format.marks):
            return name
        if trace_format.first_line is not None and trace_format.first_line.fullmatch(first):
            return name
    raise TraceError(
        path,
        1,
        f"unknown trace format, it begins {first[:60]!r}",
        f"a trace in one of: {', '.join(TRACE_FORMATS)}",
    )


def read_trace(
    path: str | Path,
    trace_format: str | None = None,
    *,
    skip: int = 0,
    limit: int | None = None,
    options: ReadOptions | None = None,
) -> list[TraceRow]:
    """Requests of a trace, in file order.

    Args:
        trace_format: A key of `TRACE_FORMATS`; None: found from the first line.
        skip: Leave out that many rows at the beginning.
        limit: Read at most that many rows; what comes after is not looked at.

    Raises:
        TraceError: Unreadable, of an unknown format, a broken row, or no row in the slice.
        ValueError: A negative skip, or a limit below 1.
    """
    path = Path(path)
    if skip < 0 or (limit is not None and limit < 1):
        raise ValueError(
            f"trace slice: skip is {skip} and limit is {limit}; expected skip >= 0 and limit >= 1"
        )
    name = trace_format or detect_format(path)
    if name not in TRACE_FORMATS:
        near = difflib.get_close_matches(name, TRACE_FORMATS, 1)
        hint = f"{near[0]!r}" if near else f"one of: {', '.join(TRACE_FORMATS)}"
        raise TraceError(path, None, f"unknown trace format {name!r}", hint)
    rows = TRACE_FORMATS[name].read(path, options or ReadOptions())
    with _readable(path):
        found = list(itertools.islice(rows, skip, None if limit is None else skip + limit))
    if not found:
        count = sum(1 for _ in TRACE_FORMATS[name].read(path, options or ReadOptions())) if skip else 0
        if count:
            raise TraceError(path, None, f"no request after the first {skip}", f"to skip {count - 1} at most")
        raise TraceError(path, None, "no request", "a row at least")
    return found


def has_arrivals(path: str | Path, trace_format: str | None = None) -> bool:
    """Whether a trace tells when its requests came, judged by its first row.

    Raises:
        TraceError: See `read_trace`.
    """
    try:
        read_trace(path, trace_format, limit=1, options=ReadOptions(tokenize=lambda text: (0,)))
    except NoArrivalsError:
        return False
    return True


def mean_rate_per_s(arrivals_s: list[float]) -> float | None:
    """Gaps over the time from the first to the last arrival; None when they take no time."""
    span = max(arrivals_s) - min(arrivals_s) if arrivals_s else 0.0
    if not span > 0:
        return None
    rate = (len(arrivals_s) - 1) / span
    return rate if math.isfinite(rate) else None


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Damaged compression shows while reading, not while opening."""
    try:
        yield
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(path, None, f"cannot be read: {error}", "a whole file") from error


def _names(line: str) -> set[str]:
    if not line.startswith("{"):
        return {name.strip() for name in line.split(",")}
    try:
        return set(json.loads(line))
    except ValueError:
        return set()
