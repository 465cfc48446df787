"""How many tokens to draft: a number, or what the run itself shows to pay."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Protocol

# Batches of like size share what was measured: 1, 2-3, 4-7, 8-15, ...
_RECENT = 7  # steps whose median is what a depth costs now; contexts grow
_TRIES = 3  # steps of each depth at first: one may have computed whole prompts too
_LOOK_AGAIN = 32  # steps until another depth than the best is tried
_PROBES = (0, 3)  # depths that are tried first; a line through both tells of the others
_CLEARLY = 1.03  # times more tokens per second, or the deeper draft is not worth its noise
_KEPT = 0.98  # of what was counted, at each verification: about the last 50 steps decide
_GUESSED_STEP = 0.2  # of a plain step that a draft adds, before anything was measured
_GUESS, _PRIOR = 0.6, 4  # acceptance before anything was measured, and verifications that it counts as


class Depth(Protocol):
    """Chooses how many tokens each sequence of a step drafts."""

    def choose(self, batch: int) -> int:
        """Draft tokens per sequence for ``batch`` decoding sequences; 0 for a plain step."""
        ...

    def took(self, batch: int, depth: int, duration_s: float) -> None:
        """A step of decodes alone took so long, drafting and planning included."""
        ...

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None:
        """Of ``batch`` sequences that were asked for ``depth`` drafts, some had so many accepted."""
        ...

    def table(self) -> list[tuple[int, int, int]]:
        """``(smallest batch, largest batch, depth)``: ranges in order, from 1 on and without gaps.

        As lists these are what vLLM takes as ``num_speculative_tokens_per_batch_size``. Empty where nothing
        was learnt.
        """
        ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always the same number."""

    depth: int

    def choose(self, batch: int) -> int:
        return self.depth

    def took(self, batch: int, depth: int, duration_s: float) -> None: ...

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None: ...

    def table(self) -> list[tuple[int, int, int]]:
        return []


@dataclass(slots=True)
class _Bucket:
    """What is known of batches of like size."""

    costs: defaultdict[int, deque[float]] = field(
        default_factory=lambda: defaultdict(lambda: deque(maxlen=_RECENT))
    )
    tries: defaultdict[int, int] = field(default_factory=lambda: defaultdict(int))
    visits: int = 0
    smallest: int = 1 << 30
    largest: int = 0


class Auto:
    """The depth with the most tokens per second, by batch size, down to 0.

    Tokens per step follow from how often each position was accepted of late, over all batch sizes; seconds
    per step from the steps of like batches, with a straight line between the depths that were tried. As
    TurboSpec (Liu et al., 2024) and vLLM's tables of depth by batch size; but what they profile beforehand is
    learnt from the run, with one step in 32 to look again.

    Args:
        most: Largest depth.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._probes = tuple(min(depth, most) for depth in _PROBES)
        self._buckets: defaultdict[int, _Bucket] = defaultdict(_Bucket)
        self._reached = [0.0] * most
        self._accepted = [0.0] * most

    def choose(self, batch: int) -> int:
        bucket = self._buckets[batch.bit_length()]
        bucket.visits += 1
        bucket.smallest, bucket.largest = min(bucket.smallest, batch), max(bucket.largest, batch)
        for depth in self._probes:
            if bucket.tries[depth] < _TRIES:
                break
        else:
            depth = self._best(bucket)
            if bucket.visits % _LOOK_AGAIN == 0:
                turn = bucket.visits // _LOOK_AGAIN % 4
                depth = min(max((depth + 1, depth - 1, depth + 2, 0)[turn], 0), self._most)
        bucket.tries[depth] += 1
        return depth

    def took(self, batch: int, depth: int, duration_s: float) -> None:
        self._buckets[batch.bit_length()].costs[depth].append(duration_s)

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None:
        reached = batch
        for position in range(depth):
            self._reached[position] = _KEPT * self._reached[position] + reached
            reached = sum(count > position for count in accepted)
            self._accepted[position] = _KEPT * self._accepted[position] + reached

    def table(self) -> list[tuple[int, int, int]]:
        # A size that was never seen is like the nearest that was; of two equally near the larger, which
        # drafts less.
        rows: list[tuple[int, int, int]] = []
        seen = 0
        for _, bucket in sorted(self._buckets.items()):
            depth = self._best(bucket)
            first = (seen + bucket.smallest + 1) // 2 if rows else 1
            if rows and rows[-1][2] == depth:
                first = rows.pop()[0]
            elif rows:
                rows[-1] = (rows[-1][0], first - 1, rows[-1][2])
            rows.append((first, bucket.largest, depth))
            seen = bucket.largest
        return rows

    def _costs(self, bucket: _Bucket) -> Mapping[int, deque[float]]:
        """Of batches of like size; where every step computed prompts too, of those nearest in size."""
        measured = [other for other in self._buckets.values() if len(other.costs) > 1]
        if len(bucket.costs) > 1 or not measured:
            return bucket.costs
        return min(measured, key=lambda other: abs(other.largest - bucket.largest)).costs

    def _best(self, bucket: _Bucket) -> int:
        known = sorted((depth, median(times)) for depth, times in self._costs(bucket).items())
        rates, tokens, accepted, all_accepted = [1.0 / _cost(known, 0)], 1.0, _GUESS, 1.0
        for position in range(self._most):
            # A position that was seldom reached is guessed to be like the one before it.
            seen = self._accepted[position] + _PRIOR * accepted
            accepted = seen / (self._reached[position] + _PRIOR)
            all_accepted *= accepted
            tokens += all_accepted
            rates.append(tokens / _cost(known, position + 1))
        enough = max(rates) / _CLEARLY
        return next(depth for depth, rate in enumerate(rates) if rate >= enough)


def _cost(known: list[tuple[int, float]], depth: int) -> float:
    """Seconds of a step, on the straight line through the two measured depths that are nearest."""
    if len(known) < 2:
        return (known[0][1] if known else 1.0) * (1.0 + _GUESSED_STEP * depth)
    upper = next((i for i, (at, _) in enumerate(known) if at >= depth), len(known) - 1)
    (a, cost_a), (b, cost_b) = known[max(upper, 1) - 1], known[max(upper, 1)]
    # Noise may make more drafts seem cheaper; a line that falls would reward any depth. Nor does it fall
    # to nothing below the first measured depth: a step costs at least its share of the tokens computed.
    on_line = cost_a + max(cost_b - cost_a, 0.0) * (depth - a) / (b - a)
    return max(on_line, cost_a * min(1.0, (1 + depth) / (1 + a)))
