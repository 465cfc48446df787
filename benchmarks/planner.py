"""What a step costs without a model: planning and bookkeeping, with a short queue and a long one.

    python benchmarks/planner.py [--strategy continuous ...] [--running 256] [--waiting 100 10000]
                                 [--steps 2000] [--rounds 5] [--full-cache]
    python benchmarks/planner.py --strategy continuous+prefix continuous+ngram

A strategy in a steady state: all batch slots are taken, and whoever ends is replaced by the oldest of the
queue, which is topped up. The executor computes nothing, and says what a GPU would have taken, for those
strategies that learn from it. A step should cost what changes and what runs, never what waits, so the ratio
of the medians should be near 1: it is told, and whether all are within a tenth. The queues take turns, round
by round, so that a change of the machine's speed meets both. `mixed-auto` is mixed with an automatic chunk
size. With --full-cache the KV cache holds half of what the batch may need, so that it is blocks that requests
wait for.

Features are added to a strategy with `+`. With `prefix` prompts begin with one of eight texts and go on by
themselves. With `ngram` four tokens are drafted each step, and half of those that are found are accepted; the
answers go round in circles, so that most are found. (With `draft` a model would draft.)
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import time
from collections.abc import Sequence as SequenceOf

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import VirtualClock
from tunebatch.engine.knobs import NUM_DRAFTS
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import RequestRecord
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import STRATEGIES, Strategy, StrategyError, canonical, knobs_of, strategy

BLOCK_SIZE = 16
PROMPT_TOKENS, OUTPUT_TOKENS = (32, 512), (16, 512)
VOCABULARY = range(1, 32_000)
NUM_BEGINNINGS = 8
FLAT = 1.1  # times the median with the shortest queue


class NullExecutor:
    """Answers at once with a token that ends nothing, and accepts every other draft."""

    block_size = BLOCK_SIZE
    max_context = 2048
    eos_token_ids = frozenset({0})
    drafter = None

    def __init__(self, max_slots: int, full_cache: bool) -> None:
        self.max_slots = max_slots
        self.num_blocks = max_slots * (PROMPT_TOKENS[1] + OUTPUT_TOKENS[1]) // BLOCK_SIZE
        if full_cache:
            self.num_blocks = max_slots * (sum(PROMPT_TOKENS) + sum(OUTPUT_TOKENS)) // 4 // BLOCK_SIZE
        self._tokens = [1] * max_slots

    def execute(self, plan: StepPlan) -> StepOutput:
        duration_s = 5e-3 + 2e-5 * plan.num_decodes + 2e-5 * plan.num_slice_tokens
        tokens = [(1,) * (1 + len(piece.draft_tokens) // 2) for piece in plan.slices]
        return StepOutput(tokens, self._tokens[: plan.num_decodes], duration_s)

    def reset(self) -> None:
        pass


class FullQueue:
    """Keeps the number of requests in the system at ``num_present``."""

    def __init__(self, num_present: int, num_total: int) -> None:
        draw = random.Random(0)
        texts = [tuple(draw.choices(VOCABULARY, k=PROMPT_TOKENS[1])) for _ in range(NUM_BEGINNINGS)]
        # Made beforehand, so that no step pays for it.
        self._requests = [
            Request(i, _prompt(draw, texts), draw.randint(*OUTPUT_TOKENS)) for i in range(num_total)
        ]
        self._taken = 0
        self._missing = num_present

    def next_arrival_s(self) -> float | None:
        return 0.0

    def take(self, now_s: float) -> list[Request]:
        first, self._taken, self._missing = self._taken, self._taken + self._missing, 0
        return self._requests[first : self._taken]

    def finished(self, record: RequestRecord, now_s: float) -> None:
        self._missing += 1


def _prompt(draw: random.Random, texts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """Half of it is the beginning of a text that others share, the rest its own."""
    size = draw.randint(*PROMPT_TOKENS)
    own = draw.randrange(len(texts[0]) - size + 1)
    return draw.choice(texts)[: size // 2] + draw.choice(texts)[own : own + size - size // 2]


def configured(name: str, running: int) -> Strategy:
    """A strategy whose batch may be ``running``, with room for them in every step."""
    wanted = {
        "max_batch_size": running,
        "min_batch_size": running,
        "chunk_size": 0 if name.startswith("mixed-auto") else 2048,
        NUM_DRAFTS.name: 4,
    }
    name = canonical(name.replace("-auto", ""))
    return strategy(name, {knob.name: wanted[knob.name] for knob in knobs_of(name) if knob.name in wanted})


def step_times_us(
    chosen: Strategy, running: int, waiting: int, steps: int, full_cache: bool
) -> tuple[list[float], float]:
    """Wall time of each of ``steps`` engine steps after a warm-up as long as the longest answer, and how many
    sequences ran on average."""
    warm_up = 2 * OUTPUT_TOKENS[1]
    source = FullQueue(running + waiting, running * (steps + warm_up) // OUTPUT_TOKENS[0] + running + waiting)
    executor = NullExecutor(running, full_cache)
    engine = engine_for(chosen, executor, source, VirtualClock())
    for _ in range(warm_up):
        engine.step()
    gc.collect()
    gc.freeze()
    times: list[float] = []
    ran = 0
    for _ in range(steps):
        start_ns = time.perf_counter_ns()
        engine.step()
        times.append((time.perf_counter_ns() - start_ns) * 1e-3)
        ran += len(engine.queues.running)
    gc.unfreeze()
    assert len(engine.queues.waiting) >= waiting, "the queue was not as long as asked for"
    return times, ran / steps


def p99(times: SequenceOf[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument(
        "--strategy",
        nargs="+",
        default=["continuous"],
        help=f"{', '.join(STRATEGIES)} or mixed-auto, with +prefix and +ngram as wanted",
    )
    parser.add_argument("--full-cache", action="store_true")
    parser.add_argument("--running", type=int, default=256)
    parser.add_argument("--waiting", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()
    try:
        strategies = [configured(name, args.running) for name in args.strategy]
    except StrategyError as error:
        parser.error(str(error))
    for chosen in strategies:
        show(chosen, args)


def show(chosen: Strategy, args: argparse.Namespace) -> None:
    """Measure one strategy with every queue, and print a line for each."""
    times: dict[int, list[float]] = {waiting: [] for waiting in args.waiting}
    ran: list[float] = []
    for _ in range(args.rounds):
        for waiting, collected in times.items():
            found, mean = step_times_us(chosen, args.running, waiting, args.steps, args.full_cache)
            collected += found
            ran.append(mean)
    print(f"{chosen.label}: {statistics.mean(ran):.0f} running")
    first = times[args.waiting[0]]
    medians = [statistics.median(collected) for collected in times.values()]
    for waiting, collected in times.items():
        print(
            f"  {waiting:6d} waiting: "
            f"median {statistics.median(collected):7.1f} us, p99 {p99(collected):7.1f} us per step "
            f"({len(collected)} steps; {statistics.median(collected) / statistics.median(first):.2f}x, "
            f"p99 {p99(collected) / p99(first):.2f}x)"
        )
    flat = max(medians) <= FLAT * min(medians)
    print(f"  {'flat' if flat else 'NOT flat'} in the number waiting")


if __name__ == "__main__":
    main()
