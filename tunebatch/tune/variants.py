"""The variants of a strategy: itself, and itself with features that a search may add."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence

from tunebatch.engine.features import FEATURES, GROUPS
from tunebatch.engine.presets import PRESETS
from tunebatch.engine.strategies import Strategy, canonical, knobs_of, strategy

__all__ = [
    "NONE",
    "Groups",
    "bases_of",
    "free_groups",
    "member_of",
    "neighbours",
    "searched_groups",
    "with_member",
    "with_members",
]

NONE = "none"

# By group the features of it that are searched.
Groups = Mapping[str, tuple[str, ...]]


def searched_groups(features: Sequence[str]) -> Groups:
    """The groups that features belong to, each with those of them."""
    members = {group: tuple(one for one in all_ if one in features) for group, all_ in GROUPS.items()}
    return {group: found for group, found in members.items() if found}


def free_groups(base: str, groups: Groups) -> Groups:
    """Those that a strategy leaves open, being named with none of their features. A preset leaves none open:
    it is what its source has."""
    policy, *named = base.split("+")
    if policy in PRESETS:
        return {}
    return {group: members for group, members in groups.items() if not set(GROUPS[group]) & set(named)}


def bases_of(names: Sequence[str], groups: Groups) -> dict[str, str]:
    """Every variant that can be searched, with the named strategy that it is one of: where it could be one of
    several, the one that is named with most of its features."""
    found: dict[str, str] = {}
    for base in sorted(names, key=lambda name: name.count("+")):
        for added in itertools.product(*((NONE, *members) for members in free_groups(base, groups).values())):
            found[with_members(base, added)] = base
    return found


def with_members(base: str, added: Iterable[str]) -> str:
    """The canonical name with features, of which ``NONE`` is none."""
    return canonical("+".join([base, *(feature for feature in added if feature != NONE)]))


def member_of(chosen: Strategy, group: str) -> str:
    """The strategy's feature of a group; ``NONE`` if it has none."""
    return next((feature for feature in chosen.features if feature in GROUPS[group]), NONE)


def with_member(chosen: Strategy, group: str, member: str) -> Strategy:
    """The same with this feature of a group; one that is new has the defaults of its knobs."""
    kept = [feature for feature in chosen.features if feature not in GROUPS[group]]
    name = with_members(chosen.policy, [*kept, member])
    own = {knob.name for knob in knobs_of(name)}
    if member not in (NONE, *chosen.features):
        own.difference_update(knob.name for knob in FEATURES[member].knobs)
    return strategy(name, {knob: value for knob, value in chosen.knobs if knob in own})


def neighbours(chosen: Strategy, base: str, groups: Groups) -> list[Strategy]:
    """All that differ from it in one group, among the variants of its base."""
    return [
        with_member(chosen, group, member)
        for group, members in free_groups(base, groups).items()
        for member in (NONE, *members)
        if member != member_of(chosen, group)
    ]
