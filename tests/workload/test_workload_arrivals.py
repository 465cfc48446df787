"""Arrival processes have the rate and the burstiness they are asked for, and scale with the rate."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.workload import arrivals

PROCESSES = {
    "poisson": lambda n, rate, seed: arrivals.poisson(n, rate, np.random.default_rng(seed)),
    "gamma": lambda n, rate, seed: arrivals.gamma(n, rate, 0.3, np.random.default_rng(seed)),
    "constant": lambda n, rate, seed: arrivals.constant(n, rate),
}
rates = st.floats(1e-3, 1e4)


@pytest.mark.parametrize("process", PROCESSES)
@given(n=st.integers(0, 50), seed=st.integers(0, 2**32), rate=rates, other=rates)
def test_another_rate_only_scales(process, n, seed, rate, other):
    one, two = PROCESSES[process](n, rate, seed), PROCESSES[process](n, other, seed)
    assert one.dtype == np.float64 and one.shape == (n,)
    assert np.all(one >= 0) and np.all(np.diff(one) >= 0)
    np.testing.assert_allclose(one * rate, two * other, rtol=1e-12)


@pytest.mark.parametrize("process", PROCESSES)
def test_mean_rate(process):
    times = PROCESSES[process](20_000, 7.0, 1)
    assert len(times) / times[-1] == pytest.approx(7.0, rel=0.05)


def coefficient_of_variation(times):
    gaps = np.diff(times)
    return gaps.std() / gaps.mean()


@pytest.mark.parametrize("burstiness", [0.25, 0.5, 1.0, 4.0])
def test_gamma_varies_as_its_burstiness_says(burstiness):
    times = arrivals.gamma(50_000, 3.0, burstiness, np.random.default_rng(5))
    assert coefficient_of_variation(times) == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_varies_as_poisson():
    times = arrivals.poisson(50_000, 3.0, np.random.default_rng(5))
    assert coefficient_of_variation(times) == pytest.approx(1.0, rel=0.02)
    per_second = np.histogram(times, np.arange(0, int(times[-1])))[0]
    assert per_second.var() / per_second.mean() == pytest.approx(1.0, rel=0.05)


def test_constant_is_even():
    assert arrivals.constant(4, 2.0).tolist() == [0.0, 0.5, 1.0, 1.5]


def test_bursts_arrive_together():
    assert arrivals.burst(7, 3, 2.0).tolist() == [0, 0, 0, 2, 2, 2, 4]
    assert arrivals.burst(5, 5, 0.0).tolist() == [0] * 5


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda rng: arrivals.poisson(3, 0.0, rng), "rate_per_s is 0"),
        (lambda rng: arrivals.poisson(3, float("nan"), rng), "rate_per_s is nan"),
        (lambda rng: arrivals.gamma(3, 1.0, -1.0, rng), "burstiness is -1"),
        (lambda rng: arrivals.constant(-1, 1.0), "-1"),
        (lambda rng: arrivals.burst(3, 0, 1.0), "burst size is 0"),
        (lambda rng: arrivals.burst(3, 1, -1.0), "burst gap is -1"),
    ],
)
def test_impossible_values_are_named(call, named):
    with pytest.raises(ValueError, match=named):
        call(np.random.default_rng(0))
