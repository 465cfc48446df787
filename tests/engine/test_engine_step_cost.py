"""The fit of what a step costs: it finds the truth under noise, and nothing that it is fed breaks it."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.step_cost import StepCost

FIXED_S, DECODE_S, CONTEXT_S, TOKEN_S = 4e-3, 1e-4, 2e-7, 5e-5


def cost_s(num_decodes: int, context_sum: int, num_more_tokens: int) -> float:
    return FIXED_S + DECODE_S * num_decodes + CONTEXT_S * context_sum + TOKEN_S * num_more_tokens


def steps(count: int, seed: int = 0) -> list[tuple[int, int, int]]:
    """Decodes, their contexts, and prompt tokens in two fifths of the steps."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        num_decodes = draw.randint(0, 32)
        tokens = draw.randint(1, 512) if draw.random() < 0.4 else 0
        made.append((num_decodes, num_decodes * draw.randint(50, 800), tokens))
    return made


@pytest.mark.parametrize(("noise", "within"), [(0.0, 0.01), (0.05, 0.1), (0.15, 0.3)])
def test_known_costs_are_found_under_noise_and_outliers(noise: float, within: float) -> None:
    fit, draw = StepCost(), random.Random(1)
    for i, step in enumerate(steps(600)):
        outlier = 30.0 if noise and i % 50 == 0 else 1.0
        fit.learn(*step, cost_s(*step) * draw.lognormvariate(0.0, noise) * outlier)
    assert fit.fixed_s == pytest.approx(FIXED_S, rel=within)
    assert fit.token_s == pytest.approx(TOKEN_S, rel=within)
    for num_decodes, context_sum in [(1, 100), (16, 6000), (32, 20_000)]:
        expected = cost_s(num_decodes, context_sum, 0)
        assert fit.decode_s(num_decodes, context_sum) == pytest.approx(expected, rel=within)


def test_one_outlier_moves_a_prediction_by_little() -> None:
    fit = StepCost()
    for step in steps(200):
        fit.learn(*step, cost_s(*step))
    before_s = fit.decode_s(16, 6000)
    fit.learn(16, 6000, 0, 100.0 * before_s)
    assert fit.decode_s(16, 6000) == pytest.approx(before_s, rel=0.02)


def test_a_change_of_the_costs_is_learnt() -> None:
    fit = StepCost()
    for step in steps(300):
        fit.learn(*step, cost_s(*step))
    for step in steps(500, seed=2):
        fit.learn(*step, 3.0 * cost_s(*step))
    assert fit.token_s == pytest.approx(3.0 * TOKEN_S, rel=0.2)
    assert fit.decode_s(16, 6000) == pytest.approx(3.0 * cost_s(16, 6000, 0), rel=0.1)


def test_a_cold_first_step_is_forgotten() -> None:
    fit = StepCost()
    for i, step in enumerate(steps(30)):
        fit.learn(*step, cost_s(*step) + (1.0 if i == 0 else 0.0))
    assert fit.decode_s(16, 6000) == pytest.approx(cost_s(16, 6000, 0), rel=0.05)


def test_what_is_not_seen_for_long_is_kept() -> None:
    fit = StepCost()
    for step in steps(200):
        fit.learn(*step, cost_s(*step))
    for _ in range(50_000):
        fit.learn(16, 4096, 0, cost_s(16, 4096, 0))
    assert fit.token_s == pytest.approx(TOKEN_S, rel=0.01)
    fit.learn(16, 4096, 512, 3.0 * cost_s(16, 4096, 512))
    assert fit.token_s == pytest.approx(TOKEN_S, rel=0.01), "its uncertainty has wound up"


def test_the_same_step_over_and_over_tells_only_its_own_cost() -> None:
    """Four coefficients from one equation: any solution will do that predicts what was seen."""
    fit = StepCost()
    for _ in range(20_000):
        fit.learn(16, 4096, 256, 0.02)
    whole_s = fit.decode_s(16, 4096) + 256 * fit.token_s
    assert whole_s == pytest.approx(0.02, rel=0.01)


COUNTS = st.sampled_from([0, 1, 16, 300, 10**4, 10**7])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(COUNTS, COUNTS, COUNTS, st.sampled_from([0.0, 1e-9, 1e-3, 1.0, math.inf, math.nan])),
        max_size=60,
    ),
    st.integers(1, 10),
)
def test_no_input_breaks_it(fed: list[tuple[int, int, int, float]], repeats: int) -> None:
    fit = StepCost()
    for step in fed * repeats:
        fit.learn(*step)
        told = [fit.fixed_s, fit.token_s, fit.decode_s(16, 4096)]
        assert all(math.isfinite(value) and value >= 0.0 for value in told)
    for step in steps(400):
        fit.learn(*step, cost_s(*step))
    assert fit.decode_s(16, 6000) < 0.1, "it does not recover"
