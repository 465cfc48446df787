"""What was measured of a loaded model, in the terms of its plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tunebatch.measure.decode_balance import measured_compute_bound
from tunebatch.measure.kv_memory import Fits
from tunebatch.measure.kv_room import blocks_of_slots
from tunebatch.measure.memory_plan import WEIGHT_BYTES, MemoryPlan, activation_bytes

if TYPE_CHECKING:
    from tunebatch.execute.torch.decode_steps import DecodeTimes
    from tunebatch.execute.torch.memory import MeasuredMemory


@dataclass(frozen=True, slots=True)
class MeasuredPlan:
    """A plan beside what was measured.

    Attributes:
        kv_room_bytes: Of the blocks that the executor took.
        fits: What they hold of the plan's sequences, and the batch to begin with.
        compute_bound_batch: The smallest timed batch at which compute takes over decoding; None: at none of
            them, or none but batch 1 was timed.
        predicted_blocks: KV blocks that were predicted, no more than the executor's batch slots can fill.
        predicted_activation_bytes: Of a step with as many tokens as the one that was measured.
    """

    memory: MeasuredMemory
    times: DecodeTimes
    kv_room_bytes: int
    fits: Fits
    compute_bound_batch: int | None
    predicted_blocks: int
    predicted_activation_bytes: int


def measured_plan(plan: MemoryPlan, memory: MeasuredMemory, times: DecodeTimes) -> MeasuredPlan:
    """The same numbers as predicted, from what was measured."""
    room = memory.num_blocks * memory.block_size * memory.kv_bytes_per_token
    fillable = blocks_of_slots(memory.max_slots, plan.architecture.max_context, memory.block_size)
    element_bytes = WEIGHT_BYTES[plan.setting.dtype]
    return MeasuredPlan(
        memory=memory,
        times=times,
        kv_room_bytes=room,
        fits=plan.in_room(room),
        compute_bound_batch=measured_compute_bound(
            times.step_s, memory.weight_bytes, plan.layout.bytes_read(times.context)
        ),
        predicted_blocks=min(plan.num_blocks, fillable),
        predicted_activation_bytes=activation_bytes(
            plan.architecture, memory.activation_tokens, element_bytes, memory.activation_rows
        ),
    )
