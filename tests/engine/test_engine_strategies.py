"""The table of strategies: defaults, and one line for whoever mistypes."""

from __future__ import annotations

from typing import Any

import pytest

from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.presets import PRESETS
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
        ("", {}, "no strategy is named"),
        ("two\nlines", {}, "unknown strategy"),
        ("static", {"max_batchsize": 4}, "did you mean 'max_batch_size'"),
        ("static", {"max_delay_s": 1}, "has no knob 'max_delay_s'"),
        (
            "continuous",
            {"forecast_kv": 1},
            "no knob 'forecast_kv', a knob of chunked; it has max_batch_size, max_batched_tokens",
        ),
        ("static", {"num_drafts": 2}, "'num_drafts', a knob of +ngram, +draft; it has max_batch_size, "),
        ("sequential", {"max_batch_size": 4}, "it has none"),
        ("sequential", {"max_batchsize": 4}, "it has none"),
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
        ("mixed", {"chunk_size": "often"}, "must be a finite number or 'auto'"),
        ("mixed", {"chunk_size": False}, "must be a finite number or 'auto'"),
        ("mixed", {"chunk_size": -1}, "least possible value is 1"),
        ("mixed", {"max_batch_size": "auto"}, "must be a finite number (sequences)"),
        ("chunked", {"chunk_size": "auto"}, "must be a finite number (prompt tokens per chunk)"),
        ("adaptive", {"min_batch_size": 40}, "must not exceed max_batch_size, nearest is 32"),
        ("adaptive", {"target": -0.1}, "least possible value is 0"),
        ("mixed+prefix+prefix", {}, "strategy mixed+prefix+prefix: prefix is given twice; leave one out"),
        ("mixed+draft+prefix+speculative", {}, "draft is given twice; leave one out"),
        (
            "prefix",
            {},
            "'prefix' is a feature, which is added to a strategy; write it like continuous+prefix",
        ),
        ("speculative+prefix", {}, "; write it like continuous+speculative+prefix"),
        ("sarati", {}, "did you mean 'sarathi'"),
        ("vllm", {}, "vllm-v0, sarathi, vllm-v1"),
        ("sarathi", {"chunk": 4}, "did you mean 'chunk_size'"),
    ],
)
def test_mistakes_get_one_line(name: str, knobs: dict[str, Any], says: str) -> None:
    with pytest.raises(StrategyError) as caught:
        strategy(name, knobs)
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize("value", ["auto", 0, 0.0])
def test_auto_is_a_value_and_shown_as_one(value: float | str) -> None:
    made = strategy("mixed", {"chunk_size": value})
    assert made.label == "mixed, max_batch_size 32, chunk_size auto, max_partial_prefills 2"
    assert made.shown_knobs["chunk_size"] == "auto"
    assert strategy("mixed", made.shown_knobs) == made


def test_a_lower_bound_that_was_not_given_follows_the_batch_limit() -> None:
    assert dict(strategy("adaptive", {"max_batch_size": 2}).knobs)["min_batch_size"] == 2


def test_only_policies_that_take_limits_get_them() -> None:
    limits = LatencyLimits(ttft_s=1.0, tpot_s=0.02)
    for name in STRATEGIES:
        strategy(name).make_policy(limits)
    auto = strategy("mixed", {"chunk_size": "auto"}).make_policy(limits)
    assert auto._budget._target_s == pytest.approx(0.018)  # type: ignore[attr-defined]
    adaptive = strategy("adaptive", {"target": 0.5}).make_policy(limits)
    assert adaptive._budget._target_s == pytest.approx(0.01)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_its_strategy_with_its_knobs(name: str) -> None:
    preset = PRESETS[name]
    made, spelled_out = strategy(name), strategy(preset.strategy, preset.knobs)
    assert made.knobs == spelled_out.knobs
    assert type(made.make_policy()) is type(spelled_out.make_policy())
    assert made.label == f"{name} = {spelled_out.label}"
    assert name not in STRATEGIES
    for line in (preset.source, preset.differs):
        assert line and "\n" not in line


@pytest.mark.parametrize("name", [name for name, preset in PRESETS.items() if preset.strategy == "mixed"])
def test_presets_keep_the_order_of_arrival_of_their_sources(name: str) -> None:
    assert dict(strategy(name).knobs)["max_partial_prefills"] == 1


def test_a_knob_of_a_preset_can_be_changed() -> None:
    made = strategy("sarathi", {"chunk_size": 256})
    assert made.label == "sarathi = mixed, max_batch_size 128, chunk_size 256, max_partial_prefills 1"
