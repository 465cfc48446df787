"""BurstGPT: CSV with ``Timestamp``, ``Request tokens`` and ``Response tokens`` among other columns.

Source: repository HPMLL/BurstGPT, CC BY 4.0 (KDD 2025). Times are whole seconds from midnight of the first
day. A request that failed has 0 response tokens. The third part has two columns more than the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunebatch.workload.traces.columns import read_columns
from tunebatch.workload.traces.row import ReadOptions, TraceRow

_TIME, _PROMPT, _OUTPUT = "Timestamp", "Request tokens", "Response tokens"


def read_burstgpt(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The rows of a file, those that failed too: to count and to drop them is for who uses them.

    Raises:
        TraceError: A missing column or a broken row.
    """
    for row in read_columns(path, (_TIME, _PROMPT, _OUTPUT)):
        yield TraceRow(
            line=row.line,
            arrival_s=row.seconds(_TIME) if options.need_arrivals else None,
            prompt_tokens=row.count(_PROMPT),
            output_tokens=row.count(_OUTPUT),
        )
