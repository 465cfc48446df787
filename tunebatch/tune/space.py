"""One flat search space over all chosen strategies.

Every trial has every parameter; those that its strategy does not have are ignored. Gaussian processes and
multivariate samplers need that, and sizes on a log scale let them learn more from few trials.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from tunebatch.engine.knobs import MAX_BATCH_SIZE, MIN_BATCH_SIZE, Knob
from tunebatch.engine.presets import PRESETS
from tunebatch.engine.strategies import (
    Strategy,
    canonical,
    features_named,
    kind_of,
    knobs_of,
    strategy,
)
from tunebatch.tune.variants import (
    NONE,
    Groups,
    bases_of,
    free_groups,
    member_of,
    neighbours,
    searched_groups,
    with_members,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

__all__ = ["Space", "config_hash", "with_batch_limit", "within_slots"]

Params = dict[str, Any]

_PREFIX = "log2_"
_DIGITS = 3  # significant digits of a knob that is no whole number
_AUTO_WIDTH = 1.0  # octaves under a knob's range that stand for finding the value itself


class Space:
    """The parameters of a search: ``strategy``, the feature of each group that is searched, or ``none``, and
    ``log2_<knob>`` for each knob of any strategy.

    Strategies that have a knob of the same name share its parameter, which covers both ranges. A preset
    is what it is with its own knobs, and only those of features that it is named with are searched.

    Attributes:
        features: Those that are added to any strategy that is named with none of their group.

    Args:
        max_slots: Batch slots of the executor, which are the most that a batch limit can mean; None: as
            many as the knob asks for.
        offline: All requests come at once, so that knobs that matter only there are searched too.
        ranges: The lowest and highest value of knobs, in place of the table's; equal ones pin a knob, and 0
            for both pins it to ``auto`` where it can be that.

    Raises:
        StrategyError: An unknown strategy or feature.
        ValueError: No strategy at all.
    """

    def __init__(
        self,
        names: Sequence[str],
        max_slots: int | None = None,
        *,
        offline: bool = False,
        features: Sequence[str] = (),
        ranges: Mapping[str, tuple[float, float]] | None = None,
    ) -> None:
        self.features = tuple(features_named(features))
        self._groups = searched_groups(self.features)
        self.names = tuple(dict.fromkeys(canonical(name) for name in names))
        if not self.names:
            raise ValueError("a search needs at least one strategy")
        self._max_slots = max_slots
        self._bases = bases_of(self.names, self._groups)
        self._knobs = {name: _knobs_of(name, max_slots, offline, ranges or {}) for name in self._bases}
        self._ranges: dict[str, tuple[float, float]] = {}
        for knobs in self._knobs.values():
            for knob in knobs:
                low, high = _low(knob), _encode(knob, knob.high)
                old = self._ranges.get(knob.name, (low, high))
                self._ranges[knob.name] = (min(low, old[0]), max(high, old[1]))

    def distributions(self) -> dict[str, BaseDistribution]:
        """The space in Optuna's words."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution

        found: dict[str, BaseDistribution] = {"strategy": CategoricalDistribution(self.names)}
        for group, members in self._groups.items():
            found[group] = CategoricalDistribution((NONE, *members))
        for name, (low, high) in self._ranges.items():
            found[_PREFIX + name] = FloatDistribution(low, high)
        return found

    def knobs_of(self, name: str) -> tuple[Knob, ...]:
        """The knobs of a strategy with the ranges that are searched."""
        return self._knobs[name]

    @property
    def variants_of_all(self) -> tuple[str, ...]:
        """Every strategy with every choice of features that can be searched."""
        return tuple(self._bases)

    def base_of(self, name: str) -> str:
        """The strategy that was asked for, of which this is a variant."""
        return self._bases[name]

    @property
    def groups(self) -> Groups:
        """The groups of features that are searched."""
        return self._groups

    def groups_of(self, base: str) -> Groups:
        """The groups of features that are searched for a strategy that was asked for."""
        return free_groups(base, self._groups)

    def neighbours(self, chosen: Strategy) -> list[Strategy]:
        """All that differ from it in one searched feature."""
        found = neighbours(chosen, self.base_of(chosen.name), self._groups)
        return [self.within(one) for one in found]

    def variants(self, base: str) -> list[str]:
        """A few variants of a strategy, itself the first, in which each of its features occurs."""
        groups = self.groups_of(base)
        most = max(map(len, groups.values()), default=0)
        fullest = (
            [members[min(turn, len(members) - 1)] for members in groups.values()] for turn in range(most)
        )
        return [base, *(with_members(base, added) for added in fullest)]

    def to_strategy(self, params: Mapping[str, Any]) -> Strategy:
        """The strategy that parameters stand for: whole numbers rounded, knobs within their own range.

        Raises:
            StrategyError: The parameters are not of this space.
        """
        base = str(params["strategy"])
        name = with_members(base, [str(params[group]) for group in self.groups_of(base)])
        knobs = {
            knob.name: _decode(knob, float(params[_PREFIX + knob.name])) for knob in self._knobs.get(name, ())
        }
        return within_slots(strategy(name, _in_order(knobs)), self._max_slots)

    def to_params(self, chosen: Strategy) -> Params:
        """What ``to_strategy`` makes the strategy of; knobs that it lacks stand in the middle."""
        base = self.base_of(chosen.name)
        params: Params = {"strategy": base}
        free = self.groups_of(base)
        for group in self._groups:
            params[group] = member_of(chosen, group) if group in free else NONE
        own, values = {knob.name: knob for knob in self._knobs[chosen.name]}, dict(chosen.knobs)
        for name, (low, high) in self._ranges.items():
            value = _encode(own[name], values[name]) if name in own else (low + high) / 2.0
            params[_PREFIX + name] = min(max(value, low), high)
        return params

    def default(self, name: str) -> Strategy:
        """A strategy with the defaults of its knobs, as far as these are searched."""
        return self.within(strategy(name))

    def within(self, chosen: Strategy) -> Strategy:
        """The nearest that is searched: each knob within its range, and no more sequences than slots."""
        knobs = dict(chosen.knobs)
        for knob in self._knobs[chosen.name]:
            if not knob.auto:
                value = min(max(knobs[knob.name], knob.low), knob.high)
                knobs[knob.name] = int(value) if knob.integer else value
        return within_slots(strategy(chosen.name, _in_order(knobs)), self._max_slots)

    def defaults(self, names: Sequence[str] | None = None) -> list[Params]:
        """The default of each strategy, or of those named, without features that are searched."""
        return [self.to_params(self.default(name)) for name in (self.names if names is None else names)]

    def draw(self, rng: random.Random) -> Params:
        """Parameters at random, uniform on the log scale."""
        params: Params = {"strategy": rng.choice(self.names)}
        for group, members in self._groups.items():
            params[group] = rng.choice((NONE, *members))
        for knob, (low, high) in self._ranges.items():
            params[_PREFIX + knob] = rng.uniform(low, high)
        return params


