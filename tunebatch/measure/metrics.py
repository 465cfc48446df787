"""What a run's records add up to."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.measure.distribution import Distribution, Percentile, distribution
from tunebatch.measure.limits import MetricName, Slo
from tunebatch.measure.percentiles import FloatArray
from tunebatch.measure.time_split import TimeSplit, split_time

__all__ = ["Distribution", "Metrics", "Percentile", "TimeSplit", "summarize", "to_vllm_keys"]

# Less than any clock resolves: no time went by. Over the least of all numbers a rate would be infinite.
_NO_DURATION_S = 1e-12


@dataclass(frozen=True, slots=True)
class Metrics:
    """All numbers of one run. Rates are per second of ``duration_s``, first arrival to last token; 0 where
    no time went by.

    Attributes:
        cancelled: Hung up by the client: no E2E, but a TTFT and a TPOT of the tokens that came.
        unfinished: The run was stopped before their end.
        total_input_tokens: Prompt tokens of the requests that got a first token.
        total_output_tokens: All output tokens, also those of requests that were not completed.
        request_goodput: Completed requests that keep every limit, per second; None without an SLO.
        bubble: Share of held slot-steps that computed nothing, or a token for somebody who had ended.
        mean_batch: Sequences computed in a step, mean over steps.
        mean_kv_use: KV blocks used of all blocks, mean over steps.
        acceptance: Accepted of drafted tokens; None when nothing was drafted.
        accepted_length: Tokens per verification pass; None when there was none.
        mean_step_s: Mean duration of a step.
        ttft_growth_s: Mean TTFT of the later half of the requests, by arrival, minus that of the
            earlier half: what a growing queue adds. Who hung up waited at least so long. None where a
            half has neither.
        hung_up: Those of ``cancelled`` that had no first token yet.
        judged_ttft: The TTFT that an SLO is held against: as ``ttft``, but who hung up before the first
            token counts as one that waited so long, and longer than every limit on the TTFT. None where
            nobody did, or without such a limit.
        saved_prefill_tokens: Those of ``total_input_tokens`` that were cached when their requests were first
            admitted, and so not computed. None without prefix caching.
        hit_rate: Their share of ``total_input_tokens``.
        num_warmup: The first requests, which are in no distribution of a latency, but in all counts and
            rates.
    """

    duration_s: float
    num_requests: int
    completed: int
    cancelled: int
    rejected: int
    unfinished: int
    total_input_tokens: int
    total_output_tokens: int
    request_throughput: float
    output_throughput: float
    total_token_throughput: float
    request_goodput: float | None
    ttft: Distribution
    tpot: Distribution
    itl: Distribution
    e2e: Distribution
    bubble: float | None
    mean_batch: float | None
    mean_kv_use: float | None
    peak_kv_use: float | None
    num_steps: int
    num_preemptions: int
    acceptance: float | None
    accepted_length: float | None
    mean_step_s: float | None
    where: TimeSplit
    ttft_growth_s: float | None = None
    hung_up: int = 0
    judged_ttft: Distribution | None = None
    saved_prefill_tokens: int | None = None
    hit_rate: float | None = None
    num_warmup: int = 0

    @property
    def num_counted(self) -> int:
        """Requests whose latencies count."""
        return self.num_requests - self.num_warmup

    def distribution(self, metric: MetricName) -> Distribution:
        return {"ttft": self.ttft, "tpot": self.tpot, "itl": self.itl, "e2e": self.e2e}[metric]


def summarize(record: RunRecord, slo: Slo | None = None, num_warmup: int = 0) -> Metrics:
    """The metrics of a run, with goodput where there is an SLO.

    Args:
        num_warmup: Of the requests that arrived first; see ``measure.warmup``.
    """
    requests = record.requests
    times = _Times(requests)
    ended = {reason: sum(r.end_reason is reason for r in requests) for reason in EndReason}
    completed = np.array([r.completed for r in requests], dtype=bool)

    done = completed & times.served
    cancelled = np.array([r.end_reason is EndReason.CANCELLED for r in requests], dtype=bool)
    gone = cancelled & ~times.served
    counted = np.arange(len(requests)) >= num_warmup
    times.give_up(requests, gone)
    duration = 0.0
    if times.served.any():
        duration = float(times.last[times.served].max() - times.arrival.min())
        duration = duration if duration > _NO_DURATION_S else 0.0
    prompts = np.array([r.num_prompt_tokens for r in requests], dtype=np.int64)
    num_input, num_output = int(prompts[times.served].sum()), int(times.counts.sum())

    saved: int | None = None
    if record.prefix_caching:
        saved = sum(r.num_cached_tokens for r, served in zip(requests, times.served, strict=True) if served)

    def rate(amount: int) -> float:
        return amount / duration if duration > 0.0 else 0.0

    drafted = sum(r.num_drafted for r in requests)
    accepted = sum(r.num_accepted for r in requests)
    verifications = sum(r.num_verifications for r in requests)
    steps = _Steps(record.steps, record.num_blocks)
    return Metrics(
        duration_s=duration,
        num_requests=len(requests),
        completed=int(completed.sum()),
        cancelled=ended[EndReason.CANCELLED],
        rejected=ended[EndReason.REJECTED],
        unfinished=ended[EndReason.UNFINISHED],
        total_input_tokens=num_input,
        total_output_tokens=num_output,
        request_throughput=rate(int(completed.sum())),
        output_throughput=rate(num_output),
        total_token_throughput=rate(num_input + num_output),
        request_goodput=None if slo is None else rate(int((done & times.keeps(slo)).sum())),
        ttft=distribution(times.ttft[times.served & counted]),
        tpot=distribution(times.tpot[(completed | cancelled) & (times.counts >= 2) & counted]),
        itl=distribution(times.gaps(counted), clusters=int(((times.counts >= 2) & counted).sum())),
        e2e=distribution(times.e2e[done & counted]),
        bubble=steps.bubble,
        mean_batch=steps.mean_batch,
        mean_kv_use=steps.mean_kv_use,
        peak_kv_use=steps.peak_kv_use,
        num_steps=len(record.steps),
        num_preemptions=sum(r.num_preemptions for r in requests),
        acceptance=accepted / drafted if drafted else None,
        accepted_length=1.0 + accepted / verifications if verifications else None,
        mean_step_s=steps.mean_step_s,
        where=split_time(record),
        ttft_growth_s=times.ttft_growth(),
        hung_up=int(gone.sum()),
        judged_ttft=times.judged_ttft(slo, gone, counted),
        saved_prefill_tokens=saved,
        hit_rate=saved / num_input if saved is not None and num_input else None,
        num_warmup=min(num_warmup, len(requests)),
    )


class _Times:
    """The requests' times as arrays; NaN where a request has no such time."""

    def __init__(self, requests: list[RequestRecord]) -> None:
        n = len(requests)
        self.arrival: FloatArray = np.array([r.arrival_s for r in requests], dtype=np.float64)
        self.counts: NDArray[np.int64] = np.array([len(r.token_times_s) for r in requests], dtype=np.int64)
        self.served: NDArray[np.bool_] = self.counts > 0
        total = int(self.counts.sum())
        tokens = np.fromiter(chain.from_iterable(r.token_times_s for r in requests), np.float64, total)
        ends = np.cumsum(self.counts)
        self._starts = (ends - self.counts)[self.served]
        self.first: FloatArray = np.full(n, np.nan)
        self.last: FloatArray = np.full(n, np.nan)
        self.first[self.served] = tokens[self._starts]
        self.last[self.served] = tokens[ends[self.served] - 1]
        self.ttft = self.first - self.arrival
        self.e2e = self.last - self.arrival
        self._waited = self.ttft
        self.tpot: FloatArray = np.full(n, np.nan)
        several = self.counts >= 2
        self.tpot[several] = (self.last - self.first)[several] / (self.counts[several] - 1)
        # One entry per token: the gap before it, and minus infinity before a request's first.
        self._gaps = np.diff(tokens, prepend=0.0)
        self._gaps[self._starts] = -np.inf

    def give_up(self, requests: list[RequestRecord], gone: NDArray[np.bool_]) -> None:
        """Who hangs up before the first token has waited until then."""
        self._waited = np.where(gone, [r.end_s - r.arrival_s for r in requests], self.ttft)

    def judged_ttft(
        self, slo: Slo | None, gone: NDArray[np.bool_], counted: NDArray[np.bool_]
    ) -> Distribution | None:
        limit_s = max((limit.limit_s for limit in slo or () if limit.metric == "ttft"), default=None)
        if limit_s is None or not (gone & counted).any():
            return None
        beyond = np.maximum(self._waited, np.nextafter(limit_s, np.inf))
        judged = np.where(gone, beyond, self.ttft)
        return distribution(judged[(self.served | gone) & counted])

    def ttft_growth(self) -> float | None:
        ordered = self._waited[np.argsort(self.arrival, kind="stable")]
        half = ordered.size // 2
        early, late = ordered[:half], ordered[ordered.size - half :]
        early, late = early[~np.isnan(early)], late[~np.isnan(late)]
        return float(late.mean() - early.mean()) if early.size and late.size else None

    def gaps(self, counted: NDArray[np.bool_]) -> FloatArray:
        """All gaps between the tokens of one of these requests, pooled."""
        inside = np.repeat(counted, self.counts)
        inside[self._starts] = False
        return self._gaps[inside]

    def keeps(self, slo: Slo) -> NDArray[np.bool_]:
        """Which requests' own latencies exceed no limit; as ``slo.request_meets``, for all at once."""
        values = {"ttft": self.ttft, "tpot": self.tpot, "e2e": self.e2e}
        good = np.ones(self.counts.size, dtype=bool)
        for limit in slo:
            if limit.metric == "itl" and "itl" not in values:
                values["itl"] = np.full(self.counts.size, np.nan)
                if self._starts.size:
                    values["itl"][self.served] = np.maximum.reduceat(self._gaps, self._starts)
            good &= ~(values[limit.metric] > limit.limit_s)
        return good


