"""When a run can be stopped because it can no longer meet its SLO, whatever comes next."""

from __future__ import annotations

import math

from tunebatch.measure.limits import QUANTILES, Limit, Slo


def violations_allowed(n: int, q: float) -> int:
    """How many of ``n`` values may exceed a limit while their quantile ``q`` can still be within it.

    The interpolated percentile is at least the order statistic just below its position
    ``(n - 1) q``; once that one exceeds the limit, the percentile does. Never falls as n grows.
    """
    return n - 1 - math.floor((n - 1) * q) if n > 0 else 0


class EarlyStop:
    """Counts violations while a run goes on, and says when a limit is certainly missed.

    Sound, not eager: it assumes that every request yet to come is perfect, and that all of them
    will count. Limits on means and on ITL never stop a run: perfect later values can make up for
    bad ones, and the number of gaps is not known before the end.

    Args:
        slo: What the run has to keep.
        num_requests: Requests of the workload whose latencies count, also an upper bound of those with a
            TPOT.
    """

    __slots__ = ("_allowed", "_e2e", "_limits", "_tpot", "_ttft", "_violations")

    def __init__(self, slo: Slo, num_requests: int) -> None:
        self._limits: list[Limit] = [
            limit for limit in slo if limit.metric != "itl" and limit.statistic != "mean"
        ]
        self._allowed = [
            violations_allowed(num_requests, QUANTILES.get(limit.statistic, 1.0)) for limit in self._limits
        ]
        self._violations = [0] * len(self._limits)
        self._ttft = self._of("ttft")
        self._tpot = self._of("tpot")
        self._e2e = self._of("e2e")

    def _of(self, metric: str) -> list[tuple[int, float]]:
        return [(i, limit.limit_s) for i, limit in enumerate(self._limits) if limit.metric == metric]

    def observe_first_token(self, ttft_s: float) -> None:
        """A request got its first token, ``ttft_s`` after its scheduled arrival."""
        self._count(self._ttft, ttft_s)

    def observe_end(self, tpot_s: float | None, e2e_s: float | None) -> None:
        """A request was completed, or its client hung up after the first token.

        Args:
            tpot_s: None below two tokens.
            e2e_s: None when the client hung up.
        """
        if tpot_s is not None:
            self._count(self._tpot, tpot_s)
        if e2e_s is not None:
            self._count(self._e2e, e2e_s)

    def observe_hung_up(self) -> None:
        """A client hung up before its first token, which misses every limit on the TTFT."""
        self._count(self._ttft, math.inf)

    def _count(self, watched: list[tuple[int, float]], value_s: float) -> None:
        for index, limit_s in watched:
            if value_s > limit_s:
                self._violations[index] += 1

    def certain_miss(self, num_overdue: int = 0) -> Limit | None:
        """The first limit that the whole run must miss, given what was observed; None while it may pass.

        Args:
            num_overdue: Requests still without a first token that have waited longer than the TTFT
                limit; with several TTFT limits, longer than the largest. Whether they get one or
                hang up, they miss it.
        """
        for limit, violations, allowed in zip(self._limits, self._violations, self._allowed, strict=True):
            overdue = num_overdue if limit.metric == "ttft" else 0
            if violations + overdue > allowed:
                return limit
        return None
