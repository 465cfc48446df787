"""A device on paper: latency grows with the rate over a known capacity, and everything is counted."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from tunebatch.engine.records import EndReason, RequestRecord, RunRecord, StepLog
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.metrics import summarize
from tunebatch.measure.result import RunResult
from tunebatch.measure.slo import check, parse_slo

BASE_TTFT_S = 0.1
SLO = ("p90_ttft<=500ms", "p90_tpot<=40ms")
HEADROOM = 0.8  # of the saturated rate: 0.1 s / (1 - 0.8) is the limit of 0.5 s

SATURATED = {"sequential": 2.0, "static": 6.0, "dynamic": 8.0, "continuous": 20.0}
FASTER = {"prefix": 1.5, "ngram": 0.8, "draft": 1.1}  # by feature
BEST_BATCH = 12.0


def saturated_rate(strategy: Strategy) -> float:
    """Requests per second; falls off as the batch size leaves its best one."""
    batch = dict(strategy.knobs).get("max_batch_size", BEST_BATCH)
    features = math.prod(FASTER[feature] for feature in strategy.features)
    return SATURATED[strategy.policy] * features * math.exp(-(math.log2(batch / BEST_BATCH) ** 2) / 4.0)


def batch_of(strategy: Strategy) -> float:
    """The most sequences that it computes at a time."""
    return dict(strategy.knobs).get("max_batch_size", 1)


def true_capacity(strategy: Strategy) -> float:
    return HEADROOM * saturated_rate(strategy)


def result(
    strategy: Strategy,
    rate: float | None,
    seed: int,
    *,
    saturated: float,
    num_requests: int = 70,
    slo: tuple[str, ...] = SLO,
) -> RunResult:
    load = math.inf if rate is None else rate / saturated
    ttft = BASE_TTFT_S / (1.0 - load) if load < 0.999 else 100.0
    gap = 1.0 / saturated if rate is None else 1.0 / rate
    records = []
    for i in range(num_requests):
        arrival = 0.0 if rate is None else i * gap
        first = i * gap if rate is None else arrival + ttft
        records.append(
            RequestRecord(
                id=i,
                arrival_s=arrival,
                num_prompt_tokens=10,
                max_tokens=3,
                first_scheduled_s=arrival,
                token_times_s=[first, first + 0.01, first + 0.02],
                output=[1, 2, 3],
                end_s=first + 0.02,
                end_reason=EndReason.LENGTH,
            )
        )
    limits = parse_slo(slo) if slo else None
    metrics = summarize(RunRecord(records, StepLog()), limits)
    return RunResult(
        strategy=strategy.name,
        knobs=dict(strategy.knobs),
        workload={"rate_per_s": rate, "seed": seed, "num_requests": num_requests},
        model={"name": "paper"},
        environment={},
        slo=list(slo),
        metrics=metrics,
        verdict=check(metrics, limits) if limits is not None else None,
    )


@dataclass
class Device:
    """Measures, and remembers what it was asked.

    Attributes:
        wobble: Relative change of the capacity with the seed.
        before: Called before each run with its strategy; may raise.
        hopeless: Which strategies, on which seed, miss the SLO at every rate.
    """

    num_requests: int = 70
    slo: tuple[str, ...] = SLO
    wobble: float = 0.0
    before: Callable[[Strategy], None] = lambda strategy: None
    hopeless: Callable[[Strategy, int], bool] = lambda strategy, seed: False
    asked: list[tuple[str, float | None, int]] = field(default_factory=list)

    def __call__(
        self,
        strategy: Strategy,
        rate: float | None,
        seed: int,
        *,
        stop_early: bool = False,
        least_s: float = 0.0,
        glimpse_s: float | None = None,
    ) -> RunResult:
        self.before(strategy)
        self.asked.append((strategy.label, rate, seed))
        factor = 1.0 + self.wobble * math.sin(7.0 * seed + saturated_rate(strategy))
        saturated = saturated_rate(strategy) * factor
        if rate is not None and self.hopeless(strategy, seed):
            saturated = rate
        return result(
            strategy,
            rate,
            seed,
            saturated=saturated,
            num_requests=self.num_requests,
            slo=self.slo,
        )
