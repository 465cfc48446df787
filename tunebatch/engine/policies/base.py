"""What every batching policy is: a function from the queues to the next step."""

from __future__ import annotations

from typing import Protocol

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.queues import Queues


class Policy(Protocol):
    """Plans steps; owns no clock and no tensors.

    Attributes:
        max_batch_size: Most sequences that run at once.
        holds_slots: A finished sequence's slot stays taken until its whole batch has ended.
    """

    max_batch_size: int
    holds_slots: bool

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        """The next step; or a time at which to ask again; or None: ask when something arrives."""
        ...


def run_to_completion(now: float, queues: Queues) -> StepPlan | None:
    """A decode step of what runs; when nothing does any more, the batch is over."""
    if queues.running and (plan := queues.decode(StepPlan(), now)):
        return plan
    queues.release_held(now)
    return None
