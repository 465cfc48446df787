"""The flat space: every parameter in every trial, and only the effective ones count."""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys

import pytest

from tunebatch.engine.strategies import STRATEGIES, StrategyError, strategy
from tunebatch.tune.facts import TrialFacts
from tunebatch.tune.space import Space, config_hash

NAMES = tuple(STRATEGIES)


def test_defaults_are_the_strategies_defaults_and_lie_inside() -> None:
    space = Space(NAMES)
    distributions = space.distributions()
    for name, params in zip(NAMES, space.defaults(), strict=True):
        assert space.to_strategy(params) == strategy(name)
        assert params.keys() == distributions.keys()
        for key, value in params.items():
            assert distributions[key]._contains(distributions[key].to_internal_repr(value))


def test_every_draw_is_a_valid_strategy_inside_its_ranges() -> None:
    space, rng = Space(NAMES), random.Random(0)
    for _ in range(300):
        chosen = space.to_strategy(space.draw(rng))
        knobs = dict(chosen.knobs)
        for knob in STRATEGIES[chosen.name].knobs:
            assert knob.low <= knobs[knob.name] <= knob.high or (knob.auto and knobs[knob.name] == 0)
        assert knobs.get("min_batch_size", 1) <= knobs.get("max_batch_size", 1)


def test_a_value_that_the_policy_finds_itself_is_one_of_those_searched() -> None:
    space, rng = Space(NAMES), random.Random(3)
    drawn = [space.to_strategy({**space.draw(rng), "strategy": "mixed"}) for _ in range(300)]
    chunks = [dict(chosen.knobs)["chunk_size"] for chosen in drawn]
    assert 10 < chunks.count(0) < 80 and min(size for size in chunks if size) >= 32
    auto = strategy("mixed", {"chunk_size": "auto"})
    assert space.to_strategy(space.to_params(auto)) == auto
    least = strategy("mixed", {"chunk_size": 32})
    assert space.to_strategy(space.to_params(least)) == least
    # Chunked shares the parameter, but not the meaning of what lies below its own range.
    assert dict(space.to_strategy({**space.to_params(auto), "strategy": "chunked"}).knobs)["chunk_size"] == 32


def test_a_preset_is_a_single_point() -> None:
    space, rng = Space(["sarathi", "mixed"]), random.Random(4)
    drawn = {space.to_strategy({**space.draw(rng), "strategy": "sarathi"}) for _ in range(20)}
    assert drawn == {strategy("sarathi")} == {space.default("sarathi")}
    few = Space(["sarathi"], max_slots=16)
    assert (
        few.to_strategy(few.draw(rng))
        == few.default("sarathi")
        == strategy("sarathi", {"max_batch_size": 16})
    )


def test_inactive_knobs_change_nothing() -> None:
    space, rng = Space(NAMES), random.Random(1)
    one, other = space.draw(rng), space.draw(rng)
    one["strategy"] = other["strategy"] = "sequential"
    assert one != other
    assert config_hash(space.to_strategy(one)) == config_hash(space.to_strategy(other))


def test_what_matters_only_offline_is_searched_only_there() -> None:
    rng = random.Random(3)
    for offline, values in ((False, {0}), (True, {0, 1})):
        space = Space(("static",), offline=offline)
        drawn = [space.to_strategy(space.draw(rng)) for _ in range(30)]
        assert {dict(one.knobs)["sort_by_length"] for one in drawn} == values
        assert ("log2_sort_by_length" in space.distributions()) is offline
        assert space.to_strategy(space.to_params(drawn[0])) == drawn[0]


def test_unknown_and_missing_strategies_are_refused() -> None:
    with pytest.raises(StrategyError, match="continuous"):
        Space(["continous"])
    with pytest.raises(ValueError, match="at least one"):
        Space([])


def test_importing_the_search_loads_neither_optuna_nor_torch() -> None:
    code = "import sys, tunebatch.tune.study; print([m for m in ('optuna', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "optuna" not in done.stdout and "torch" not in done.stdout


@pytest.mark.parametrize("slots", [1, 4, 16, 128])
def test_a_batch_limit_is_never_more_than_the_slots(slots: int) -> None:
    space, rng = Space(NAMES, max_slots=slots), random.Random(2)
    drawn = [dict(space.to_strategy(space.draw(rng)).knobs).get("max_batch_size", 1) for _ in range(300)]
    assert max(drawn) <= slots < 2 * max(drawn)
    for name, params in zip(NAMES, space.defaults(), strict=True):
        chosen = space.to_strategy(params)
        assert chosen == space.default(name)
        knobs = dict(chosen.knobs)
        assert knobs.get("max_batch_size", 1) == (min(32, slots) if knobs else 1)
        assert knobs.get("min_batch_size", 1) <= slots
        for key, distribution in space.distributions().items():
            assert distribution._contains(distribution.to_internal_repr(params[key]))


def test_an_automatic_knob_is_kept_by_name() -> None:
    facts = TrialFacts(
        number=0,
        origin="search",
        strategy="mixed",
        knobs=dict(strategy("mixed", {"chunk_size": "auto"}).knobs),
        capacity=1.0,
        met=True,
        objective=0.0,
    )
    kept = json.loads(json.dumps(facts.to_json()))
    assert kept["knobs"]["chunk_size"] == "auto"
    assert TrialFacts.from_json(kept) == facts


RANGES = {"max_batch_size": (8, 24), "chunk_size": (100, 100), "max_delay_s": (0.01, 0.02)}


def test_every_point_of_a_space_keeps_to_the_ranges_that_were_given() -> None:
    space, rng = Space(NAMES, max_slots=64, ranges=RANGES), random.Random(6)
    drawn = [space.to_strategy(space.draw(rng)) for _ in range(300)]
    drawn += [space.default(name) for name in NAMES]
    seen: dict[str, set[float]] = {}
    for chosen in drawn:
        for name, value in chosen.knobs:
            seen.setdefault(name, set()).add(value)
            low, high = RANGES.get(name, (-math.inf, math.inf))
            assert low <= value <= high, (chosen, name)
    assert len(seen["max_batch_size"]) > 10 and len(seen["max_batched_tokens"]) > 10
    assert seen["chunk_size"] == {100}
    for name, params in zip(NAMES, space.defaults(), strict=True):
        assert space.to_strategy(params) == space.default(name)


def test_auto_alone_is_a_range_where_a_knob_can_be_that() -> None:
    names = ("mixed", "chunked")
    space, rng = Space(names, ranges={"chunk_size": (0, 0)}), random.Random(7)
    drawn = [space.to_strategy(space.draw(rng)) for _ in range(100)]
    shown = {name: {one.shown_knobs["chunk_size"] for one in drawn if one.name == name} for name in names}
    assert shown["mixed"] == {"auto"} == {space.default("mixed").shown_knobs["chunk_size"]}
    assert len(shown["chunked"]) > 10 and "auto" not in shown["chunked"]


def test_a_feature_that_is_switched_on_keeps_to_its_range() -> None:
    space = Space(("continuous",), features=("ngram",), ranges={"num_drafts": (2, 3)})
    (other,) = space.neighbours(space.default("continuous"))
    assert dict(other.knobs)["num_drafts"] == 2
