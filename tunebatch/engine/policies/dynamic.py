"""Dynamic batching: like static, but the oldest request waits only so long."""

from __future__ import annotations

from tunebatch.engine.policies.static import Static
from tunebatch.engine.queues import Queues


class Dynamic(Static):
    """Starts a batch at ``max_batch_size`` requests or when the oldest has waited ``max_delay_s``.

    The rule of Triton Inference Server's dynamic batcher and of TorchServe; a batch still runs to
    its end before the next one starts.

    Args:
        max_batch_size: Requests that start a batch at once.
        max_delay_s: Longest wait of the oldest request for the batch to fill, in seconds.
        max_batched_tokens: Prompt tokens per prefill step.
    """

    def __init__(
        self, max_batch_size: int = 32, max_delay_s: float = 0.05, max_batched_tokens: int = 2048
    ) -> None:
        super().__init__(max_batch_size, max_batched_tokens)
        self._max_delay_s = max_delay_s

    def _has_waited(self, now: float, queues: Queues) -> bool:
        wake_at = self._wake_at(queues)
        return wake_at is not None and now >= wake_at

    def _wake_at(self, queues: Queues) -> float | None:
        if not queues.waiting:
            return None
        oldest = next(iter(queues.waiting.values()))
        return oldest.request.arrival_s + self._max_delay_s
