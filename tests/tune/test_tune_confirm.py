"""Who is measured again, and so can win."""

from __future__ import annotations

import math

import pytest

from tunebatch.tune.confirm import affordable, finalists
from tunebatch.tune.facts import Origin, TrialFacts


def trial(number: int, capacity: float, origin: Origin = "search", coarse: bool = False) -> TrialFacts:
    return TrialFacts(
        number=number,
        origin=origin,
        strategy="continuous",
        knobs={},
        capacity=capacity,
        met=capacity > 0.0,
        objective=0.0,
        coarse=coarse,
    )


def test_the_best_that_come_near_the_first_and_the_best_default_can_win() -> None:
    trials = [
        trial(0, 3.0, "default"),
        trial(1, 5.0, "default"),
        trial(2, 10.0),
        trial(3, 9.0),
        trial(4, 8.5),
        trial(5, 7.0),
        trial(6, 0.0),
    ]
    assert [one.number for one in finalists(trials, 2)] == [2, 3, 1]
    assert [one.number for one in finalists(trials, 9)] == [2, 3, 4, 1]
    assert [one.number for one in finalists([*trials, trial(7, 12.0, "default")], 2)] == [7, 2]


def test_who_is_known_coarsely_or_without_a_capacity_cannot_win() -> None:
    assert finalists([trial(0, 0.0, "default"), trial(1, 5.0, coarse=True)], 3) == []


@pytest.mark.parametrize(
    ("left_s", "many"),
    [
        (math.inf, 5),
        (120.0, 5),  # 1 is done: 4 others once, and 9 of ten runs of finalists, take 13
        (115.0, 4),
        (70.0, 2),
        (1.0, 2),
    ],
)
def test_there_are_as_many_finalists_as_the_time_allows(left_s: float, many: int) -> None:
    assert affordable(5, 4, 2, 9.0, left_s) == many
    assert affordable(1, 4, 2, 9.0, left_s) == 1
    assert affordable(2, 4, 2, 9.0, left_s) == 2
    assert affordable(5, 4, 2, 0.0, left_s) == 5
