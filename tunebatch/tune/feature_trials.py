"""Trials that show what a feature is worth: the same settings with it and without, both looked at closely.

A sampler that finds a good configuration with a feature does not tell what the feature had to do with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set

from tunebatch.engine.strategies import Strategy
from tunebatch.tune.confirm import best_of_each
from tunebatch.tune.journal import StudyLog
from tunebatch.tune.space import Space, config_hash
from tunebatch.tune.variants import with_member

__all__ = ["KEY", "queue_features"]

KEY = "feature-"


def queue_features(
    log: StudyLog, space: Space, *, for_all: bool, only_enough_for: Callable[[int], bool]
) -> None:
    """Queues what the finished trials make due, and once: call it on opening a study and after each trial.

    First the leader with the features of one group after the other, each beside what has won so far; at the
    end the leader's settings are due with each of its features changed, which is what its features are
    judged by. All of this counts as found by searching; in a random baseline nothing is due.

    Args:
        for_all: The other strategies are due as well, the better ones first.
        only_enough_for: Whether what is left of the budget is just about enough for so many trials.
    """
    facts = [trial for trial in log.facts if trial.origin != "random"]
    if not space.features or not facts or log.is_waiting:
        return
    measured = {trial.config for trial in facts}
    leaders = [trial.chosen for trial in best_of_each(facts, space.base_of)]
    due = {config_hash(one): one for one in space.neighbours(leaders[0])}
    if not only_enough_for(len(due.keys() - measured)):
        due = _next_group(log, space, leaders if for_all else leaders[:1], measured)
    for key, chosen in due.items():
        if config_hash(chosen) not in measured:
            log.enqueue_once(space.to_params(chosen), "search", KEY + key)


def _next_group(
    log: StudyLog, space: Space, leaders: Sequence[Strategy], measured: Set[str]
) -> dict[str, Strategy]:
    """Of the first strategy that lacks some, by key: the same with each feature of the first such group."""
    for leader in leaders:
        base = space.base_of(leader.name)
        for group, members in space.groups_of(base).items():
            added = {
                f"{base}-{feature}": space.within(with_member(leader, group, feature)) for feature in members
            }
            if any(
                not log.was_queued(KEY + key) and config_hash(one) not in measured
                for key, one in added.items()
            ):
                return added
    return {}
