"""Batch slots: who has which, since when, and until when it stays taken."""

from __future__ import annotations

import heapq

from tunebatch.engine.sequence import Sequence


class Slots:
    """The lowest free slot is the next that is taken.

    Args:
        count: The most sequences that may run at once.
        holds: Who is through keeps the slot until `release_held` (static batching).

    Attributes:
        free: Slots that nobody has, as a heap.
        holds: As given.
        occupancy: The stays that are over: slot, request, since when it ran there, until when, and until when
            nobody else could.
    """

    __slots__ = ("_entering", "_held", "count", "free", "holds", "occupancy")

    def __init__(self, count: int, holds: bool = False) -> None:
        self.count = count
        self.holds = holds
        self.free = list(range(count))
        self.occupancy: list[tuple[int, int, float, float, float]] = []
        self._held: list[Sequence] = []
        self._entering: list[Sequence] = []

    @property
    def num_taken(self) -> int:
        """Slots that a sequence occupies, or occupied and holds until its batch ends."""
        return self.count - len(self.free)

    def enter(self, sequence: Sequence, now: float) -> None:
        """Give a sequence a slot; its stay begins with the next step."""
        sequence.slot = heapq.heappop(self.free)
        sequence.slot_since_s = now
        self._entering.append(sequence)

    def begin(self, start_s: float) -> None:
        """The step that was planned last begins; those that it admits have their slots from now on."""
        for sequence in self._entering:
            sequence.slot_since_s = start_s
            if sequence.record.first_scheduled_s is None:
                sequence.record.first_scheduled_s = start_s
        self._entering.clear()

    def retire(self, sequence: Sequence) -> None:
        """A sequence is through: another may have the slot, if it is not held; `leave` notes the stay."""
        if self.holds:
            self._held.append(sequence)
        else:
            heapq.heappush(self.free, sequence.slot)

    def evict(self, sequence: Sequence, now: float) -> None:
        """Take the slot from a sequence that will need one again."""
        heapq.heappush(self.free, sequence.slot)
        self.leave(sequence, now, now)

    def leave(self, sequence: Sequence, end_s: float, held_until_s: float) -> None:
        """Note the stay of a sequence that has retired."""
        self.occupancy.append((sequence.slot, sequence.id, sequence.slot_since_s, end_s, held_until_s))
        sequence.slot = -1

    def release_held(self, now: float) -> None:
        """The batch is over: free the slots that its finished sequences kept."""
        for sequence in self._held:
            heapq.heappush(self.free, sequence.slot)
            self.leave(sequence, sequence.record.end_s, now)
        self._held.clear()

    def check_integrity(self, running: list[Sequence]) -> None:
        """Assert that every slot is free, held, or of one of those that run; for tests."""
        taken = [sequence.slot for sequence in [*running, *self._held]]
        assert sorted([*taken, *self.free]) == list(range(self.count)), "a slot is lost, or taken twice"
