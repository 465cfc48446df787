"""Static batching: gather a full batch, run it to its end."""

from __future__ import annotations

from itertools import islice

from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.policies.base import run_to_completion
from tunebatch.engine.queues import Queues
from tunebatch.engine.sequence import Sequence


class Static:
    """Waits for ``max_batch_size`` requests, or the end of the stream, and runs them together.

    Nobody joins before the last has finished, and a finished sequence's slot stays empty until then
    (the request-level batching that Orca, OSDI 2022, improved on; FasterTransformer's). Tokens are
    streamed as they are made and prompts are packed without padding.

    Args:
        max_batch_size: Requests per batch.
        max_batched_tokens: Prompt tokens per prefill step; a batch may need several.
        sort_by_length: Form batches of alike lengths (``max_tokens``, then prompt), once no more
            arrivals are scheduled; for offline work.
    """

    holds_slots = True

    def __init__(
        self, max_batch_size: int = 32, max_batched_tokens: int = 2048, sort_by_length: bool = False
    ) -> None:
        self.max_batch_size = max_batch_size
        self._token_budget = max_batched_tokens
        self._sort_by_length = sort_by_length
        self._members: list[int] = []

    def plan(self, now: float, queues: Queues) -> StepPlan | float | None:
        if self._members:
            slices = self._admit_members(now, queues)
            if slices:
                return StepPlan(slices)
        if (step := run_to_completion(now, queues)) is not None:
            return step
        if not queues.waiting or not self._batch_is_ready(now, queues):
            return self._wake_at(queues)
        if self._sort_by_length and not queues.arrivals_open:
            queues.sort_waiting(_length)
        self._members = list(islice(queues.waiting, self._full(queues)))
        return self.plan(now, queues)

    def _admit_members(self, now: float, queues: Queues) -> list[Slice]:
        # Members are named, not counted: a place that a cancellation leaves stays empty.
        left = [member for member in self._members if member in queues.waiting]
        slices = queues.prefill(now, len(left), self._token_budget) if left else []
        self._members = left[len(slices) :] if slices else []
        return slices

    def _full(self, queues: Queues) -> int:
        return min(self.max_batch_size, queues.slots.count)

    def _batch_is_ready(self, now: float, queues: Queues) -> bool:
        # A preempted request has a client in mid-stream; it does not wait for strangers to arrive.
        oldest = next(iter(queues.waiting.values()))
        return (
            len(queues.waiting) >= self._full(queues)
            or oldest.record.num_preemptions > 0
            or self._has_waited(now, queues)
        )

    def _has_waited(self, now: float, queues: Queues) -> bool:
        return not queues.arrivals_open

    def _wake_at(self, queues: Queues) -> float | None:
        return None


def _length(sequence: Sequence) -> tuple[int, ...]:
    return (-sequence.request.max_tokens, -len(sequence.request.prompt), sequence.id)
