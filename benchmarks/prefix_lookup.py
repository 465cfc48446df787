"""What prefix caching costs a step while the oldest request waits: looking up a prompt that is all cached.

    python benchmarks/prefix_lookup.py [--tokens 2048] [--waiting 100 10000] [--cached 4096 65536]

`lookup` is what a policy asks before it admits: how many tokens the request would compute; `first` is a
request's first, which also cuts its tokens into blocks. `blocked admit` is a lookup that finds no blocks
left, as every step does while the oldest request waits for some. All should be flat in the number of waiting
requests and of cached blocks. The settings take turns, round by round, so that a change of the machine's
speed meets all.
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable

from tunebatch.engine.queues import Queues
from tunebatch.engine.records import EndReason
from tunebatch.engine.request import Request

BLOCK_SIZE = 16
VOCABULARY = 32_000
CALLS = 200


def filled(num_tokens: int, waiting: int, cached: int) -> Queues:
    """Queues whose cache holds ``cached`` blocks of prompts, the oldest waiting one's among them, and whose
    every block is owned."""
    draw = random.Random(0)
    queues = Queues(cached + 1, BLOCK_SIZE, num_slots=8, max_context=2 * num_tokens, prefix_caching=True)
    per_prompt = num_tokens // BLOCK_SIZE
    prompt: tuple[int, ...] = ()
    for number in range(cached // per_prompt):
        prompt = tuple(draw.choices(range(VOCABULARY), k=num_tokens))
        queues.add(Request(number, prompt, 1), 0.0)
        assert queues.admit(0.0)
        sequence = queues.running[number]
        sequence.num_computed = num_tokens
        queues.finish(sequence, EndReason.LENGTH, 0.0)
    for block in list(queues.kv.idle):
        queues.kv.share(block)
    queues.kv.allocate(queues.kv.num_free)
    for number in range(waiting):
        queues.add(Request(cached + number, (*prompt, number), 1), 0.0)
    return queues


def median_us(call: Callable[[], object]) -> float:
    times: list[float] = []
    for _ in range(CALLS):
        start_ns = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start_ns) * 1e-3)
    return statistics.median(times)


def first_us(queues: Queues) -> float:
    times: list[float] = []
    for sequence in queues.waiting.values():
        start_ns = time.perf_counter_ns()
        queues.num_to_compute(sequence)
        times.append((time.perf_counter_ns() - start_ns) * 1e-3)
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--waiting", type=int, nargs="+", default=[100, 10_000])
    parser.add_argument("--cached", type=int, nargs="+", default=[4096, 65_536])
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    settings = list(itertools.product(args.waiting, args.cached))
    queues = {setting: filled(args.tokens, *setting) for setting in settings}
    first = {setting: first_us(these) for setting, these in queues.items()}
    lookups: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    blocked: dict[tuple[int, int], list[float]] = {setting: [] for setting in settings}
    for _ in range(args.rounds):
        for setting, these in queues.items():
            oldest = these.oldest_waiting
            assert oldest is not None and these.num_to_compute(oldest) == 1 and not these.admit(0.0)
            lookups[setting].append(median_us(lambda these=these, one=oldest: these.num_to_compute(one)))  # type: ignore[misc]
            blocked[setting].append(median_us(lambda these=these: these.admit(0.0)))  # type: ignore[misc]
    for waiting, cached in settings:
        print(
            f"{args.tokens} tokens, {waiting:6d} waiting, {cached:6d} blocks cached: "
            f"first {first[waiting, cached]:5.1f} us, "
            f"lookup {statistics.median(lookups[waiting, cached]):5.1f} us, "
            f"blocked admit {statistics.median(blocked[waiting, cached]):5.1f} us"
        )


if __name__ == "__main__":
    main()
