"""How much KV cache the running sequences will need at most, going by those that have ended."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence

_WINDOW = 256  # answers whose lengths are remembered
_FEW = 16  # tell nothing yet
_RESERVE = 0.03  # of the pool, for answers that turn out longer

# Expected last step, id, tokens held less the step, and tokens shared.
_Entry = tuple[int, int, int, int]


class OutputLengths:
    """The lengths of the last answers, as a guess at those to come."""

    def __init__(self) -> None:
        self._recent: deque[int] = deque()
        self._sorted: list[int] = []
        self._sum = 0

    def observe(self, num_tokens: int) -> None:
        """An answer has ended with so many tokens."""
        self._recent.append(num_tokens)
        insort(self._sorted, num_tokens)
        self._sum += num_tokens
        if len(self._recent) > _WINDOW:
            oldest = self._recent.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]
            self._sum -= oldest

    def expected(self, num_output: int, max_tokens: int) -> int:
        """Tokens that an answer will have that has ``num_output`` so far: the mean of the longer ones, and
        never more than ``max_tokens``, which is the guess where too little is known."""
        shorter = self._sorted[: bisect_right(self._sorted, num_output)]
        num_longer = len(self._sorted) - len(shorter)
        if len(self._sorted) < _FEW or not num_longer:
            return max_tokens
        return min(-(-(self._sum - sum(shorter)) // num_longer), max_tokens)


class PeakForecast:
    """Whether one more request would fit at the time at which the KV cache is fullest.

    The admission of LightLLM's past-future scheduler (ASPLOS 2025): every running sequence grows by a token
    a step until its expected end, and gives everything back there. With sequences sorted by their ends,
    latest first, the use is greatest at one of these: what the first ``n`` hold now, and ``n`` tokens for
    each step until the end of the ``n``-th. Counted from the decode group's step 0, ends and sizes stay as
    they are while steps are made, so a forecast costs what joined and left, and one pass over what runs.

    What a sequence shares with others from the prefix cache is not counted for it, but blocks that are taken
    beyond what all are thought to hold are: by shared prefixes, or by drafts that made sequences grow faster
    than a token a step.

    Until something leaves, a request that did not fit still does not. And as long as one more could have its
    greatest size at the time of the peak, there is nothing to sort out: requests that join in the same step
    seldom need a pass each.
    """

    def __init__(self) -> None:
        self.lengths = OutputLengths()
        # Soonest first.
        self._ends: list[_Entry] = []
        self._known: dict[int, _Entry] = {}
        self._peak = 0  # or more: it is found anew only where it decides
        self._sum_of_bases = 0
        self._refused: int | None = None
        self._fitted: tuple[_Entry, int] | None = None  # who did last, and the peak with it

    def fits(self, candidate: Sequence, queues: Queues) -> bool:
        """Whether the KV cache is expected to hold the candidate and all that run, to their ends."""
        # All that run were admitted here, so who is known and does not run has left: preempted, or cancelled.
        left = len(self._known) > len(queues.running)
        self._fitted = None
        if self._refused == candidate.id and not left:
            return False
        for sequence_id in self._known.keys() - queues.running.keys() if left else ():
            self._forget(sequence_id)
        self._look_again(queues)
        entry = self._entry(candidate, queues, candidate.num_tokens - queues.num_to_compute(candidate))
        room = self._room(queues)
        peak = self._peak + _size(entry)
        if peak > room and (peak := self._peak_with(entry, room)) > room:
            self._refused = candidate.id
            return False
        self._fitted = (entry, peak)
        return True

    def admit(self, queues: Queues, now: float, candidate: Sequence) -> bool:
        """Start a waiting request if it fits, or if nobody runs beside it, so that a wrong forecast costs
        nothing but time."""
        if not self.fits(candidate, queues) and queues.running:
            return False
        if not queues.admit(now, candidate):
            return False
        self.admitted(candidate, queues)
        return True

    def took(self, step: StepTaken) -> None:
        """Those that ended tell how long answers are."""
        for sequence in step.ended:
            self.ended(sequence)

    def ended(self, sequence: Sequence) -> None:
        """The sequence has left, and tells how long answers are."""
        self.lengths.observe(sequence.num_output)
        self._forget(sequence.id)

    def admitted(self, sequence: Sequence, queues: Queues) -> None:
        """The sequence runs from now on; if it fitted, it was the last that was asked about."""
        self._forget(sequence.id)
        if self._fitted is not None:
            entry, peak = self._fitted
            self._remember(entry)
            self._peak = peak
        else:
            # Just admitted, what is computed of it is what it shares.
            self._remember(self._entry(sequence, queues, sequence.num_computed))
        self._refused = self._fitted = None

    def _look_again(self, queues: Queues) -> None:
        """At those that have outlived what was expected of them."""
        step = queues.decodes.step
        while self._ends and self._ends[0][0] <= step:
            _, sequence_id, _, shared = self._ends[0]
            self._forget(sequence_id)
            if (sequence := queues.running.get(sequence_id)) is not None:
                self._remember(self._entry(sequence, queues, shared))

    def _entry(self, sequence: Sequence, queues: Queues, shared: int) -> _Entry:
        step = queues.decodes.step
        made = step - sequence.joined_step if sequence.row >= 0 else 0
        num_output = sequence.num_output + made
        left = self.lengths.expected(num_output, sequence.request.max_tokens) - num_output
        # Of a block that is not full the rest is taken too.
        held = sequence.num_tokens + made - shared + queues.kv.block_size - 1
        return (step + max(left, 1), sequence.id, held - step, shared)

    def _room(self, queues: Queues) -> int:
        kv = queues.kv
        held = self._sum_of_bases + len(self._ends) * queues.decodes.step
        unexplained = max(kv.num_used * kv.block_size - held, 0)
        return int((1.0 - _RESERVE) * kv.num_blocks * kv.block_size) - unexplained

    def _peak_with(self, candidate: _Entry, room: int) -> int:
        """The greatest use if the candidate joins all that are known, or the first that exceeds ``room``."""
        ends = self._ends
        insort(ends, candidate)
        total = peak = 0
        for count, (end, _, base, _) in enumerate(reversed(ends), 1):
            total += base
            if (used := total + count * end) > peak:
                peak = used
                if peak > room:
                    break
        del ends[bisect_left(ends, candidate)]
        return peak

    def _remember(self, entry: _Entry) -> None:
        insort(self._ends, entry)
        self._known[entry[1]] = entry
        self._peak += _size(entry)
        self._sum_of_bases += entry[2]

    def _forget(self, sequence_id: int) -> None:
        entry = self._known.pop(sequence_id, None)
        if entry is not None:
            del self._ends[bisect_left(self._ends, entry)]
            self._sum_of_bases -= entry[2]
            self._refused = None


def _size(entry: _Entry) -> int:
    """Tokens held at the expected end."""
    return entry[0] + entry[2]
