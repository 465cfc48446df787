import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.measure.percentiles import (
    Estimate,
    batch_means,
    combine_repeats,
    interval,
    percentile,
    samples_needed,
)

VALUES = st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60)


@given(VALUES, st.sampled_from([0.0, 0.5, 0.9, 0.95, 0.99, 1.0]) | st.floats(0.0, 1.0))
def test_percentile_is_numpys(values: list[float], q: float) -> None:
    assert percentile(values, q) == pytest.approx(float(np.quantile(values, q)), rel=1e-9, abs=1e-6)


@given(VALUES, st.floats(0.0, 1.0))
def test_percentile_is_never_below_the_order_statistic_under_it(values: list[float], q: float) -> None:
    assert percentile(values, q) >= sorted(values)[math.floor((len(values) - 1) * q)]


def test_percentile_by_hand() -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], 0.5) == 2.5
    assert percentile([10.0, 20.0], 0.9) == pytest.approx(19.0)
    assert percentile([5.0], 0.99) == 5.0


@pytest.mark.parametrize(("values", "q"), [([], 0.5), ([1.0], 1.5), ([1.0], -0.1)])
def test_percentile_refuses_what_has_none(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match=r"quantile|no values"):
        percentile(values, q)


@pytest.mark.parametrize(("q", "n"), [(0.5, 11), (0.9, 64), (0.95, 130), (0.99, 662), (0.999, 6636)])
def test_samples_needed_are_the_published_floors(q: float, n: int) -> None:
    assert samples_needed(q) == n


@given(st.floats(0.01, 0.995), st.sampled_from([0.9, 0.95, 0.99]))
def test_samples_needed_is_the_smallest_and_symmetric(q: float, confidence: float) -> None:
    n, top = samples_needed(q, confidence), max(q, 1.0 - q)
    few = [top**m + m * (1 - top) * top ** (m - 1) for m in (n - 1, n)]
    assert few[1] <= 1.0 - confidence < few[0]
    assert n == samples_needed(top, confidence)


def test_samples_needed_refuses_the_ends() -> None:
    with pytest.raises(ValueError, match="strictly"):
        samples_needed(1.0)


def test_interval_by_hand() -> None:
    # 1 / 2^8 outside on either side: the extremes bound the median at 99 %, and no inner pair does.
    assert interval(range(1, 9), 0.5, 0.99) == (1.0, 8.0)
    assert interval(range(1, 8), 0.5, 0.99) is None
    # P(B <= 5) = 0.0207, P(B <= 6) = 0.0577 for 20 fair coins.
    assert interval(range(1, 21), 0.5, 0.95) == (6.0, 15.0)


def test_interval_needs_528_values_for_a_p99() -> None:
    assert interval(np.arange(527), 0.99) is None
    assert interval(np.arange(528), 0.99) is not None
    assert interval([], 0.5) is None


@given(st.integers(662, 3000))
def test_where_a_p99_is_reported_it_lies_in_its_interval(n: int) -> None:
    values = np.arange(n, dtype=float)
    bounds = interval(values, 0.99)
    assert bounds is not None
    assert bounds[0] <= percentile(values, 0.99) <= bounds[1]


def test_batch_means_by_hand() -> None:
    estimate = batch_means([99.0, 1.0, 3.0, 5.0, 7.0], num_batches=2)
    assert estimate is not None
    assert (estimate.mean, estimate.std_error, estimate.num_groups) == (4.0, pytest.approx(2.0), 2)
    assert estimate.upper - estimate.mean == pytest.approx(2.0 * 12.706204736)  # t(0.975, 1)


def test_batch_means_needs_two_values_a_batch() -> None:
    assert batch_means([1.0] * 39, num_batches=20) is None
    assert batch_means([1.0] * 40, num_batches=20) is not None
    with pytest.raises(ValueError, match="at least 2"):
        batch_means([1.0], num_batches=1)


def test_batch_means_are_wider_than_independence_would_say() -> None:
    noise = np.random.default_rng(1).normal(size=4000)
    series = np.empty_like(noise)
    series[0] = 0.0
    for i in range(1, series.size):
        series[i] = 0.9 * series[i - 1] + noise[i]
    estimate = batch_means(series)
    assert estimate is not None
    assert estimate.std_error > 2.5 * float(series.std()) / math.sqrt(series.size)
    assert estimate.lower < 0.0 < estimate.upper


def test_combined_repeats() -> None:
    one = Estimate(10.0, 9.0, 11.0, 0.5, 20)
    assert combine_repeats([]) is None
    assert combine_repeats([10.0]) is None
    assert combine_repeats([one]) is one
    spread = combine_repeats([9.0, 11.0])
    assert spread is not None
    assert (spread.mean, spread.std_error) == (10.0, pytest.approx(1.0))
    lucky = combine_repeats([one, one])
    assert lucky is not None
    assert (lucky.lower, lucky.upper) == (pytest.approx(10 - 0.5**0.5), pytest.approx(10 + 0.5**0.5))
