"""The first tenth of a run's requests is warm-up: they find an empty engine and wait less than those to come.

A fixed share of the requests, and not of the time, so that two runs of one traffic leave out the same ones.
They are served and count for throughput, goodput and losses, which are over the whole window, but are in no
statistic of a latency. Where all requests come at once no load builds up: who is served first waits least,
and to leave those out would leave out the shortest waits. Nothing is warm-up there.
"""

from __future__ import annotations

_ONE_OF = 10


def num_warmup(num_requests: int, at_once: bool) -> int:
    """How many of the first requests are warm-up, rounded down."""
    return 0 if at_once else num_requests // _ONE_OF


def requests_for(num_samples: int, at_once: bool) -> int:
    """The fewest requests of which so many are left."""
    return num_samples if at_once else num_samples + (num_samples - 1) // (_ONE_OF - 1)


def warmup_text(num_left_out: int, num_requests: int) -> str:
    """``first 7 of 78 requests``, or ``none``"""
    return f"first {num_left_out} of {num_requests} requests" if num_left_out else "none"