class _Steps:
    """Means over steps; None without steps, or without what they would be a share of."""

    def __init__(self, log: StepLog, num_blocks: int) -> None:
        self.bubble: float | None = None
        self.mean_batch: float | None = None
        self.mean_kv_use: float | None = None
        self.peak_kv_use: float | None = None
        self.mean_step_s: float | None = None
        if not len(log):
            return
        active = np.array(log.slots_active, dtype=np.float64)
        held = float(np.array(log.slots_held, dtype=np.float64).sum())
        self.bubble = 1.0 - (float(active.sum()) - sum(log.num_wasted)) / held if held else None
        self.mean_batch = float(active.mean())
        self.mean_step_s = float(np.mean(log.duration_s))
        if num_blocks:
            used = np.array(log.blocks_used, dtype=np.float64) / num_blocks
            self.mean_kv_use, self.peak_kv_use = float(used.mean()), float(used.max())


def to_vllm_keys(metrics: Metrics) -> dict[str, float | None]:
    """The metrics under the keys of the JSON that ``vllm bench serve`` saves; latencies in ms.

    None where there is too little evidence, or no SLO for a goodput. ``failed`` is every request
    that was not completed. vLLM also wrote goodput as ``request_goodput:``
    for a while, with a colon inside the name; that is not repeated here.
    """
    keys: dict[str, float | None] = {
        "duration": metrics.duration_s,
        "completed": metrics.completed,
        "failed": metrics.num_requests - metrics.completed,
        "total_input_tokens": metrics.total_input_tokens,
        "total_output_tokens": metrics.total_output_tokens,
        "request_throughput": metrics.request_throughput,
        "request_goodput": metrics.request_goodput,
        "output_throughput": metrics.output_throughput,
        "total_token_throughput": metrics.total_token_throughput,
    }
    for name, values in (
        ("ttft", metrics.ttft),
        ("tpot", metrics.tpot),
        ("itl", metrics.itl),
        ("e2el", metrics.e2e),
    ):
        keys[f"mean_{name}_ms"] = _ms(values.mean_s)
        keys[f"median_{name}_ms"] = _ms(values.p50.value_s)
        keys[f"std_{name}_ms"] = _ms(values.std_s)
        for statistic in ("p50", "p90", "p95", "p99"):
            keys[f"{statistic}_{name}_ms"] = _ms(values.statistic(statistic).value_s)
    return keys


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else seconds * 1000.0
