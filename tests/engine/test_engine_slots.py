"""Who has which batch slot: the lowest free one is taken, a stay is noted when it is over."""

from __future__ import annotations

import pytest

from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.slots import Slots


def entered(slots: Slots, count: int, now: float = 0.0) -> list[Sequence]:
    sequences = [Sequence(Request(i, (1,), 1)) for i in range(count)]
    for sequence in sequences:
        slots.enter(sequence, now)
    return sequences


def test_the_lowest_free_slot_is_taken() -> None:
    slots = Slots(3)
    first, second, third = entered(slots, 3)
    assert [first.slot, second.slot, third.slot] == [0, 1, 2] and slots.num_taken == 3 and not slots.free
    for sequence in (third, first):
        slots.retire(sequence)
        slots.leave(sequence, 1.0, 1.0)
    assert slots.num_taken == 1 and entered(slots, 1)[0].slot == 0


def test_a_stay_begins_with_the_step_and_a_second_one_is_not_the_first_start() -> None:
    slots = Slots(1)
    (sequence,) = entered(slots, 1, now=1.0)
    slots.begin(2.0)
    slots.evict(sequence, 3.0)
    assert sequence.slot == -1 and slots.num_taken == 0
    slots.enter(sequence, 4.0)
    slots.begin(5.0)
    slots.begin(6.0)
    slots.retire(sequence)
    slots.leave(sequence, 7.0, 7.0)
    assert slots.occupancy == [(0, 0, 2.0, 3.0, 3.0), (0, 0, 5.0, 7.0, 7.0)]
    assert sequence.record.first_scheduled_s == 2.0


def test_a_held_slot_is_free_when_the_batch_is_over() -> None:
    slots = Slots(2, holds=True)
    first, second = entered(slots, 2)
    slots.begin(0.0)
    slots.retire(first)
    first.record.end_s = 1.0
    assert slots.num_taken == 2 and first.slot == 0 and not slots.occupancy
    slots.check_integrity([second])
    slots.retire(second)
    second.record.end_s = 3.0
    slots.release_held(4.0)
    assert slots.free == [0, 1]
    assert slots.occupancy == [(0, 0, 0.0, 1.0, 4.0), (1, 1, 0.0, 3.0, 4.0)]


def test_a_lost_slot_is_noticed() -> None:
    slots = Slots(2)
    first, second = entered(slots, 2)
    slots.check_integrity([first, second])
    with pytest.raises(AssertionError, match="a slot is lost"):
        slots.check_integrity([first])
    second.slot = 0
    with pytest.raises(AssertionError, match="taken twice"):
        slots.check_integrity([first, second])
