"""What every batching policy is: a function from the queues to the next step."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence


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


@dataclass(slots=True)
class StepTaken:
    """A step that was made.

    Attributes:
        duration_s: From before it was planned until its tokens were on the host.
        num_decodes: Sequences that decoded, with or without drafts to verify.
        context_sum: KV tokens that these attended to.
        num_more_tokens: Tokens that it computed beyond one for each of these: of prompts, and drafts.
        num_accepted: Drafts that were accepted.
        ended: Sequences that it ended; only until the next step.
    """

    duration_s: float
    num_decodes: int
    context_sum: int
    num_more_tokens: int
    num_accepted: int
    num_preempted: int
    ended: SequenceOf[Sequence]


@runtime_checkable
class Learner(Protocol):
    """A policy that wants to know how its steps went; it stays a function of the plans and durations."""

    def took(self, step: StepTaken) -> None: ...


def run_to_completion(now: float, queues: Queues) -> StepPlan | None:
    """A decode step of what runs; when nothing does any more, the batch is over."""
    if queues.running and (plan := queues.decode(StepPlan(), now)):
        return plan
    queues.slots.release_held(now)
    return None
