"""What adaptive batching gains and loses against fixed mixed steps, in virtual time; all of it predicted.

    python benchmarks/load_step.py [--seed 0]

A step takes what a formula says (about an 8B model on a large GPU), so the numbers compare schedulers and say
nothing about any machine. Each scenario offers the same requests to every configuration. Answers end where
they end: a policy sees `max_tokens` only, which is the same for all. Goodput counts requests that keep the
limits on TTFT and TPOT.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

from tunebatch.bench import latency_limits
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.strategies import Strategy, strategy
from tunebatch.measure.limits import Slo, parse_slo
from tunebatch.measure.metrics import Metrics, summarize

MAX_TOKENS = 512
EOS, TOKEN = 0, 1


@dataclass(frozen=True, slots=True)
class Phase:
    """Poisson arrivals for a while; lengths are exponential around their means, as far as they fit."""

    seconds: float
    rate_per_s: float
    prompt_tokens: int = 300
    output_tokens: int = 120


@dataclass(frozen=True, slots=True)
class Scenario:
    """Traffic, the limits that it is judged by, and the KV cache in tokens."""

    name: str
    phases: tuple[Phase, ...]
    slo: Slo
    kv_tokens: int = 200_000


def slo(ttft: str, tpot: str) -> Slo:
    """Limits on the p90 of both."""
    return parse_slo([f"p90_ttft<={ttft}", f"p90_tpot<={tpot}"])


_BURST, _LULL = Phase(1.0, 80.0), Phase(6.0, 0.5)
SCENARIOS = (
    Scenario("load 6 -> 30 -> 6 req/s", (Phase(30, 6), Phase(30, 30), Phase(30, 6)), slo("2s", "15ms")),
    Scenario(
        "prompts of 300 -> 4,000 -> 300 tokens",
        (Phase(30, 6), Phase(30, 5, 4000, 100), Phase(30, 6)),
        slo("2s", "15ms"),
    ),
    Scenario(
        "prompts of 16 tokens, 5 -> 60 -> 5 req/s",
        (Phase(30, 5, 16, 150), Phase(20, 60, 16, 150), Phase(30, 5, 16, 150)),
        slo("10s", "12ms"),
    ),
    Scenario("bursts of 80 requests", (_BURST, _LULL) * 12, slo("500ms", "25ms")),
    Scenario(
        "answers of 60 -> 200 tokens, 12,000 tokens of KV cache",
        (Phase(20, 6, 300, 60), Phase(40, 12, 300, 200)),
        slo("5s", "25ms"),
        12_000,
    ),
    Scenario("light load, 6 req/s", (Phase(90, 6),), slo("500ms", "25ms")),
    Scenario("100 req/s for 10 s", (Phase(10, 100),), parse_slo([])),
)

CONFIGURATIONS = (
    strategy("mixed", {"max_batch_size": 32}),
    strategy("mixed", {"max_batch_size": 128}),
    strategy("mixed", {"max_batch_size": 128, "chunk_size": 2048}),
    strategy("mixed", {"max_batch_size": 128, "chunk_size": "auto"}),
    strategy("adaptive", {"max_batch_size": 128}),
)


class FormulaExecutor:
    """Ends each answer where it ends, after a time that depends on what the step computes."""

    block_size = 16
    max_slots = 256
    max_context = 8192
    eos_token_ids = frozenset({EOS})
    drafter = None

    def __init__(self, kv_tokens: int, lengths: dict[int, int], seed: int) -> None:
        self.num_blocks = kv_tokens // self.block_size
        self._lengths = lengths
        self._noise = random.Random(seed)

    def execute(self, plan: StepPlan) -> StepOutput:
        decodes = [] if plan.decodes is None else plan.decodes.members
        context = plan.decodes.context_sum if plan.decodes is not None else 0
        seconds = 6e-3 + 6e-5 * len(decodes) + 1.5e-7 * context + 3e-5 * plan.num_slice_tokens
        tokens = [[self._next(piece.sequence)] if piece.sample else [] for piece in plan.slices]
        seconds *= self._noise.lognormvariate(0.0, 0.05)
        return StepOutput(tokens, [self._next(member) for member in decodes], seconds)

    def _next(self, sequence: Sequence) -> int:
        return EOS if len(sequence.output) + 1 >= self._lengths[sequence.id] else TOKEN

    def reset(self) -> None:
        pass


class Arrivals:
    """Requests in the order in which they arrive."""

    def __init__(self, requests: SequenceOf[Request]) -> None:
        self._requests = requests
        self._next = 0

    def next_arrival_s(self) -> float | None:
        return self._requests[self._next].arrival_s if self._next < len(self._requests) else None

    def take(self, now_s: float) -> list[Request]:
        first = self._next
        while self._next < len(self._requests) and self._requests[self._next].arrival_s <= now_s:
            self._next += 1
        return list(self._requests[first : self._next])

    def finished(self, record: RequestRecord, now_s: float) -> None:
        pass


def traffic(scenario: Scenario, seed: int) -> tuple[list[Request], dict[int, int]]:
    """Requests, and where each answer ends."""
    draw = random.Random(seed)
    requests: list[Request] = []
    lengths: dict[int, int] = {}
    began_s = 0.0
    for phase in scenario.phases:
        now_s = began_s + draw.expovariate(phase.rate_per_s)
        while now_s < began_s + phase.seconds:
            prompt = min(1 + int(draw.expovariate(1.0 / phase.prompt_tokens)), 6000)
            lengths[len(requests)] = min(1 + int(draw.expovariate(1.0 / phase.output_tokens)), MAX_TOKENS)
            requests.append(Request(len(requests), (TOKEN,) * prompt, MAX_TOKENS, now_s))
            now_s += draw.expovariate(phase.rate_per_s)
        began_s += phase.seconds
    return requests, lengths


def serve(scenario: Scenario, chosen: Strategy, seed: int) -> Metrics:
    """One run in virtual time."""
    requests, lengths = traffic(scenario, seed)
    executor = FormulaExecutor(scenario.kv_tokens, lengths, seed)
    policy = chosen.make_policy(latency_limits(scenario.slo))
    run = Engine(executor, policy, Arrivals(requests), VirtualClock()).run()
    return summarize(run, scenario.slo if scenario.slo.limits else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    print("predicted, in virtual time; nothing was measured")
    for scenario in SCENARIOS:
        limits = ", ".join(scenario.slo.texts()) or "no SLO"
        print(f"\n{scenario.name} ({limits})")
        print(f"  {'':38} goodput/s  req/s   p90 TTFT  p90 TPOT  batch  preempted")
        for chosen in CONFIGURATIONS:
            _show(chosen, serve(scenario, chosen, args.seed))


def _show(chosen: Strategy, found: Metrics) -> None:
    ttft, tpot = (found.distribution(name).statistic("p90").value_s or 0.0 for name in ("ttft", "tpot"))
    knobs = chosen.shown_knobs
    name = f"{chosen.name}, batch {knobs['max_batch_size']}, chunk {knobs.get('chunk_size', 'auto')}"
    goodput = "-" if found.request_goodput is None else f"{found.request_goodput:.2f}"
    print(
        f"  {name:38} {goodput:>9} {found.request_throughput:6.2f} {ttft * 1e3:7.0f} ms "
        f"{tpot * 1e3:6.1f} ms {found.mean_batch:6.1f} {found.num_preemptions:10}"
    )


if __name__ == "__main__":
    main()
