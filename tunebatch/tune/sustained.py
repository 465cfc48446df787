"""Is a rate sustained, or did the requests merely end before the queue was long?

A run has a last request, so an overloaded one ends too. Let a configuration serve at most X requests per
second and let r = (1 + e) X arrive for T seconds. The queue then grows steadily, and a request that arrives
at time t waits e / (1 + e) of t (the fluid limit of an overloaded queue; H. Chen and D. Yao, *Fundamentals
of Queueing Networks*, 2001, chapter 6). A short run keeps every promise at any rate. Two rules follow:

1. *Long enough.* With T of at least 20 times the limit on TTFT, a p90 within the limit leaves room for
   e = 6 % at most. MLPerf Inference bounds its server scenario in the same way, by a least duration. Batches
   must also have filled and turned over, so T is at least 5 times what a request may take inside the SLO.
2. *No growth.* The later half of the requests may wait longer than the earlier half by T / 40 at most on
   average; an overload of e adds e / (1 + e) of T / 2, so again e stays below 6 %. This also holds for an
   SLO that does not limit the TTFT at all, and for a trace that is shorter than rule 1 wants. guidellm
   watches the slope of the TTFT to the same end.
"""

from __future__ import annotations

from tunebatch.measure.limits import Slo
from tunebatch.measure.result import RunResult

__all__ = ["arrivals_last_s", "is_growing", "least_duration_s"]

_TTFT_LIMITS = 20.0
_LIFETIMES = 5.0
_GROWTH = 1.0 / 40.0


def least_duration_s(slo: Slo, mean_output_tokens: float) -> float:
    """Seconds for which requests have to arrive, or the run says little about its rate.

    Args:
        mean_output_tokens: Of the workload's requests; with the limit on TPOT it bounds their lifetime.
    """
    limits = {
        metric: max((limit.limit_s for limit in slo if limit.metric == metric), default=0.0)
        for metric in ("ttft", "tpot", "itl", "e2e")
    }
    per_token = limits["tpot"] or limits["itl"]
    lifetime = limits["e2e"] or limits["ttft"] + mean_output_tokens * per_token
    return max(_TTFT_LIMITS * limits["ttft"], _LIFETIMES * lifetime)


def arrivals_last_s(result: RunResult) -> float | None:
    """How long requests arrived; None when they came all at once."""
    rate = result.workload.get("rate_per_s")
    return result.workload["num_requests"] / rate if rate else None


def is_growing(result: RunResult) -> bool:
    """Whether later requests waited so much longer that the queue would have gone on growing."""
    duration, growth = arrivals_last_s(result), result.metrics.ttft_growth_s
    return duration is not None and growth is not None and growth > _GROWTH * duration
