"""The latencies of one request, in seconds; None where a request has no such latency."""

from __future__ import annotations

from itertools import pairwise

from tunebatch.engine.records import RequestRecord


def ttft_s(record: RequestRecord) -> float | None:
    """First output token minus *scheduled* arrival, so queueing counts."""
    return record.token_times_s[0] - record.arrival_s if record.token_times_s else None


def tpot_s(record: RequestRecord) -> float | None:
    """Mean time per output token after the first; needs two."""
    times = record.token_times_s
    return (times[-1] - times[0]) / (len(times) - 1) if len(times) >= 2 else None


def e2e_s(record: RequestRecord) -> float | None:
    """Last output token minus scheduled arrival."""
    return record.token_times_s[-1] - record.arrival_s if record.token_times_s else None


def max_itl_s(record: RequestRecord) -> float | None:
    """The longest gap between two output tokens; needs two."""
    return max((after - before for before, after in pairwise(record.token_times_s)), default=None)
