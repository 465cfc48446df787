"""The table of strategies: defaults, and one line for whoever mistypes."""

from __future__ import annotations

from typing import Any

import pytest

from tunebatch.engine.strategies import STRATEGIES, StrategyError, strategy


@pytest.mark.parametrize("name", STRATEGIES)
def test_defaults_make_a_policy(name: str) -> None:
    made = strategy(name)
    assert [knob for knob, _ in made.knobs] == [knob.name for knob in STRATEGIES[name].knobs]
    assert made.make_policy() is not made.make_policy(), "a policy keeps state"
    assert made.label.startswith(name)
    assert strategy(name, dict(made.knobs)) == made


def test_given_knobs_reach_the_policy() -> None:
    made = strategy("dynamic", {"max_batch_size": 7.0, "max_delay_s": 0})
    assert made.make_policy().max_batch_size == 7
    assert made.label == "dynamic, max_batch_size 7, max_delay_s 0, max_batched_tokens 2048"


def test_what_is_switched_off_is_not_told() -> None:
    assert strategy("static").label == "static, max_batch_size 32, max_batched_tokens 2048"
    assert strategy("static", {"sort_by_length": 1.0}).label.endswith("2048, sort_by_length 1")


@pytest.mark.parametrize(
    ("name", "knobs", "says"),
    [
        ("continous", {}, "did you mean 'continuous'"),
        ("", {}, "unknown strategy ''"),
        ("two\nlines", {}, "unknown strategy"),
        ("static", {"max_batchsize": 4}, "did you mean 'max_batch_size'"),
        ("static", {"max_delay_s": 1}, "has no knob 'max_delay_s'"),
        ("sequential", {"max_batch_size": 4}, "it has none"),
        ("static", {"max_batch_size": 0}, "least possible value is 1"),
        ("static", {"max_batch_size": -3}, "least possible value is 1"),
        ("static", {"max_batch_size": 2.6}, "nearest is 3"),
        ("static", {"max_batch_size": 0.4}, "nearest is 1"),
        ("static", {"max_batch_size": "many"}, "must be a finite number"),
        ("static", {"max_batch_size": None}, "must be a finite number"),
        ("static", {"max_batch_size": True}, "must be a finite number"),
        ("static", {"max_batch_size": float("inf")}, "must be a finite number"),
        ("static", {"sort_by_length": 2}, "must be 0 or 1"),
        ("static", {"sort_by_length": "yes"}, "must be 0 or 1"),
        ("dynamic", {"max_delay_s": -0.1}, "least possible value is 0"),
        ("dynamic", {"max_delay_s": float("nan")}, "must be a finite number"),
        ("dynamic", {"max_delay_s": float("inf")}, "must be a finite number"),
    ],
)
def test_mistakes_get_one_line(name: str, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(StrategyError) as caught:
        strategy(name, knobs)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message
