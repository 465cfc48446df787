"""The Azure LLM inference traces: CSV with ``TIMESTAMP``, ``ContextTokens`` and ``GeneratedTokens``.

Source: repository Azure/AzurePublicDataset, CC BY 4.0. 2023 (Splitwise, ISCA 2024): CRLF, times with
seven fractional digits and no zone. 2024 (DynamoLLM, HPCA 2025): up to six digits, or none, and a
UTC offset. 2025 (ModServe, SoCC 2025): ISO 8601 with ``Z``, and a column ``NumImages`` in the middle.
NanoFlow publishes lengths under the same header with ``XXX`` for every time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from tunebatch.workload.traces.columns import Record, read_columns
from tunebatch.workload.traces.row import NoArrivalsError, ReadOptions, TraceRow

_TIME, _PROMPT, _OUTPUT, _IMAGES = "TIMESTAMP", "ContextTokens", "GeneratedTokens", "NumImages"
_TIME_FORM = re.compile(r"(\d{4}-\d\d-\d\d)[ T](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def read_azure(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The rows of a file, columns by name; arrivals are seconds after its first row.

    Raises:
        TraceError: A missing column, or a row with other fields than the header, a time that is none,
            or a count that is no whole number.
    """
    first_ns: int | None = None
    for row in read_columns(path, (_TIME, _PROMPT, _OUTPUT)):
        arrival_s = None
        if options.need_arrivals:
            time_ns = _nanoseconds(row)
            first_ns = time_ns if first_ns is None else first_ns
            arrival_s = (time_ns - first_ns) / 1e9
        yield TraceRow(
            line=row.line,
            arrival_s=arrival_s,
            prompt_tokens=row.count(_PROMPT),
            output_tokens=row.count(_OUTPUT),
            num_images=row.count(_IMAGES) if _IMAGES in row.values else 0,
        )


def _nanoseconds(row: Record) -> int:
    """Since the epoch, as a whole number: a float of seconds would lose the seventh digit."""
    text = row.values[_TIME]
    if text == "XXX":
        raise NoArrivalsError(row.path, row.line, "the trace has no arrivals ('XXX' for every time)")
    match = _TIME_FORM.fullmatch(text)
    try:
        if match is None:
            raise ValueError
        date, clock, fraction, zone = match.groups()
        moment = datetime.fromisoformat(f"{date}T{clock}{zone or '+00:00'}")
    except ValueError:
        raise row.refused(f"{_TIME} is {text!r}", "a time like 2023-11-16 18:15:46.6805900") from None
    since = moment - _EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000_000 + int((fraction or "").ljust(9, "0"))
