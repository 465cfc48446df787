"""How many tokens to draft: a number, or what the run itself shows to pay."""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Protocol

# Batches of like size share what was measured: 1, 2-3, 4-7, 8-15, ...
_RECENT = 16  # steps whose mean is what a depth costs now; contexts grow
_OUTLIER = 3.0  # times the median, as which any longer step counts
_FIRST_DEPTH = 5  # that is tried first, with one sequence; one less for each doubling of the batch
_COLD = 4  # steps of a run that are not measured: caches, clocks and kernels settle
_RUN = 3  # steps of a try; a kind's first step is not measured
# Plain steps before drafts are tried: the larger the batch, the less drafts promise and the more a try costs.
_LEAST_PLAIN, _PLAIN_PER_SEQUENCE, _MOST_PLAIN = 8, 8, 32
_LOOK_SHARE = 0.01  # of the time may be lost by trying again what is thought to be worse
_LOOK_AGAIN = 32  # steps at least from one such try to the next
# Times the tokens per second of plain steps: what drafts must promise to begin, and to go on. No step
# shows all they cost: who drafts again catches up first, and requests that end one by one are followed by
# others one by one.
_BEGIN, _GO_ON = 1.1, 1.03
_ALIKE = 1.02  # times the tokens per second, or the deeper draft is not worth its noise
_KEPT = 0.995  # of what was counted, at each verification: about the last 200 decide
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


def _recent() -> deque[float]:
    return deque(maxlen=_RECENT)


@dataclass(slots=True)
class _Bucket:
    """What is known of batches of like size: seconds of steps by depth, where depth 0 is a plain step."""

    times_s: defaultdict[int, deque[float]] = field(default_factory=lambda: defaultdict(_recent))
    means_s: dict[int, float] = field(default_factory=dict)
    drafts: bool = False
    visits: int = 0
    smallest: int = 1 << 30
    largest: int = 0

    @property
    def is_known(self) -> bool:
        return len(self.means_s) > 1 and 0 in self.means_s

    def add(self, depth: int, duration_s: float) -> None:
        """Another step was made. Catching up with new prompts counts, an accident hardly."""
        times_s = self.times_s[depth]
        times_s.append(duration_s)
        limit_s = _OUTLIER * median(times_s)
        self.means_s[depth] = fmean([min(time_s, limit_s) for time_s in times_s])

    def costs_s(self, most: int) -> list[float]:
        """Seconds of a step of each depth up to ``most``; a guess where nothing was measured."""
        means_s = self.means_s
        if 0 in means_s:
            plain_s = means_s[0]
        else:
            depth, mean_s = next(iter(means_s.items()), (0, 1.0))
            plain_s = mean_s / (1.0 + _GUESSED_STEP * depth)
        # A plain step is nearly where the line begins, which tells its slope while there is one depth.
        points = [(0, plain_s, 1)]
        points += [(depth, mean_s, len(self.times_s[depth])) for depth, mean_s in means_s.items() if depth]
        weight = sum([count for _, _, count in points])
        mid_depth = sum([depth * count for depth, _, count in points]) / weight
        mid_s = sum([mean_s * count for _, mean_s, count in points]) / weight
        slope_s = _GUESSED_STEP * plain_s
        if len(points) > 1:
            slope_s = sum([count * (depth - mid_depth) * (at_s - mid_s) for depth, at_s, count in points])
            slope_s /= sum([count * (depth - mid_depth) ** 2 for depth, _, count in points])
        # Noise may make more drafts seem cheaper; a line that falls would reward any depth.
        slope_s = max(slope_s, 0.0)
        drafting_s = [mid_s + slope_s * (depth - mid_depth) for depth in range(1, most + 1)]
        return [plain_s, *(max(cost_s, plain_s) for cost_s in drafting_s)]


