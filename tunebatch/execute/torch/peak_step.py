"""The memory of the largest step that is served, found by running it before the KV cache takes the rest."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from tunebatch.engine.group import DecodeGroup
from tunebatch.engine.knobs import CHUNK_SIZE, MAX_BATCHED_TOKENS, STEP_TOKENS
from tunebatch.engine.plan import Slice, StepPlan
from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.execute.torch.out_of_memory import out_of_memory, ran_out
from tunebatch.execute.torch.sampler import sample

# Prompt tokens of the largest step that the search asks for.
PEAK_TOKENS = int(max(knob.high for knob in (MAX_BATCHED_TOKENS, CHUNK_SIZE, STEP_TOKENS)))
_LEAST_TOKENS = 64


class DeviceMemory(Protocol):
    """What a device tells of its memory, in bytes."""

    def free_and_total(self) -> tuple[int, int]:
        """Of all processes together, once torch has given back what it does not use."""
        ...

    def start_peak(self) -> int:
        """Begins to watch; returns what torch has taken by now."""
        ...

    def peak(self) -> int:
        """The most that torch had taken since, gaps between its tensors included."""
        ...


class CudaMemory:
    """Of the present CUDA device."""

    def free_and_total(self) -> tuple[int, int]:
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()

    def start_peak(self) -> int:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_reserved()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return torch.cuda.max_memory_reserved()


@dataclass(frozen=True, slots=True)
class PeakStep:
    """The largest step that ran.

    Attributes:
        num_bytes: The most that existed at once beside weights and KV cache.
    """

    prefill_tokens: int
    decodes: int
    num_bytes: int


def run_peak_step(
    new_executor: Callable[[int], TorchExecutor], memory: DeviceMemory, num_tokens: int = PEAK_TOKENS
) -> PeakStep:
    """Runs prompts of so many tokens, and decodes in all slots that are left, on a small KV cache of its own.

    Where the device has no memory for that, half the tokens are tried, and so on: larger steps are then
    refused when they come.

    Args:
        new_executor: Makes one with so many blocks.

    Raises:
        ModelError: Not even a small step fits beside the weights.
    """
    while True:
        try:
            return _run(new_executor, memory, num_tokens)
        except RuntimeError as error:
            if not ran_out(error):
                raise
            told = str(
                out_of_memory(torch.device("cuda"), error, f"in a step of {num_tokens} prefill tokens")
            )
        num_tokens //= 2
        if num_tokens < _LEAST_TOKENS:
            raise ModelError(f"{told} beside the weights alone; use a smaller model")


@torch.inference_mode()
def _run(new_executor: Callable[[int], TorchExecutor], memory: DeviceMemory, num_tokens: int) -> PeakStep:
    sizes = new_executor(1)
    lengths = lengths_of(sizes, num_tokens)
    blocks = [-(-count // sizes.block_size) for count in lengths] + [1] * (sizes.max_slots - len(lengths))
    executor = new_executor(sum(blocks))
    # Pools are made, kernels compiled and libraries' own buffers taken when they are first used.
    executor.logits(plan_of(executor, lengths[:1], blocks))
    plan = plan_of(executor, lengths, blocks)
    before = memory.start_peak()
    sample(executor.logits(plan), [])
    return PeakStep(plan.num_slice_tokens, plan.num_decodes, memory.peak() - before)


def lengths_of(executor: TorchExecutor, num_tokens: int) -> list[int]:
    """Of prompts that have so many tokens together, or as many as all slots hold."""
    length = executor.max_context - 1
    return [min(length, num_tokens - first) for first in range(0, num_tokens, length)][: executor.max_slots]


def plan_of(executor: TorchExecutor, lengths: list[int], blocks: list[int]) -> StepPlan:
    """Prompts of such lengths, and in the slots that are left a decode each; blocks one after the other."""
    slices: list[Slice] = []
    group = DecodeGroup(executor.block_size)
    first = 0
    for slot, count in enumerate(blocks):
        prompt = (0,) * (lengths[slot] if slot < len(lengths) else executor.block_size)
        sequence = Sequence(Request(id=slot, prompt=prompt, max_tokens=1))
        sequence.block_table, sequence.slot = list(range(first, first + count)), slot
        first += count
        if slot < len(lengths):
            slices.append(Slice(sequence, 0, len(prompt)))
        else:
            sequence.num_computed = len(prompt) - 1
            executor.set_slot(slot, 0, sequence.num_computed)
            group.join(sequence)
    return StepPlan(slices, group, grown=list(group.members)) if group.members else StepPlan(slices)
