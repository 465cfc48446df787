"""How much less than its capacity a winner can be relied on for."""

from __future__ import annotations

import math
import random

import pytest
import tune_fake
from tune_queue import arrivals, one_server, result

from tunebatch.engine.strategies import strategy
from tunebatch.tune.margin import safe_rate, unsure_limits


def test_the_margin_by_hand() -> None:
    # Logarithms 0, 1 and 2: a spread of 1, and t(0.95, 2) = 2.92.
    values = [1.0, math.e, math.e**2]
    assert safe_rate(values) == pytest.approx(math.exp(1.0 - 2.91998558 * math.sqrt(4 / 3)))
    assert safe_rate([5.0, 5.0, 5.0]) == pytest.approx(5.0)


@pytest.mark.parametrize("confirmed", [(), (7.0,), (7.0, 8.0), (7.0, 8.0, 0.0)])
def test_few_seeds_tell_no_margin(confirmed: tuple[float, ...]) -> None:
    assert safe_rate(confirmed) is None


def test_another_seed_is_above_the_margin_as_often_as_promised() -> None:
    draw = random.Random(8)
    held = 0
    for _ in range(400):
        *confirmed, another = (math.exp(draw.gauss(3.0, 0.1)) for _ in range(6))
        safe = safe_rate(confirmed)
        assert safe is not None and safe <= min(confirmed)
        held += another >= safe
    assert held >= 367  # 95 % less three standard errors


def test_a_statistic_near_to_its_limit_is_unsure() -> None:
    arrived = arrivals(800, 5.0, seed=2)
    done = one_server(arrived, 0.1)
    run = result(arrived, done, 5.0, ["p90_ttft<=1min"])
    told = run.metrics.ttft.p90
    assert told.value_s is not None and told.lower_s is not None and told.upper_s is not None
    between = (told.value_s + told.upper_s) / 2
    for limit_s, unsure in ((between, True), (told.upper_s * 1.01, False), (told.value_s * 0.9, False)):
        judged = result(arrived, done, 5.0, [f"p90_ttft<={limit_s}s", "p90_tpot<=1s"])
        found = unsure_limits(judged)
        assert [(one.lower_s, one.upper_s) for one in found] == [(told.lower_s, told.upper_s)] * unsure


def test_the_nearest_limit_is_unsure_where_its_error_is_not_known() -> None:
    arrived = arrivals(100, 9.5, seed=2)
    run = result(arrived, one_server(arrived, 0.1), 9.5, ["p90_ttft<=1min", "p90_tpot<=10min"])
    assert run.metrics.ttft.p90.value_s is not None and run.metrics.ttft.p90.lower_s is None
    (one,) = unsure_limits(run)
    assert one.judged.limit.name == "p90_ttft" and one.upper_s is None


def test_a_run_without_an_slo_is_sure() -> None:
    assert unsure_limits(tune_fake.result(strategy("sequential"), 1.0, 0, saturated=2.0, slo=())) == []
