"""Does a run keep its SLO? And does a single request, for goodput?

The limits themselves and the early stop live in modules of their own and are offered here too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from tunebatch.engine.records import RequestRecord
from tunebatch.measure import latency
from tunebatch.measure.early_stop import EarlyStop, violations_allowed
from tunebatch.measure.limits import Limit, Slo, SloError, parse_limit, parse_slo

if TYPE_CHECKING:
    from tunebatch.measure.metrics import Metrics

__all__ = [
    "EarlyStop",
    "Limit",
    "LimitVerdict",
    "Slo",
    "SloError",
    "SloVerdict",
    "check",
    "parse_limit",
    "parse_slo",
    "request_meets",
    "violations_allowed",
]

Status = Literal["pass", "miss", "not enough evidence"]

_LATENCIES = {
    "ttft": latency.ttft_s,
    "tpot": latency.tpot_s,
    "itl": latency.max_itl_s,
    "e2e": latency.e2e_s,
}


@dataclass(frozen=True, slots=True)
class LimitVerdict:
    """One limit against what was observed.

    Attributes:
        observed_s: The measured statistic; None with too few samples, or when it could only exceed the
            limit: the run was stopped, or clients had hung up.
        count: Samples there were.
        needed: Samples that the statistic needs.
        margin: ``log(observed / limit)``: negative inside the limit, 0 on it; None without a value.
    """

    limit: Limit
    observed_s: float | None
    status: Status
    count: int
    needed: int
    margin: float | None


@dataclass(frozen=True, slots=True)
class SloVerdict:
    """All limits together.

    Attributes:
        met: Every limit passes on enough evidence, and no request was rejected or left unfinished.
        enough: No limit lacks evidence.
        lost: Requests rejected or left unfinished; and without a limit on the TTFT, which they miss where
            there is one, those whose client hung up before the first token.
    """

    limits: tuple[LimitVerdict, ...]
    met: bool
    enough: bool
    lost: int

    @property
    def binding(self) -> LimitVerdict | None:
        """The limit with the least room, or the one missed by most; None without evidence for any."""
        known = [verdict for verdict in self.limits if verdict.margin is not None]
        return max(known, key=lambda verdict: verdict.margin or 0.0) if known else None


def check(metrics: Metrics, slo: Slo, missed: Limit | None = None) -> SloVerdict:
    """Judges a run. A percentile with too few samples is neither a pass nor a miss, and so not met.

    Args:
        missed: What the run was stopped for, see ``EarlyStop``: a miss, though its value is not known.
    """
    verdicts = tuple(
        LimitVerdict(limit, None, "miss", judged.count, judged.needed, None)
        if limit == missed and judged.status != "miss"
        else judged
        for limit, judged in ((limit, _judge(metrics, limit)) for limit in slo)
    )
    lost = metrics.rejected + metrics.unfinished
    if all(limit.metric != "ttft" for limit in slo):
        lost += metrics.hung_up
    return SloVerdict(
        limits=verdicts,
        met=lost == 0 and all(verdict.status == "pass" for verdict in verdicts),
        enough=all(verdict.status != "not enough evidence" for verdict in verdicts),
        lost=lost,
    )


def _judge(metrics: Metrics, limit: Limit) -> LimitVerdict:
    statistic = metrics.distribution(limit.metric).statistic(limit.statistic)
    if limit.metric == "ttft" and metrics.judged_ttft is not None:
        served, statistic = statistic, metrics.judged_ttft.statistic(limit.statistic)
        if statistic.value_s is not None and statistic.value_s > limit.limit_s >= (served.value_s or 0.0):
            return LimitVerdict(limit, None, "miss", statistic.count, statistic.needed, None)
    observed = statistic.value_s
    if observed is None:
        return LimitVerdict(limit, None, "not enough evidence", statistic.count, statistic.needed, None)
    # A virtual clock can measure exactly 0; a nanosecond keeps the logarithm finite.
    margin = math.log(max(observed, 1e-9) / limit.limit_s)
    status: Status = "pass" if observed <= limit.limit_s else "miss"
    return LimitVerdict(limit, observed, status, statistic.count, statistic.needed, margin)


def request_meets(record: RequestRecord, slo: Slo) -> bool:
    """Whether one request counts for goodput: completed, and its own latencies keep every limit.

    A limit on ITL applies to the request's longest gap; a latency that the request does not have (the TPOT
    of a single token) cannot be missed.
    """
    if not record.completed or not record.token_times_s:
        return False
    for limit in slo:
        value_s = _LATENCIES[limit.metric](record)
        if value_s is not None and value_s > limit.limit_s:
            return False
    return True
