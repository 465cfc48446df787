"""The Azure LLM inference traces: CSV with ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``.

Source: repository Azure/AzurePublicDataset, CC BY 4.0. 2023 (Splitwise, ISCA 2024): CRLF, times with
seven fractional digits and no zone. 2024 (DynamoLLM, HPCA 2025): up to six digits, or none, and a
UTC offset. 2025 (ModServe, SoCC 2025): ISO 8601 with ``Z``, and a column ``NumImages`` in the middle.
NanoFlow publishes lengths under the same header with ``XXX`` for every time.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tunebatch.workload.traces.row import NO_ARRIVALS, ReadOptions, TraceError, TraceRow, open_bytes

_TIME, _PROMPT, _OUTPUT, _IMAGES = "TIMESTAMP", "ContextTokens", "GeneratedTokens", "NumImages"
_TIME_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_azure(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The rows of a file, columns by name; arrivals are seconds after its first row.

    Raises:
        TraceError: A missing column, or a row with other fields than the header, a time that is none,
            or a count that is no whole number.
    """
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "replace") as lines:
        header = [name.strip() for name in next(lines, "").split(",")]
        for column in (_TIME, _PROMPT, _OUTPUT):
            if column not in header:
                raise TraceError(path, 1, f"no column {column!r}", f"{_TIME},{_PROMPT},{_OUTPUT}")
        at = {name: header.index(name) for name in header}
        first_ns: int | None = None
        for line, text in enumerate(lines, 2):
            if not text.strip():
                continue
            fields = text.split(",")
            if len(fields) != len(header):
                raise TraceError(path, line, f"{len(fields)} fields", f"{len(header)}: {','.join(header)}")
            arrival_s = None
            if options.need_arrivals:
                time_ns = _nanoseconds(path, line, fields[at[_TIME]])
                first_ns = time_ns if first_ns is None else first_ns
                arrival_s = (time_ns - first_ns) / 1e9
            yield TraceRow(
                line=line,
                arrival_s=arrival_s,
                prompt_tokens=_count(path, line, _PROMPT, fields[at[_PROMPT]]),
                output_tokens=_count(path, line, _OUTPUT, fields[at[_OUTPUT]]),
                num_images=_count(path, line, _IMAGES, fields[at[_IMAGES]]) if _IMAGES in at else 0,
            )


def _nanoseconds(path: Path, line: int, text: str) -> int:
    """Since the epoch, as a whole number: a float of seconds would lose the seventh digit."""
    text = text.strip()
    if text == "XXX":
        raise TraceError(path, line, "the trace has no arrivals ('XXX' for every time)", NO_ARRIVALS)
    match = _TIME_FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        date, clock, fraction, zone = match.groups()
        moment = datetime.fromisoformat(f"{date}T{clock}{zone or '+00:00'}")
    except ValueError:
        raise TraceError(
            path, line, f"{_TIME} is {text!r}", "a time like 2023-11-16 18:15:46.6805900"
        ) from None
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))


def _count(path: Path, line: int, column: str, text: str) -> int:
    text = text.strip()
    if not (text.isascii() and text.isdecimal()):
        raise TraceError(path, line, f"{column} is {text!r}", "a whole number, 0 or more")
    return int(text)
