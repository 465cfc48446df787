"""The flat space: every parameter in every trial, and only the effective ones count."""

from __future__ import annotations

import random
import subprocess
import sys

import pytest

from tunebatch.engine.strategies import STRATEGIES, StrategyError, strategy
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
            assert knob.low <= knobs[knob.name] <= knob.high


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
        assert dict(chosen.knobs).get("max_batch_size", 1) == (min(32, slots) if chosen.knobs else 1)
        for key, distribution in space.distributions().items():
            assert distribution._contains(distribution.to_internal_repr(params[key]))
