"""No batching: one request at a time."""

from __future__ import annotations

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import run_to_completion
from tunebatch.engine.queues import Queues


class Sequential:
    """Serves each request alone, in order of arrival; the baseline of every comparison."""

    max_batch_size = 1
    holds_slots = False

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        if (step := run_to_completion(now, queues)) is not None:
            return step
        slices = queues.prefill(now, limit=1, token_budget=0)
        return StepPlan(slices) if slices else None
