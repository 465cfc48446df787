"""When the requests of a description arrive: a rhythm, and the rate that it is played at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from tunebatch.workload import arrivals
from tunebatch.workload.traces import mean_rate_per_s

if TYPE_CHECKING:
    from tunebatch.workload.spec import WorkloadSpec

# Arrivals at one request a second and the rate to divide them by; None: no schedule.
Schedule = tuple[tuple[float, ...] | None, float | None]

# What can be stretched to any number of requests without an infinite factor.
_LEAST_SPAN = 1e-300


def schedule(
    spec: WorkloadSpec, recorded_s: Sequence[float], rng: np.random.Generator, notes: list[str]
) -> Schedule:
    """Arrivals of as many requests as there are recorded times, which only those of a trace look at."""
    n = len(recorded_s)
    rate = spec.rate_per_s
    if spec.arrivals == "poisson":
        return _at_mean_rate(arrivals.poisson(n, 1.0, rng)), rate
    if spec.arrivals == "gamma":
        return _at_mean_rate(arrivals.gamma(n, 1.0, spec.burstiness, rng)), rate
    if spec.arrivals == "constant":
        return tuple(arrivals.constant(n, 1.0).tolist()), rate
    if spec.arrivals == "burst":
        size = spec.burst_size or n
        rate = size / spec.burst_gap_s if spec.burst_gap_s else rate
        if rate is None or size >= n:
            return None, None
        return tuple(arrivals.burst(n, size, size).tolist()), rate
    if spec.arrivals == "closed":
        return None, None
    return _recorded_schedule(spec, recorded_s, notes)


def conversation_schedule(
    spec: WorkloadSpec, conversation_of: Sequence[int], rng: np.random.Generator, notes: list[str]
) -> Schedule:
    """Starts of conversations, for each of their requests that of its own.

    The rate counts requests: conversations start as many times more rarely as they have turns.

    Args:
        conversation_of: The number of each request's conversation, from 0, in order.
    """
    count = conversation_of[-1] + 1
    turns = len(conversation_of) / count
    starts, rate = schedule(spec, [0.0] * count, rng, notes)
    if rate is not None and spec.burst_gap_s:
        rate *= turns
    if starts is None:
        return None, rate
    return tuple(starts[one] * turns for one in conversation_of), rate


def _at_mean_rate(times: arrivals.Times) -> tuple[float, ...]:
    """Stretched so that the n-th request arrives at n, as ``vllm bench serve`` does: the sum of a few dozen
    random gaps is off by a tenth, and every rate that a run is given for would be too."""
    if times[-1] < _LEAST_SPAN:
        raise ValueError(
            f"the gaps between {times.size} arrivals are too small to be told from 0; "
            "use more requests or a higher burstiness"
        )
    return tuple((times * (times.size / times[-1])).tolist())


def _recorded_schedule(spec: WorkloadSpec, times: Sequence[float], notes: list[str]) -> Schedule:
    own_rate = mean_rate_per_s(list(times))
    if own_rate is None:
        if spec.rate_per_s is not None:
            notes.append(
                f"the trace has no duration, so its {len(times)} requests could not be rescaled in rate"
            )
        return None, None
    if spec.rate_per_s is not None and spec.rate_per_s != own_rate:
        notes.append(
            f"the trace was rescaled in time from {own_rate:.4g} to {spec.rate_per_s:.4g} requests/s"
        )
    return tuple((time - times[0]) * own_rate for time in times), spec.rate_per_s or own_rate


def process_text(spec: WorkloadSpec) -> str:
    """Words for the arrivals."""
    if spec.arrivals == "gamma":
        return f"gamma (burstiness {spec.burstiness:g})"
    if spec.arrivals == "burst" and spec.burst_size:
        return f"bursts of {spec.burst_size}"
    if spec.arrivals == "trace" and spec.trace_file is not None:
        return f"arrivals of {spec.trace_file.name}"
    return {"poisson": "Poisson", "constant": "evenly spaced"}.get(spec.arrivals, spec.arrivals)
