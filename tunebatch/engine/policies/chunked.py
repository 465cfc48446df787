"""Chunked prefill: a long prompt never keeps the others from their next token for long."""

from __future__ import annotations

from functools import partial

from tunebatch.engine.plan import StepPlan
from tunebatch.engine.policies.base import StepTaken
from tunebatch.engine.policies.forecast import PeakForecast
from tunebatch.engine.queues import Queues


class Chunked:
    """Continuous batching, but prompts are computed in chunks that alternate with decode steps.

    The alternation of prefill and decode that LightLLM schedules by, with the chunks of Sarathi
    (2023): whoever decodes waits for one prefill step at most between two tokens. A chunk never
    shares a step with decodes.

    Args:
        max_batch_size: Most sequences that run at once.
        max_batched_tokens: Prompt tokens per prefill step, which may carry chunks of several prompts;
            a larger chunk goes alone.
        chunk_size: Most tokens of one prompt per step.
        forecast_kv: Admit a request only if the KV cache is expected to hold it and all that run to their
            ends, see `PeakForecast`; else if its prompt fits now.
    """

    holds_slots = False

    def __init__(
        self,
        max_batch_size: int = 32,
        max_batched_tokens: int = 2048,
        chunk_size: int = 256,
        forecast_kv: int = 0,
    ) -> None:
        self.max_batch_size = max_batch_size
        self._token_budget = max_batched_tokens
        self._chunk_size = chunk_size
        self._forecast = PeakForecast() if forecast_kv else None
        self._decode_is_due = False

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        plan = StepPlan()
        if self._decode_is_due:
            self._decode_is_due = False
            if queues.decode(plan, now):
                return plan
            # Nobody decodes, perhaps since those who did have yielded to an older, unfinished prompt.
        admit = None if self._forecast is None else partial(self._forecast.admit, queues, now)
        plan.slices = queues.prefill(now, self.max_batch_size, self._token_budget, self._chunk_size, admit)
        if plan.slices:
            self._decode_is_due = True
            return plan
        return queues.decode(plan, now) or None

    def took(self, step: StepTaken) -> None:
        if self._forecast is not None:
            self._forecast.took(step)