class Auto:
    """The depth with the most tokens per second, by batch size, down to 0.

    Tokens per step follow from how often each position was accepted of late, over all batch sizes. Seconds
    per step follow from the steps of like batches: those of plain steps, and a straight line through those of
    all depths, as each draft adds a pass of the drafter and a row to verify. As TurboSpec (Liu et al., 2024)
    and vLLM's tables of depth by batch size; but what they profile beforehand is learnt from the run.

    Steps of a kind are tried in a row, as the first is not like those that follow: a drafter has to catch up
    with the tokens of plain steps, and a batch that drafted is packed anew. Once a size of batch is known,
    others begin with what is best there. What is thought to be worse is tried again as often as loses 1 % of
    the time.

    Args:
        most: Largest depth.
    """

    def __init__(self, most: int = 8) -> None:
        self._most = most
        self._buckets: defaultdict[int, _Bucket] = defaultdict(_Bucket)
        self._reached = [0.0] * most
        self._accepted = [0.0] * most
        self._last = 0
        self._given = 1.0  # tokens per sequence of the last step
        self._is_try = False
        self._try_depth = self._try_left = 0
        self._tried: set[bool] = set()  # which kinds of steps: plain ones, and those with drafts
        self._num_tries = self._num_steps = 0
        self._since_try = 0
        self._took_s = self._lost_s = 0.0

    def choose(self, batch: int) -> int:
        bucket = self._buckets[batch.bit_length()]
        bucket.visits += 1
        bucket.smallest, bucket.largest = min(bucket.smallest, batch), max(bucket.largest, batch)
        self._given = 1.0
        self._since_try += 1
        if self._try_left == 0 and (depth := self._to_try(bucket, batch)) is not None:
            self._try_depth, self._since_try = depth, 0
            self._try_left = _RUN if self._tried else _first_run(batch)
            self._tried.add(depth > 0)
        self._is_try = self._try_left > 0
        if self._is_try:
            self._try_left -= 1
            return self._try_depth
        depth = self._best(bucket)
        bucket.drafts = depth > 0
        return depth

    def took(self, batch: int, depth: int, duration_s: float) -> None:
        bucket = self._buckets[batch.bit_length()]
        self._took_s += duration_s
        if self._is_try and bucket.means_s:
            self._lost_s += max(duration_s - self._given / max(self._rates(bucket)), 0.0)
        is_first, self._last = (depth > 0) != (self._last > 0), depth
        self._num_steps += 1
        if not is_first and self._num_steps > _COLD:
            bucket.add(depth, duration_s)

    def _to_try(self, bucket: _Bucket, batch: int) -> int | None:
        """A depth to try for some steps, if it is time to."""
        is_time = self._since_try >= _LOOK_AGAIN
        if not self._known():
            kinds = (0, min(max(_FIRST_DEPTH + 1 - batch.bit_length(), 1), self._most))
            untried = next((depth for depth in kinds if (depth > 0) not in self._tried), None)
            return kinds[0 in bucket.means_s] if untried is None and is_time else untried
        if bucket.drafts and 0 not in bucket.means_s and bucket.visits % _LEAST_PLAIN == 0:
            return 0
        if not is_time or self._lost_s > _LOOK_SHARE * self._took_s:
            return None
        self._num_tries += 1
        best = self._best(bucket)
        if best == 0:
            rates = self._rates(bucket)
            return max(range(1, self._most + 1), key=rates.__getitem__)
        turns = (0, min(best + 2, self._most), max(best - 1, 1), min(best + 1, self._most))
        return turns[self._num_tries % len(turns)]

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None:
        self._given = 1.0 + sum(accepted) / batch
        reached, kept = batch, _KEPT**batch
        for position in range(depth):
            self._reached[position] = kept * self._reached[position] + reached
            reached = sum(count > position for count in accepted)
            self._accepted[position] = kept * self._accepted[position] + reached

    def table(self) -> list[tuple[int, int, int]]:
        # A size that was never seen is like the nearest that was; of two equally near the larger, which
        # drafts less.
        rows: list[tuple[int, int, int]] = []
        seen = 0
        for _, bucket in sorted(self._buckets.items()) if self._known() else ():
            depth = self._best(bucket)
            first = (seen + bucket.smallest + 1) // 2 if rows else 1
            if rows and rows[-1][2] == depth:
                first = rows.pop()[0]
            elif rows:
                rows[-1] = (rows[-1][0], first - 1, rows[-1][2])
            rows.append((first, bucket.largest, depth))
            seen = bucket.largest
        return rows

    def _rates(self, bucket: _Bucket) -> list[float]:
        """Tokens per second of a sequence, by depth."""
        costs_s = self._nearest_known(bucket).costs_s(self._most)
        rates, tokens, accepted, all_accepted = [1.0 / costs_s[0]], 1.0, _GUESS, 1.0
        for position in range(self._most):
            # A position that was seldom reached is guessed to be like the one before it.
            seen = self._accepted[position] + _PRIOR * accepted
            accepted = seen / (self._reached[position] + _PRIOR)
            all_accepted *= accepted
            tokens += all_accepted
            rates.append(tokens / costs_s[position + 1])
        return rates

    def _known(self) -> list[_Bucket]:
        return [bucket for bucket in self._buckets.values() if bucket.is_known]

    def _nearest_known(self, bucket: _Bucket) -> _Bucket:
        """Itself, unless too little is known of it, and more of others."""
        if bucket.is_known:
            return bucket
        return min(self._known(), key=lambda other: abs(other.largest - bucket.largest), default=bucket)

    def _best(self, bucket: _Bucket) -> int:
        plain, *rates = self._rates(bucket)
        most = max(rates)
        if most < (_GO_ON if bucket.drafts else _BEGIN) * plain:
            return 0
        return next(depth for depth, rate in enumerate(rates, 1) if _ALIKE * rate >= most)


def _first_run(batch: int) -> int:
    return min(max(_PLAIN_PER_SEQUENCE * (batch - 1), _LEAST_PLAIN), _MOST_PLAIN)
