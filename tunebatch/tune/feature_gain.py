"""What a feature is worth: measured, at the same settings with it and without."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

from tunebatch.engine.features import FEATURES, GROUPS
from tunebatch.engine.strategies import Strategy
from tunebatch.tune.confirm import gain_over, mean_capacity
from tunebatch.tune.facts import FeatureGain, TrialFacts
from tunebatch.tune.space import Space
from tunebatch.tune.variants import NONE, member_of

__all__ = ["feature_gains"]

Pair = tuple[TrialFacts, TrialFacts]


def feature_gains(
    winner: TrialFacts,
    facts: Sequence[TrialFacts],
    space: Space,
    resolution: Callable[..., float] = lambda *trials: 0.0,
) -> list[FeatureGain]:
    """For each feature that was searched for the winner's strategy what it is worth, if two trials tell.

    Where several pairs do, the winner's settings count before others, and those that serve more before those
    that serve less. A trial that is known coarsely tells nothing, nor does a pair that misses the SLO.

    Args:
        resolution: Of the confirmations of two trials, as a logarithm, which see `gain_over`.
    """
    alike = [trial for trial in facts if trial.chosen.policy == winner.chosen.policy and not trial.coarse]
    found = []
    for group, members in space.groups_of(space.base_of(winner.strategy)).items():
        own = _settings(winner.chosen, group)
        for feature in members:
            pairs = [pair for pair in _pairs(alike, group, feature) if max(_served(pair)) > 0.0]
            if pairs:
                best = max(pairs, key=lambda pair: (_settings(pair[1].chosen, group) == own, *_served(pair)))
                found.append(_gain(feature, feature in winner.chosen.features, best, resolution))
    return found


def _pairs(facts: Sequence[TrialFacts], group: str, feature: str) -> Iterator[Pair]:
    """Trials with the feature, each with the one that has none of the group and is the same otherwise."""
    bare = {_settings(one.chosen, group): one for one in facts if member_of(one.chosen, group) == NONE}
    for trial in facts:
        if member_of(trial.chosen, group) == feature:
            without = bare.get(_settings(trial.chosen, group))
            if without is not None:
                yield trial, without


def _settings(chosen: Strategy, group: str) -> tuple[object, ...]:
    """All that a strategy is beside the feature of the group and what can be tuned of it."""
    tuned = {knob.name for feature in GROUPS[group] for knob in FEATURES[feature].knobs}
    rest = [feature for feature in chosen.features if feature not in GROUPS[group]]
    return chosen.policy, *rest, *((name, value) for name, value in chosen.knobs if name not in tuned)


def _served(pair: Pair) -> tuple[float, float]:
    """The capacity of the better one, and with the feature."""
    with_it, without = map(mean_capacity, pair)
    return max(with_it, without), with_it


def _gain(feature: str, kept: bool, pair: Pair, resolution: Callable[..., float]) -> FeatureGain:
    """On the seeds that both were confirmed on; on that of the search if there are none."""
    seeds = min(len(trial.confirmed) for trial in pair)
    with_it, without = (dataclasses.replace(trial, confirmed=trial.confirmed[:seeds]) for trial in pair)
    ratio, interval = gain_over(with_it, without, resolution(*pair))
    if ratio is None and mean_capacity(without) > 0.0:
        ratio = 0.0
    return FeatureGain(feature, kept, with_it, without, ratio, interval)
