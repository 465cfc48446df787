"""A smaller batch for a default that met the SLO at no rate, so that its strategy is not beaten by a name.

A large static batch may fill too slowly for any limit on the TTFT, at every rate, and it may not fit on the
device. That says nothing about the strategy, and a sampler that knows four strategies by one trial each may
not come back to it in time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunebatch.engine.knobs import MAX_BATCH_SIZE
from tunebatch.engine.presets import PRESETS
from tunebatch.engine.strategies import Strategy
from tunebatch.tune.facts import TrialFacts
from tunebatch.tune.journal import StudyLog
from tunebatch.tune.space import Space, config_hash, with_batch_limit

__all__ = ["queue_second_chances", "smaller"]

_SHARE = 4  # at two steps from a batch of 32 to one of 2
_LEAST = 2  # one request at a time is a strategy of its own


def smaller(chosen: Strategy, least: int = _LEAST) -> Strategy | None:
    """The same with a quarter of the batch, but no less than the least; None when it has no batch limit, the
    least one, or is a preset, which would no longer be what it is named after."""
    now = dict(chosen.knobs).get(MAX_BATCH_SIZE.name)
    if now is None or chosen.policy in PRESETS:
        return None
    batch = max(int(now) // _SHARE, least)
    return with_batch_limit(chosen, batch) if batch < now else None


def queue_second_chances(log: StudyLog, space: Space) -> None:
    """Queues what the finished trials make due, and once: call it on opening a study and after each trial.

    What it queues counts as found by searching, not as a default. Every trial of a random baseline counts as
    random, those with default knobs too, so nothing is due there.
    """
    for chosen in _due(log.facts, space):
        batch = dict(chosen.knobs)[MAX_BATCH_SIZE.name]
        log.enqueue_once(space.to_params(chosen), "search", f"smaller-{chosen.name}-{batch}")


def _due(facts: Sequence[TrialFacts], space: Space) -> list[Strategy]:
    """For each strategy that has met the SLO nowhere the next smaller batch that was not measured."""
    measured = {trial.config for trial in facts}
    met = {space.base_of(trial.strategy) for trial in facts if trial.met}
    due = []
    for default in facts:
        if default.origin != "default" or default.strategy in met:
            continue
        knobs = space.knobs_of(default.strategy)
        least = max([_LEAST, *(math.ceil(knob.low) for knob in knobs if knob.name == MAX_BATCH_SIZE.name)])
        chosen = smaller(default.chosen, least)
        while chosen is not None and config_hash(chosen) in measured:
            chosen = smaller(chosen, least)
        if chosen is not None:
            due.append(chosen)
    return due
