"""Vidur's processed traces: CSV with ``num_prefill_tokens``, ``num_decode_tokens``, perhaps ``arrived_at``.

Source: repository microsoft/vidur, MIT (MLSys 2024); Etalon and Sarathi-Serve publish lengths in the same
form. Without ``arrived_at`` (seconds) there are lengths only, and other columns (``num_total_tokens``,
``pd_ratio``) follow from these two.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunebatch.workload.traces.columns import read_columns
from tunebatch.workload.traces.row import NoArrivalsError, ReadOptions, TraceRow

_TIME, _PROMPT, _OUTPUT = "arrived_at", "num_prefill_tokens", "num_decode_tokens"


def read_vidur(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The rows of a file; arrivals are its own.

    Raises:
        TraceError: A missing column, arrivals that are wanted and not there, or a broken row.
    """
    for row in read_columns(path, (_PROMPT, _OUTPUT)):
        if options.need_arrivals and _TIME not in row.values:
            raise NoArrivalsError(path, 1, f"the trace has no arrivals (no column {_TIME!r})")
        yield TraceRow(
            line=row.line,
            arrival_s=row.seconds(_TIME) if options.need_arrivals else None,
            prompt_tokens=row.count(_PROMPT),
            output_tokens=row.count(_OUTPUT),
        )
