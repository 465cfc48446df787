"""The table of strategies: what a user can name."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tunebatch.engine.knobs import (
    CHUNK_SIZE,
    MAX_BATCH_SIZE,
    MAX_BATCHED_TOKENS,
    MAX_DELAY,
    MAX_PARTIAL_PREFILLS,
    STEP_TOKENS,
    Knob,
)
from tunebatch.engine.policies.base import Policy
from tunebatch.engine.policies.chunked import Chunked
from tunebatch.engine.policies.continuous import Continuous
from tunebatch.engine.policies.dynamic import Dynamic
from tunebatch.engine.policies.mixed import Mixed
from tunebatch.engine.policies.sequential import Sequential
from tunebatch.engine.policies.static import Static


@dataclass(frozen=True, slots=True)
class StrategyKind:
    """A row of the table: how to make the policy, and what can be tuned."""

    make: Callable[..., Policy]
    knobs: tuple[Knob, ...]
    summary: str


STRATEGIES: dict[str, StrategyKind] = {
    "sequential": StrategyKind(Sequential, (), "one request at a time"),
    "static": StrategyKind(Static, (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS), "full batches, run to the end"),
    "dynamic": StrategyKind(
        Dynamic, (MAX_BATCH_SIZE, MAX_DELAY, MAX_BATCHED_TOKENS), "batches that start after a delay"
    ),
    "continuous": StrategyKind(
        Continuous, (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS), "the batch changes every step"
    ),
    "chunked": StrategyKind(
        Chunked, (MAX_BATCH_SIZE, MAX_BATCHED_TOKENS, CHUNK_SIZE), "prompts in chunks, between decode steps"
    ),
    "mixed": StrategyKind(
        Mixed, (MAX_BATCH_SIZE, STEP_TOKENS, MAX_PARTIAL_PREFILLS), "decodes and parts of prompts in one step"
    ),
}


class StrategyError(ValueError):
    """An unknown strategy or an impossible knob; one line for the user."""


@dataclass(frozen=True, slots=True)
class Strategy:
    """A strategy with a value for each of its knobs.

    Make one with `strategy`, which validates; a `Policy` keeps state, so every run makes its own.
    """

    name: str
    knobs: tuple[tuple[str, float | int], ...] = ()

    def make_policy(self) -> Policy:
        return STRATEGIES[self.name].make(**dict(self.knobs))

    @property
    def label(self) -> str:
        """``continuous, max_batch_size 32, ...``"""
        return ", ".join([self.name, *(f"{name} {value:g}" for name, value in self.knobs)])


def strategy(name: str, knobs: Mapping[str, Any] | None = None) -> Strategy:
    """A validated strategy; knobs not given have their defaults.

    Raises:
        StrategyError: Unknown name or knob (says the nearest one), or an impossible value.
    """
    if name not in STRATEGIES:
        raise StrategyError(f"unknown strategy {name!r}{_nearest(name, STRATEGIES)}")
    kind = STRATEGIES[name]
    given = dict(knobs or {})
    values: dict[str, float | int] = {}
    for knob in kind.knobs:
        try:
            values[knob.name] = knob.checked(given.pop(knob.name, knob.default))
        except (TypeError, ValueError) as error:
            raise StrategyError(f"strategy {name}: {error}") from None
    if given:
        wrong = next(iter(given))
        raise StrategyError(f"strategy {name} has no knob {wrong!r}{_nearest(wrong, values)}")
    return Strategy(name, tuple(values.items()))


def _nearest(word: str, valid: Mapping[str, object]) -> str:
    if not valid:
        return "; it has none"
    close = difflib.get_close_matches(word, valid, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? (one of {', '.join(valid)})"
