"""What a proposal by prompt lookup costs, whatever else waits.

    python benchmarks/ngram_lookup.py [--context 4096] [--sequences 32] [--rounds 200]

Each round every sequence gets a new token and proposes five. With random tokens no n-gram occurs twice, so
that the whole text is searched; with those of a few words the last ones stand a few tokens back. The worst
cases are texts that a search of bytes, or for a longer n-gram, goes through step by step; of them every
proposal is of the same text. The first proposal of a sequence, which makes characters of its packed prompt,
is told by itself. No proposal knows of a queue.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time

from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.ngram import NGram

NUM_DRAFTS = 5
# A beginning that is repeated to fill the context, and the end.
WORST: dict[str, tuple[list[int], list[int]]] = {
    "65536 ... 1 1": ([65536], [1, 1]),
    "256 ... 1 1": ([256], [1, 1]),
    "256 1 ... 1 0 1 0": ([256, 1], [1, 0, 1, 0]),
    "5 ... 7 5 5 5": ([5], [7, 5, 5, 5]),
    "9 5 5 5 ... 7 5 5 5": ([9, 5, 5, 5], [7, 5, 5, 5]),
}


def times_us(context: int, count: int, rounds: int, vocabulary: int) -> tuple[float, list[float]]:
    """Median of the first proposal of a sequence, and all later ones, per sequence."""
    draw, drafter = random.Random(0), NGram()
    sequences = [
        Sequence(Request(i, tuple(draw.randrange(vocabulary) for _ in range(context)), rounds))
        for i in range(count)
    ]
    first = [_timed(drafter, [sequence]) for sequence in sequences]
    later = []
    for _ in range(rounds):
        for sequence in sequences:
            sequence.output.append(draw.randrange(vocabulary))
        later.append(_timed(drafter, sequences) / count)
    return statistics.median(first), later


def worst_us(context: int, rounds: int, begin: list[int], end: list[int]) -> tuple[float, list[float]]:
    """As `times_us`, for one text."""
    prompt = (begin * context)[: context - len(end)] + end
    drafter, first = NGram(), []
    for _ in range(20):
        sequence = Sequence(Request(0, tuple(prompt), 1))
        first.append(_timed(drafter, [sequence]))
    return statistics.median(first), [_timed(drafter, [sequence]) for _ in range(rounds)]


def _timed(drafter: NGram, sequences: list[Sequence]) -> float:
    begin = time.perf_counter()
    drafter.propose([(sequence, NUM_DRAFTS) for sequence in sequences])
    return (time.perf_counter() - begin) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--sequences", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    options = parser.parse_args()
    for name, vocabulary in (("nothing found", 150_000), ("found nearby", 30)):
        show(name, options.context, *times_us(options.context, options.sequences, options.rounds, vocabulary))
    for name, (begin, end) in WORST.items():
        show(name, options.context, *worst_us(options.context, options.rounds, begin, end))


def show(name: str, context: int, first: float, later: list[float]) -> None:
    print(
        f"{context} tokens, {name}: median {statistics.median(later):.1f} us a sequence, "
        f"p99 {statistics.quantiles(later, n=100)[98]:.1f} us; the first {first:.0f} us"
    )


if __name__ == "__main__":
    main()
