"""The graphs of a model: a step is laid out where one of them reads, and that one is replayed."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import NamedTuple

import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import StepContext
from tunebatch.execute.torch.forward import Forward
from tunebatch.execute.torch.graphs.buckets import Bucket, Buckets, Shape
from tunebatch.execute.torch.graphs.capture import Capture
from tunebatch.execute.torch.graphs.inputs import Packed, StaticInputs
from tunebatch.execute.torch.graphs.pad import Step, empty_step
from tunebatch.execute.torch.staging import Ints


class Computed(NamedTuple):
    """What a replayed step gave; the next replay writes over it.

    Attributes:
        logits: ``[sampled, vocabulary]``.
        highest: ``[sampled]``, see `sampler.highest`.
    """

    logits: Tensor
    highest: Tensor


class _Captured(NamedTuple):
    packed: Packed
    replay: Callable[[], None]


class Graphs:
    """Captured steps of a model, by bucket.

    Args:
        forward: What is captured, with the search for the highest logits behind it.
        inputs: Where all graphs read.

    Attributes:
        buckets: Those that are captured.
    """

    def __init__(self, forward: Forward, inputs: StaticInputs) -> None:
        self._forward = forward
        self._inputs = inputs
        self._captured: dict[Bucket, _Captured] = {}
        self._of_context: dict[int, _Captured] = {}
        self._computed: Computed | None = None
        self.buckets = Buckets([])

    @torch.inference_mode()
    def capture(self, bucket: Bucket, capture: Capture) -> None:
        """Capture the step of a bucket.

        Raises:
            RuntimeError: See `Capture`.
        """
        packed = self._inputs.of(bucket)
        self._inputs.fill(bucket, empty_step())

        def compute() -> None:
            logits = self._forward(*packed)
            computed = self._computed_like(logits)
            computed.logits[: len(logits)].copy_(logits)
            torch.argmax(logits, -1, out=computed.highest[: len(logits)])

        captured = _Captured(packed, capture(compute))
        self._captured[bucket] = self._of_context[id(packed[2])] = captured
        self.buckets = Buckets(self._captured)

    def stage(self, step: Step, beside: SequenceOf[Ints] = ()) -> tuple[Packed, SequenceOf[Tensor]] | None:
        """Take a step, padded, to where its graph reads it, and what travels ``beside`` it; None where there
        is no graph for it, or no room.

        The places of sampled rows are only as many as the step's own.
        """
        bucket = self.buckets.smallest(step.shape)
        if bucket is None or sum(len(part) for part in beside) > self._inputs.layout.beside:
            return None
        there = self._inputs.fill(bucket, step, beside)
        tokens, sampled_at, context = self._captured[bucket].packed
        return (tokens, sampled_at[: step.shape.sampled], context), there

    def replay(self, tokens: Tensor, sampled_at: Tensor, step: StepContext) -> Computed | None:
        """Compute what `stage` gave, or decodes that lie elsewhere on the device; None if there is no graph.

        Args:
            tokens: As they were staged, or others in their place that the device knew.
        """
        captured = self._of_context.get(id(step)) or self._taken_over(len(sampled_at), step)
        if captured is None or self._computed is None:
            return None
        own = captured.packed[0]
        if tokens.data_ptr() != own.data_ptr():
            own[: len(tokens)].copy_(tokens)
        captured.replay()
        count = len(sampled_at)
        return Computed(self._computed.logits[:count], self._computed.highest[:count])

    def _taken_over(self, sampled: int, step: StepContext) -> _Captured | None:
        decodes = len(step.context_lens)
        if step.slices or sampled != decodes:
            return None
        bucket = self.buckets.smallest(Shape(0, 0, 0, decodes, decodes))
        if bucket is None or bucket.shape.slices:
            return None
        captured = self._captured[bucket]
        self._inputs.take_over(step, captured.packed)
        return captured

    def _computed_like(self, logits: Tensor) -> Computed:
        """One for all graphs: each would keep as much of its own, of which one at a time is read."""
        if self._computed is None:
            most = self._inputs.layout.sampled
            self._computed = Computed(
                logits.new_empty(most, logits.shape[1]),
                torch.zeros(most, dtype=torch.int64, device=logits.device),
            )
        return self._computed