def config_hash(chosen: Strategy) -> str:
    """The same for parameters that give the same strategy and knobs, however they were drawn."""
    text = json.dumps([chosen.name, sorted(chosen.knobs)])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def within_slots(chosen: Strategy, max_slots: int | None) -> Strategy:
    """The same with a batch limit that there are slots for: the engine would silently keep to those, and
    the limit that it is reported with would be a lie."""
    if max_slots is None or dict(chosen.knobs).get(MAX_BATCH_SIZE.name, 0) <= max_slots:
        return chosen
    return with_batch_limit(chosen, max_slots)


def with_batch_limit(chosen: Strategy, batch: int) -> Strategy:
    """The same with another batch limit, and a lower bound of it that is no higher."""
    return strategy(chosen.name, _in_order({**dict(chosen.knobs), MAX_BATCH_SIZE.name: batch}))


def _in_order(knobs: Mapping[str, float | int]) -> dict[str, float | int]:
    """A lower bound of the batch limit no higher than the limit."""
    found = dict(knobs)
    if MIN_BATCH_SIZE.name in found:
        found[MIN_BATCH_SIZE.name] = min(found[MIN_BATCH_SIZE.name], found[MAX_BATCH_SIZE.name])
    return found


def _knobs_of(
    name: str, max_slots: int | None, offline: bool, ranges: Mapping[str, tuple[float, float]]
) -> tuple[Knob, ...]:
    policy = name.partition("+")[0]
    fixed = kind_of(policy).knobs if policy in PRESETS else ()
    return tuple(
        _ranged(knob, max_slots, ranges)
        for knob in knobs_of(name)
        if knob not in fixed and (offline or not knob.switch or knob.name in ranges)
    )


def _ranged(knob: Knob, max_slots: int | None, ranges: Mapping[str, tuple[float, float]]) -> Knob:
    """The knob with the range that is searched."""
    if knob.name == MAX_BATCH_SIZE.name and max_slots is not None:
        low, high = ranges.get(knob.name, (knob.low, max_slots))
        return dataclasses.replace(knob, low=min(low, max_slots), high=min(high, max_slots))
    if knob.name not in ranges:
        return knob
    low, high = ranges[knob.name]
    if high == 0 and not knob.auto and knob.integer and not knob.switch:
        return knob  # others of this name are pinned to auto, which it cannot be
    return dataclasses.replace(knob, low=low, high=high, auto=False)


def _shift(knob: Knob) -> float:
    """A knob whose range includes 0 (off) is counted from 1 on the log scale."""
    return 1.0 if knob.low <= 0.0 else 0.0


def _low(knob: Knob) -> float:
    """The least parameter, with room below the range where the knob can find its value itself."""
    return _encode(knob, knob.low) - (_AUTO_WIDTH if knob.auto else 0.0)


def _encode(knob: Knob, value: float) -> float:
    if knob.auto and value == 0:
        return _encode(knob, knob.low) - _AUTO_WIDTH / 2.0
    return math.log2(value + _shift(knob))


def _decode(knob: Knob, log2: float) -> float | int:
    if knob.auto and log2 < _encode(knob, knob.low):
        return 0
    value: float = min(max(math.exp2(log2) - _shift(knob), knob.low), knob.high)
    if knob.integer:
        return round(value)
    return min(max(float(f"{value:.{_DIGITS}g}"), knob.low), knob.high)
