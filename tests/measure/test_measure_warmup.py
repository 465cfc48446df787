"""How many requests are warm-up, and how many have to come so that enough are left."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.measure.warmup import num_warmup, requests_for, warmup_text


@pytest.mark.parametrize(
    ("samples", "requests"), [(1, 1), (9, 9), (10, 11), (64, 71), (130, 144), (662, 735)]
)
def test_requests_by_hand(samples: int, requests: int) -> None:
    assert requests_for(samples, at_once=False) == requests


@given(st.integers(1, 100_000))
def test_with_one_request_less_too_few_are_left(samples: int) -> None:
    enough = requests_for(samples, at_once=False)
    assert enough - num_warmup(enough, at_once=False) == samples
    assert enough - 1 - num_warmup(enough - 1, at_once=False) < samples


def test_all_at_once_nothing_is_warmup() -> None:
    assert (num_warmup(100, at_once=True), requests_for(64, at_once=True)) == (0, 64)
    assert (num_warmup(100, at_once=False), num_warmup(9, at_once=False)) == (10, 0)


def test_text() -> None:
    assert (warmup_text(7, 78), warmup_text(0, 78)) == ("first 7 of 78 requests", "none")
