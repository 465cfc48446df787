"""How much KV cache the running sequences will need at most, going by those that have ended."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections import deque

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

    def observe(self, num_tokens: int) -> None:
        """An answer has ended with so many tokens."""
        self._recent.append(num_tokens)
        insort(self._sorted, num_tokens)
        if len(self._recent) > _WINDOW:
            del self._sorted[bisect_left(self._sorted, self._recent.popleft())]

    def expected(self, num_output: int, max_tokens: int) -> int:
        """Tokens that an answer will have that has ``num_output`` so far: the mean of the longer ones, and
        never more than ``max_tokens``, which is the guess where too little is known."""
        longer = self._sorted[bisect_right(self._sorted, num_output) :]
        if len(self._sorted) < _FEW or not longer:
            return max_tokens
        return min(-(-sum(longer) // len(longer)), max_tokens)


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

    Until something leaves, a request that did not fit still does not; and as long as all could have their
    greatest sizes at once, there is nothing to sort out.
    """

    def __init__(self) -> None:
        self.lengths = OutputLengths()
        # Soonest first.
        self._ends: list[_Entry] = []
        self._known: dict[int, _Entry] = {}
        self._sum_of_sizes = 0  # each at its end
        self._sum_of_bases = 0
        self._refused: int | None = None

    def fits(self, candidate: Sequence, queues: Queues) -> bool:
        """Whether the KV cache is expected to hold the candidate and all that run, to their ends."""
        if self._refused == candidate.id and self._known.keys() <= queues.running.keys():
            return False
        shared = candidate.num_tokens - queues.num_to_compute(candidate)
        entry = self._entry(candidate, queues, shared)
        self._look_again(queues)
        if self._sum_of_sizes + _size(entry) > self._room(queues):
            for sequence_id in self._known.keys() - queues.running.keys():
                self._forget(sequence_id)
            if self._peak_exceeds(self._room(queues), entry):
                self._refused = candidate.id
                return False
        return True

    def admitted(self, sequence: Sequence, queues: Queues) -> None:
        """The sequence runs from now on."""
        self._forget(sequence.id)
        # Just admitted, what is computed of it is what it shares.
        self._remember(self._entry(sequence, queues, sequence.num_computed))
        self._refused = None

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

    def _peak_exceeds(self, room: int, candidate: _Entry) -> bool:
        ends = self._ends
        insort(ends, candidate)
        total = 0
        exceeds = False
        for count, (end, _, base, _) in enumerate(reversed(ends), 1):
            total += base
            if total + count * end > room:
                exceeds = True
                break
        del ends[bisect_left(ends, candidate)]
        return exceeds

    def _remember(self, entry: _Entry) -> None:
        insort(self._ends, entry)
        self._known[entry[1]] = entry
        self._sum_of_sizes += _size(entry)
        self._sum_of_bases += entry[2]

    def _forget(self, sequence_id: int) -> None:
        entry = self._known.pop(sequence_id, None)
        if entry is not None:
            del self._ends[bisect_left(self._ends, entry)]
            self._sum_of_sizes -= _size(entry)
            self._sum_of_bases -= entry[2]


def _size(entry: _Entry) -> int:
    """Tokens held at the expected end."""
    return entry[0] + entry[2]
