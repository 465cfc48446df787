"""Continuous batching: the batch changes at every step."""

from __future__ import annotations

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.queues import Queues


class Continuous:
    """Iteration-level scheduling (Orca, OSDI 2022) with whole prompts first, as vLLM's first engine.

    Every step, finished sequences have left and their blocks are free; waiting requests join if there
    are a slot and blocks for them. A step is either prefills or one token of everybody who decodes.

    Args:
        max_batch_size: Most sequences that run at once.
        max_batched_tokens: Prompt tokens per prefill step; a longer prompt goes alone.
    """

    holds_slots = False

    def __init__(self, max_batch_size: int = 32, max_batched_tokens: int = 2048) -> None:
        self.max_batch_size = max_batch_size
        self._token_budget = max_batched_tokens

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        slices = queues.prefill(now, self.max_batch_size, self._token_budget)
        if slices:
            return StepPlan(slices)
        return queues.decode(StepPlan(), now) or None
