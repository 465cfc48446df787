"""The table of strategies: what a user can name."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tunebatch.engine.features import ALIASES, DRAFTERS, FEATURES
from tunebatch.engine.knobs import (
    CHUNK_SIZE,
    FORECAST_KV,
    MAX_BATCH_SIZE,
    MAX_BATCHED_TOKENS,
    MAX_DELAY,
    MAX_PARTIAL_PREFILLS,
    MIN_BATCH_SIZE,
    SORT_BY_LENGTH,
    STEP_TOKENS,
    SWITCHES,
    TARGET,
    Knob,
)
from tunebatch.engine.limits import NO_LIMITS, LatencyLimits
from tunebatch.engine.policies.adaptive import Adaptive
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.dynamic import Dynamic
from tunebatch.engine.policies.mixed import Mixed
from tunebatch.engine.policies.sequential import Sequential
from tunebatch.engine.policies.static import Static
from tunebatch.engine.presets import PRESETS


@dataclass(frozen=True, slots=True)
class StrategyKind:
    """A row of the table: how to make the policy, and what can be tuned.

    Attributes:
        takes_limits: The policy is made with the ``limits`` of the SLO.
    """

    make: Callable[..., Policy]
    knobs: tuple[Knob, ...]
    summary: str
    takes_limits: bool = False


STRATEGIES: dict[str, StrategyKind] = {
    "sequential": StrategyKind(Sequential, (), "one request at a time"),
    "static": StrategyKind(
        Static, (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS, SORT_BY_LENGTH), "full batches, run to the end"
    ),
    "dynamic": StrategyKind(
        Dynamic, (MAX_BATCH_SIZE, MAX_DELAY, MAX_BATCHED_TOKENS), "batches that start after a delay"
    ),
    "continuous": StrategyKind(
        Continuous, (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS), "the batch changes every step"
    ),
    "chunked": StrategyKind(
        Chunked,
        (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS, CHUNK_SIZE, FORECAST_KV),
        "prompts in chunks, between decode steps",
    ),
    "mixed": StrategyKind(
        Mixed,
        (MAX_BATCH_SIZE, STEP_TOKENS, MAX_PARTIAL_PREFILLS),
        "decodes and parts of prompts in one step",
        takes_limits=True,
    ),
    "adaptive": StrategyKind(
        Adaptive,
        (MAX_BATCH_SIZE, MIN_BATCH_SIZE, TARGET, MAX_PARTIAL_PREFILLS),
        "mixed, with a batch limit that follows the SLO, the queue and the KV cache",
        takes_limits=True,
    ),
}


class StrategyError(ValueError):
    """An unknown strategy or an impossible knob; one line for the user."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A batching policy with features, and a value for each of their knobs.

    Make one with `strategy`, which validates; a `Policy` keeps state, so every run makes its own.

    Attributes:
        name: ``policy`` or ``policy+feature+feature``, features in the order of their table; a preset may
            stand for the policy.
    """

    name: str
    knobs: tuple[tuple[str, float | int], ...] = ()

    @property
    def policy(self) -> str:
        return self.name.partition("+")[0]

    @property
    def features(self) -> tuple[str, ...]:
        return tuple(self.name.split("+")[1:])

    @property
    def drafter(self) -> str | None:
        """The feature that proposes draft tokens, if any does."""
        return next((name for name in self.features if name in DRAFTERS), None)

    def make_policy(self, limits: LatencyLimits = NO_LIMITS) -> Policy:
        """A policy for one run.

        Args:
            limits: Of the SLO that the run is judged by.
        """
        kind = kind_of(self.policy)
        values = dict(self.knobs)
        knobs: dict[str, Any] = {knob.name: values[knob.name] for knob in kind.knobs}
        return kind.make(**knobs, limits=limits) if kind.takes_limits else kind.make(**knobs)

    @property
    def shown_knobs(self) -> dict[str, float | int | str]:
        """The knobs as people and result files have them: 0 is ``auto`` where it stands for that."""
        values = dict(self.knobs)
        return {knob.name: knob.shown(values[knob.name]) for knob in knobs_of(self.name)}

    @property
    def label(self) -> str:
        """``continuous, max_batch_size 32, ...``, without what is switched off; a preset as what it is:
        ``vllm-v0 = continuous, ...``"""
        told = [
            f"{name} {value}" if isinstance(value, str) else f"{name} {value:g}"
            for name, value in self.shown_knobs.items()
            if value or name not in SWITCHES
        ]
        preset = PRESETS.get(self.policy)
        name = self.name if preset is None else f"{self.name} = {'+'.join([preset.strategy, *self.features])}"
        return ", ".join([name, *told])


def strategy(name: str, knobs: Mapping[str, Any] | None = None) -> Strategy:
    """A validated strategy or preset; knobs not given have their defaults.

    Raises:
        StrategyError: Unknown name or knob (says the nearest one), or an impossible value.
    """
    name = canonical(name)
    policy = name.partition("+")[0]
    own = PRESETS[policy].knobs if policy in PRESETS else {}
    given = {**own, **(knobs or {})}
    values: dict[str, float | int] = {}
    for knob in knobs_of(name):
        try:
            values[knob.name] = knob.checked(given.pop(knob.name, knob.default))
        except (TypeError, ValueError) as error:
            raise StrategyError(f"strategy {name}: {error}") from None
    if given:
        wrong = next(iter(given))
        raise StrategyError(
            f"strategy {name} has no knob {wrong!r}{_owners(wrong, values) or _nearest(wrong, values)}"
        )
    _check_order(name, values, MIN_BATCH_SIZE.name in (knobs or {}))
    return Strategy(name, tuple(values.items()))


def _check_order(name: str, values: dict[str, float | int], given: bool) -> None:
    """A lower bound of the batch limit is no higher than the limit; where it was not given, it follows."""
    least, most = values.get(MIN_BATCH_SIZE.name, 0), values.get(MAX_BATCH_SIZE.name, math.inf)
    if least <= most:
        return
    if given:
        raise StrategyError(
            f"strategy {name}: {MIN_BATCH_SIZE.name} = {least}: must not exceed {MAX_BATCH_SIZE.name}, "
            f"nearest is {most}"
        )
    values[MIN_BATCH_SIZE.name] = most


def canonical(name: str) -> str:
    """The one spelling of a strategy's name: aliases resolved, features in the order of their table.

    Raises:
        StrategyError: No or an unknown policy or feature, one feature twice, or some that exclude each other.
    """
    policy, *words = name.split("+")
    if not policy.strip():
        where = "no strategy before the first '+'" if words else "no strategy is named"
        raise StrategyError(f"strategy {name!r}: {where}; give one of {', '.join({**STRATEGIES, **PRESETS})}")
    if ALIASES.get(policy, policy) in FEATURES:
        raise StrategyError(
            f"{policy!r} is a feature, which is added to a strategy; write it like continuous+{name}"
        )
    if policy not in STRATEGIES and policy not in PRESETS:
        raise StrategyError(f"unknown strategy {name!r}{_nearest(policy, {**STRATEGIES, **PRESETS})}")
    wanted = {ALIASES.get(word, word) for word in words}
    for word in words:
        if not word:
            raise StrategyError(
                f"strategy {name}: no feature after a '+'; nearest is {policy!r}, "
                f"or add one of {', '.join(FEATURES)}"
            )
        if ALIASES.get(word, word) not in FEATURES:
            raise StrategyError(f"strategy {name}: unknown feature {word!r}{_nearest(word, FEATURES)}")
    if len(words) > len(wanted):
        features = [ALIASES.get(word, word) for word in words]
        twice = next(word for index, word in enumerate(features) if word in features[:index])
        raise StrategyError(f"strategy {name}: {twice} is given twice; leave one out")
    for feature in wanted:
        if others := wanted.intersection(FEATURES[feature].excludes):
            raise StrategyError(
                f"strategy {name}: {feature} and {min(others)} exclude each other; leave one out"
            )
    return "+".join([policy, *(feature for feature in FEATURES if feature in wanted)])


def named(words: Iterable[str]) -> list[str]:
    """The canonical names that words stand for, each once: ``all`` is every policy of the table, and
    ``all+prefix`` every one with prefix caching; these come first.

    Raises:
        StrategyError: See `canonical`; or two words stand for the same.
    """
    words = list(words)
    for index, word in enumerate(words):
        for other in words[:index]:
            if _spelling(word) == _spelling(other):
                raise StrategyError(f"{_spelling(word)} is given twice; leave one out")
    names: list[str] = []
    for word in sorted(words, key=lambda word: word.partition("+")[0] != "all"):
        policy, plus, features = word.partition("+")
        policies = list(STRATEGIES) if policy == "all" else [policy]
        names += [canonical(one + plus + features) for one in policies]
    return list(dict.fromkeys(names))


def _spelling(word: str) -> str:
    return word if word.partition("+")[0] == "all" else canonical(word)


def features_named(words: Iterable[str]) -> list[str]:
    """The features that words stand for, in the order of their table: ``all`` is every one, ``none`` is none.

    Raises:
        StrategyError: An unknown feature, or ``none`` beside others.
    """
    wanted = [ALIASES.get(word, word) for word in words]
    if "none" in wanted:
        if len(wanted) > 1:
            raise StrategyError("'none' stands alone; leave it out to search the other features")
        return []
    for word in wanted:
        if word not in FEATURES and word != "all":
            raise StrategyError(f"unknown feature {word!r}{_nearest(word, FEATURES)}")
    return [feature for feature in FEATURES if feature in wanted or "all" in wanted]


def knobs_of(name: str) -> tuple[Knob, ...]:
    """The knobs of a strategy by its canonical name: the policy's, then its features'."""
    policy, *features = name.split("+")
    own = [knob for feature in features for knob in FEATURES[feature].knobs]
    return (*kind_of(policy).knobs, *own)


def kind_of(policy: str) -> StrategyKind:
    """The row of the table of a policy, or of the one that a preset is made of."""
    return STRATEGIES[PRESETS[policy].strategy if policy in PRESETS else policy]


def _owners(knob: str, own: Mapping[str, object]) -> str:
    """Who has a knob that is spelled well, and what there is instead, in words; empty if nobody has it."""
    owners = [name for name in STRATEGIES if knob in {one.name for one in knobs_of(name)}]
    owners += [
        f"+{name}" for name, feature in FEATURES.items() if knob in {one.name for one in feature.knobs}
    ]
    return f", a knob of {', '.join(owners)}; it has {', '.join(own) or 'none'}" if owners else ""


def _nearest(word: str, valid: Mapping[str, object]) -> str:
    if not valid:
        return "; it has none"
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? (one of {', '.join(valid)})"
