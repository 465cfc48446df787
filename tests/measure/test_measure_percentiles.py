import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.measure.percentiles import (
    batch_means,
    combine_repeats,
    percentile,
    percentile_interval,
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


def test_an_interval_of_independent_values_by_hand() -> None:
    # Every batch of ten has its five smallest below the median: batches agree, so independence decides.
    half = 2.262157163 * math.sqrt(0.25 / 100)  # t(0.975, 9)
    bounds = percentile_interval(np.tile(np.arange(10.0), 10), 0.5)
    assert bounds == (percentile(np.tile(np.arange(10.0), 10), 0.5 - half), pytest.approx(6.0, abs=0.5))
    assert percentile_interval(np.tile(np.arange(10.0), 10), 0.5, independent=19) is None


def test_too_few_values_and_values_too_near_to_the_end_have_no_interval() -> None:
    assert percentile_interval(range(19), 0.5) is None
    assert percentile_interval(range(20), 0.5) is not None
    assert percentile_interval(range(300), 0.99) is None
    assert percentile_interval(range(700)[::-1], 0.5) is not None


def autoregressive(seed: int, count: int) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=count)
    series = np.empty_like(noise)
    series[0] = noise[0] / math.sqrt(1 - 0.8**2)
    for i in range(1, count):
        series[i] = 0.8 * series[i - 1] + noise[i]
    return series


@pytest.mark.parametrize(("q", "normal"), [(0.5, 0.0), (0.9, 1.2815515655)])
def test_intervals_of_correlated_values_hold_the_truth_as_often_as_they_say(q: float, normal: float) -> None:
    truth = normal / math.sqrt(1 - 0.8**2)
    held = alone = 0
    for seed in range(120):
        series = autoregressive(seed, 1000)
        bounds = percentile_interval(series, q)
        assert bounds is not None and bounds[0] <= percentile(series, q) <= bounds[1]
        held += bounds[0] <= truth <= bounds[1]
        half = 2.26 * math.sqrt(q * (1 - q) / series.size)  # as if the values were independent
        alone += percentile(series, q - half) <= truth <= percentile(series, q + half)
    assert held >= 106 > alone  # 95 % less three standard errors


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
    assert combine_repeats([]) is None
    assert combine_repeats([10.0]) is None
    spread = combine_repeats([9.0, 11.0])
    assert spread is not None
    assert (spread.mean, spread.std_error) == (10.0, pytest.approx(1.0))
    assert spread.upper - spread.mean == pytest.approx(12.706204736)  # t(0.975, 1)
