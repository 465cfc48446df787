"""What all claims are measured with: one executor, traffic for it, and sides that take turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from claimed.claim import Figure
from tunebatch.bench import measure
from tunebatch.engine.records import RunRecord
from tunebatch.engine.strategies import Strategy
from tunebatch.measure.limits import MetricName, Slo, StatisticName
from tunebatch.measure.result import RunResult
from tunebatch.workload.named import scaled_to
from tunebatch.workload.prompts import PromptSource
from tunebatch.workload.spec import Workload, WorkloadSpec, build

Turns = Mapping[str, list[RunResult]]
Number = Callable[[RunResult], float]
DISTURBED = 0.1  # of the cores that others have
ATTEMPTS = 3


@dataclass(frozen=True, slots=True)
class Side:
    """One of those that take turns.

    Attributes:
        glimpse_s: End a run after so many seconds; enough to tell a rate.
        num_blocks: Of the KV cache; None: all there are.
        executor: Another model than the bundled one.
    """

    workload: Workload
    strategy: Strategy
    slo: Slo | None = None
    glimpse_s: float | None = None
    num_blocks: int | None = None
    executor: Any = None


@dataclass
class Bench:
    """Measures.

    Attributes:
        rounds: Turns of each side.
        say: Told what happens.
        foreign_cpu_shares: Of all runs so far.
        known: Runs that several claims look at, by name.
    """

    executor: Any
    prompts: PromptSource
    rounds: int = 2
    say: Callable[[str], None] = print
    foreign_cpu_shares: list[float] = field(default_factory=list)
    known: dict[str, Turns] = field(default_factory=dict)

    def workload(self, spec: WorkloadSpec, num_requests: int, executor: Any = None) -> Workload:
        """So many requests of the traffic, scaled to the model."""
        on = executor or self.executor
        tokens = on.num_blocks * on.block_size
        wanted = scaled_to(replace(spec, num_requests=num_requests), on.max_context, tokens)
        return build(
            wanted,
            self.prompts,
            on.max_context,
            kv_tokens=tokens,
            block_size=on.block_size,
            vocab_size=on.vocab_size,
        )

    def turns(self, sides: Mapping[str, Side]) -> Turns:
        """Every side once a round, in an order that turns around from round to round (ABBA), so that a
        machine that grows slower or faster does so for all."""
        results: dict[str, list[RunResult]] = {name: [] for name in sides}
        for turn in range(self.rounds):
            for name in list(sides) if turn % 2 == 0 else reversed(sides):
                results[name].append(self.run(sides[name]))
        return results

    def run(self, side: Side) -> RunResult:
        """Serve the side's traffic once; again where others disturbed it, and the quietest run counts."""
        tries = [self._serve(side)]
        while _foreign(tries[-1]) > DISTURBED and len(tries) < ATTEMPTS:
            self.say(f"others used {_foreign(tries[-1]):.0%} of the cores; once more")
            tries.append(self._serve(side))
        quietest = min(tries, key=_foreign)
        self.foreign_cpu_shares.append(_foreign(quietest))
        return quietest

    def _serve(self, side: Side) -> RunResult:
        """Of a smaller KV cache the rest of the pool stays unused."""
        on = side.executor or self.executor
        all_blocks = on.num_blocks
        on.num_blocks = side.num_blocks or all_blocks
        try:
            return measure(side.workload, side.strategy, on, slo=side.slo, glimpse_s=side.glimpse_s)
        finally:
            on.num_blocks = all_blocks


def _foreign(result: RunResult) -> float:
    """Share of the cores that others had; 0 where the system does not tell."""
    return float(result.environment.get("foreign_cpu_share") or 0.0)


def output_rate(result: RunResult) -> float:
    """Output tokens per second."""
    return result.metrics.output_throughput


def request_rate(result: RunResult) -> float:
    return result.metrics.request_throughput


def slot_use(result: RunResult) -> float:
    """Share of the held slot-steps that computed something: 1 - bubble."""
    return 1.0 - (result.metrics.bubble or 0.0)


def latency_s(metric: MetricName, statistic: StatisticName) -> Number:
    """A latency of runs that have the requests for it."""

    def of(result: RunResult) -> float:
        value_s = result.metrics.distribution(metric).statistic(statistic).value_s
        assert value_s is not None, f"too few requests for {statistic} {metric}"
        return value_s

    return of


def ratios(turns: Turns, side: str, base: str, of: Number = output_rate) -> Figure:
    """A number of one side over that of another, round by round."""
    return Figure(tuple(of(ours) / of(theirs) for ours, theirs in zip(turns[side], turns[base], strict=True)))


def middle(results: Sequence[RunResult], of: Number) -> float:
    """The median over the rounds."""
    return statistics.median(map(of, results))


def tokens_per_s(results: Sequence[RunResult]) -> str:
    return f"{middle(results, output_rate):,.0f}"


def record_of(result: RunResult) -> RunRecord:
    assert result.record is not None, "a run that was just measured has its records"
    return result.record


def decode_step_s(results: Sequence[RunResult], low: int, high: int) -> float:
    """Median of the steps that decode ``low`` to ``high`` sequences and compute nothing else."""
    found: list[float] = []
    for result in results:
        steps = record_of(result).steps
        rows = zip(steps.duration_s, steps.num_decodes, steps.slots_active, strict=True)
        found += [took for took, decodes, active in rows if decodes == active and low <= decodes <= high]
    return statistics.median(found) if found else float("nan")


def ms(seconds: float) -> str:
    """``4.21 ms``, ``1,510 ms``."""
    return f"{1e3 * seconds:.3g} ms" if seconds < 1 else f"{1e3 * seconds:,.0f} ms"
