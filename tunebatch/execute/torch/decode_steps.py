"""How long decode steps take at growing batch."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.plan import OutOfDeviceMemoryError, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor

_WARM_UPS, _TIMED = 2, 5


@dataclass(frozen=True, slots=True)
class DecodeTimes:
    """Measured decode steps.

    Attributes:
        context: Tokens of each sequence.
        step_s: Seconds of the fastest of a few steps, by batch.
    """

    context: int
    step_s: dict[int, float]


def decode_step_times(executor: TorchExecutor, context: int, budget_s: float = 4.0) -> DecodeTimes:
    """Times decode steps at batch 1, 2, 4 and so on, planning apart and sampling included.

    Every sequence has blocks of its own, since shared ones would come from a cache of the processor.

    Args:
        context: Tokens of each sequence; fewer where the model's context or the cache does not hold them.
        budget_s: No further batch is begun after so long, or when the next would likely take longer.
    """
    steps = _WARM_UPS + _TIMED
    room = min(executor.max_context, executor.num_blocks * executor.block_size)
    context = max(1, min(context, room - steps))
    blocks = -(-(context + steps) // executor.block_size)
    _touch(executor)
    found: dict[int, float] = {}
    started, batch = time.perf_counter(), 1
    while batch <= min(executor.max_slots, executor.num_blocks // blocks):
        try:
            found[batch] = _step_s(executor, batch, context, blocks)
        except OutOfDeviceMemoryError:
            break
        if time.perf_counter() + 2 * steps * found[batch] > started + budget_s:
            break
        batch *= 2
    executor.reset()
    return DecodeTimes(context, found)


def _step_s(executor: TorchExecutor, batch: int, context: int, blocks: int) -> float:
    executor.reset()
    group = DecodeGroup(executor.block_size)
    for slot in range(batch):
        sequence = Sequence(Request(id=slot, prompt=(0,) * context, max_tokens=_WARM_UPS + _TIMED + 1))
        sequence.num_computed, sequence.slot = context - 1, slot
        sequence.block_table = list(range(slot * blocks, (slot + 1) * blocks))
        executor.set_slot(slot, 0, context - 1)
        group.join(sequence)
    times: list[float] = []
    grown = list(group.members)
    for _ in range(_WARM_UPS + _TIMED):
        begun = time.perf_counter()
        executor.execute(StepPlan(decodes=group, grown=grown))
        times.append(time.perf_counter() - begun)
        group.advance()
        grown = []
    return min(times[_WARM_UPS:])  # whatever else the machine does only adds


@torch.inference_mode()
def _touch(executor: TorchExecutor) -> None:
    """Pages that were never written are one and the same page of zeros, which costs nothing to read."""
    for pair in executor.cache.layers.values():
        for pool in pair:
            pool.zero_()
